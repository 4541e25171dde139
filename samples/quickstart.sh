#!/bin/sh
# From a fresh clone to answers: install, export, inspect, serve, ask, measure, stop.
# Usage: sh samples/quickstart.sh [WORK_DIRECTORY]; PYTHON=python3.12 picks an interpreter.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$(mktemp -d)}
python=${PYTHON:-python3}
server=

stop() {
    [ -z "$server" ] || { kill "$server" 2>/dev/null && wait "$server" || true; }
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step() { printf '\n== %s\n' "$*"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "mserve needs Python 3.11 or newer; found $("$python" --version). Set PYTHON=python3.12 or so." >&2
    exit 4
}

step "Install into $work/venv"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "$here"
PATH="$work/venv/bin:$PATH"
mserve --version

step "Export samples/digits/digits.onnx"
mserve export "$here/samples/digits/digits.onnx" "$work/models/digits" --meta trained_on="UCI handwritten digits"

step "Inspect"
mserve inspect "$work/models/digits"

step "Validate"
mserve validate "$work/models/digits"

step "Serve"
mserve serve "$work/models/digits" --port 0 --grpc-port off 2>"$work/server.log" &
server=$!
for _ in $(seq 200); do
    grep -q '^Ask it:' "$work/server.log" && break
    kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; exit 1; }
    sleep 0.05
done
cat "$work/server.log"
url=$(sed -n 's/.*listening on \(http[^ ]*\).*/\1/p' "$work/server.log")/v1/models/digits

step "Ask for 50 digits that it has never seen"
python "$here/samples/digits/classify.py" "$url"

step "Measure for 5 seconds"
mserve bench "$url" --concurrency 16 --duration 5

step "Done"
echo "Everything is in $work. Serve it again: $work/venv/bin/mserve serve $work/models/digits"
