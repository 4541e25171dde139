"""Load that is not made in Python, and who was busy meanwhile.

wrk asks over HTTP/1.1 and h2load over HTTP/2, both in closed loops: a connection (or stream)
asks again as soon as it has its answer. That measures what a server can do at most; latencies
under a closed loop say nothing about a service level, which is what `mserve bench --qps` is for.

Beside each figure stands the CPU time that both sides took, in cores: a server that took less
than the client was not the one that was measured.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Load:
    """One run of a client: answers a second, latencies, failures, and cores busy on both sides."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    bytes_each: float
    client_cpu: float
    server_cpu: float

    @property
    def per_server_cpu(self) -> float:
        """Answers for each second of the server's CPU time: independent of a client that is slow."""
        return self.rate / self.server_cpu if self.server_cpu else float("nan")


@dataclass(frozen=True)
class Request:
    """One HTTP request: where to, with which headers, what."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    def wire(self, *extra: str) -> bytes:
        """Its bytes, with extra header lines behind the others."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, *extra, "", ""]).encode() + self.body


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that none escapes the accounts."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def family(pid: int) -> dict[int, float]:
    """CPU seconds so far of a process and its descendants, by process id (/proc/PID/stat)."""
    parents: dict[int, int] = {}
    spent: dict[int, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        spent[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / TICKS
    members = {pid} & spent.keys()
    while more := {p for p, parent in parents.items() if parent in members} - members:
        members |= more
    return {p: spent[p] for p in members}


def measured(pid: int, command: Sequence[object]) -> tuple[str, float, float]:
    """Run a client; what it printed, and the CPU seconds that it and the server (a family) took."""
    before, own = family(pid), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    after = family(pid)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")
    client = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
    server = sum(spent - before.get(p, 0.0) for p, spent in after.items())
    settle(pid)
    return done.stdout, client, server


def settle(pid: int) -> None:
    """Wait until a server has done what the client left behind, so that the next run has the machine."""
    limit, last = time.monotonic() + 3, -1.0
    while time.monotonic() < limit and (now := sum(family(pid).values())) - last > 2.5 / TICKS:
        last = now
        time.sleep(0.1)


_REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"n":%d,"us":%d,"bytes":%d,"bad":%d,"p50":%f,"p99":%f}\\n',
    summary.requests, summary.duration, summary.bytes,
    e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50), latency:percentile(99)))
end
"""


def constant_script(directory: Path, name: str, request: Request) -> Path:
    """A wrk script: the same bytes each time, built once, no Lua per request."""
    body = directory / f"{name}.body"
    body.write_bytes(request.body)
    heads = "".join(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}\n" for k, v in request.headers.items())
    script = directory / f"{name}.lua"
    script.write_text(
        f'local file = io.open({json.dumps(str(body))}, "rb")\nwrk.body = file:read("*a")\nfile:close()\n'
        f'wrk.method = "POST"\nwrk.path = {json.dumps(request.path)}\n{heads}{_REPORT}'
    )
    return script


def script_with_ids(directory: Path, name: str, request: Request, *, unique: bool) -> Path:
    """A wrk script that writes an x-request-id and a traceparent into each request.

    With `unique` they are other ones each time; otherwise the same work is done and the
    bytes are always the same, so that the ratio of both does not contain what Lua costs.
    """
    head, _, tail = request.wire("\1").partition(b"\1")
    (directory / f"{name}.head").write_bytes(head)
    (directory / f"{name}.tail").write_bytes(tail)
    read = "".join(
        f"local {part} = io.open({json.dumps(str(directory / f'{name}.{part}'))}, 'rb'):read('*a')\n"
        for part in ("head", "tail")
    )
    script = directory / f"{name}-{'unique' if unique else 'same'}.lua"
    script.write_text(
        f"{read}local n = 0\nrequest = function()\n  n = n + {int(unique)}\n"
        "  return head .. string.format("
        "'x-request-id: bench-%012x\\r\\ntraceparent: 00-%032x-%016x-01', n, n + 1, n + 1) .. tail\nend\n"
        f"{_REPORT}"
    )
    return script


def cycling_script(directory: Path, name: str, requests: Sequence[Request]) -> Path:
    """A wrk script that sends prepared requests in turn."""
    reads = []
    for i, request in enumerate(requests):
        file = directory / f"{name}-{i}.request"
        file.write_bytes(request.wire())
        reads.append(f"io.open({json.dumps(str(file))}, 'rb'):read('*a')")
    script = directory / f"{name}.lua"
    script.write_text(
        f"local all = {{{', '.join(reads)}}}\nlocal n = 0\n"
        f"request = function()\n  n = n % #all + 1\n  return all[n]\nend\n{_REPORT}"
    )
    return script


def wrk(pid: int, port: int, script: Path, connections: int, seconds: float) -> Load:
    """One run of wrk, one thread, against the server with this process id."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    url = f"http://127.0.0.1:{port}"
    printed, client, server = measured(pid, [*command, "-s", script, url])
    found = re.search(r"^RESULT (.*)$", printed, re.M)
    if found is None:
        raise RuntimeError(printed)
    got = json.loads(found[1])
    took, each = got["us"] / 1e6, got["bytes"] / max(1, got["n"])
    p50, p99 = got["p50"] / 1e3, got["p99"] / 1e3
    return Load(got["n"] / took, p50, p99, got["bad"], each, client / took, server / took)


def h2load(
    pid: int, url: str, request: tuple[Path, Sequence[str]], shape: tuple[int, int], seconds: float
) -> Load:
    """One run of h2load, one thread. A request is a file with its body, and headers; a shape is
    connections and streams of each. `bytes_each` is of DATA frames. It tells no percentiles.
    """
    (body, headers), (connections, streams) = request, shape
    command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{max(1, round(seconds))}"]
    command += [f"-H{header}" for header in headers]
    printed, client, server = measured(pid, [*command, "-d", str(body), url])
    rate = re.search(r"finished in \S+, ([\d.]+) req/s", printed)
    took = max(1, round(seconds))
    counts = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", printed)
    data = re.search(r"\((\d+)\) data", printed)
    if rate is None or counts is None or data is None:
        raise RuntimeError(printed)
    done, good, failed, errored, late = map(int, counts.groups())
    nan, bad = float("nan"), failed + errored + late
    each = int(data[1]) / max(1, good or done)
    return Load(float(rate[1]), nan, nan, bad, each, client / took, server / took)


def exchange(port: int, request: bytes) -> bytes:
    """One request on a connection of its own; the answer's bytes, head and all."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0 or len(data) < end + 4 + _length(data[:end]):
            if not (chunk := link.recv(1 << 20)):
                raise RuntimeError(f"the server hung up after {data[:500]!r}")
            data += chunk
    return data


def _length(head: bytes) -> int:
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
    if found is None:
        raise RuntimeError(f"an answer without a length: {head!r}")
    return int(found[1])


def checked(port: int, request: Request) -> bytes:
    """The answer's bytes; it must be 200."""
    answer = exchange(port, request.wire())
    if b" 200 " not in answer[:20]:
        raise RuntimeError(f"{request.path}: {answer[:600]!r}")
    return answer


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@dataclass
class Front:
    """A server process that is not mserve."""

    pid: int
    port: int


@contextmanager
def front(
    command: Sequence[object],
    log: Path,
    ready: Callable[[str], int | None],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Front]:
    """A server process, ready when `ready(its log)` gives a port; stopped with all that it started."""
    whole = {**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=out, cwd=cwd, env=whole
        )
    try:
        yield Front(process.pid, _wait_for(process, log, ready))
    finally:
        stop(process)


def _wait_for(process: subprocess.Popen[bytes], log: Path, ready: Callable[[str], int | None]) -> int:
    limit = time.monotonic() + 120
    while (port := ready(log.read_text(errors="replace"))) is None:
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError("did not start: " + log.read_text(errors="replace")[-1500:])
        time.sleep(0.05)
    return port


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server: ask it, then end by process id whatever of its family is left."""
    members = set(family(process.pid))
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    limit = time.monotonic() + 5
    while (left := members & family(os.getpid()).keys()) and time.monotonic() < limit:
        time.sleep(0.1)
        for pid in left:
            reap(pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        reap(pid)


def reap(pid: int) -> None:
    """Collect an adopted process that has ended, if it is ours and has."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def printed_port(log: str) -> int | None:
    """The port that our own small servers print."""
    found = re.search(r"^port (\d+)$", log, re.M)
    return int(found[1]) if found else None
