#!/bin/sh
# Let a new version of a model pass, or not: any CI that runs a shell can call this.
# Usage: sh gate.sh OLD NEW [options of mserve gate, such as --policy gate.toml --latency off]
# Reports go to $GATE_REPORTS (gate-reports); $MSERVE is the command (mserve).
# Exit: 0 passed, or inconclusive without --strict; 1 failed; 2, 3, 4 could not be decided, see mserve's words.
set -eu
[ $# -ge 2 ] || { echo "usage: sh gate.sh OLD NEW [options of mserve gate]" >&2; exit 2; }
reports=${GATE_REPORTS:-gate-reports}
mkdir -p "$reports" || exit 4

code=0
# shellcheck disable=SC2086 # the command may be several words
${MSERVE:-mserve} gate "$@" \
    --markdown "$reports/gate.md" --junit "$reports/gate.xml" \
    --sarif "$reports/gate.sarif" --html "$reports/gate.html" || code=$?

case $code in
    0)
        # Where nothing could be decided, that is 0 too, unless --strict is given.
        if grep -q INCONCLUSIVE "$reports/gate.md"; then
            echo "nothing speaks against the version, but not everything was decided; reports are in $reports"
        else
            echo "the version may ship; reports are in $reports"
        fi
        ;;
    1) echo "the version may not ship; reports are in $reports" >&2 ;;
    *) echo "the gate could not decide (exit $code)" >&2 ;;
esac
exit "$code"
