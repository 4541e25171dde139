"""Send a server damaged requests over HTTP and gRPC; it must stand them all.

    python benchmarks/fuzz_server.py --minutes 30 [--seed N]

Rounds are of HTTP and of gRPC in turn, against one process with `--admin`, then against one
without. After each round good requests must be answered as they were at first; no answer
may have been a 500 (or INTERNAL or UNKNOWN), the log must hold no bug of ours, and memory may
not grow by more than GROWTH_MB. Prints the counts by status. Exit 1 when something was wrong,
with the request that did it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from serving_tools import Server, serving

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import fuzz_models
import server_fuzz

# Kept answers, caches and the allocator's arenas fill up at first; a leak does not stop there.
GROWTH_MB = 400
ROUND = 300


class Target:
    """A server process as the attacks see it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port, self.grpc_port = server.port, server.grpc_port

    def log(self) -> str:
        return self.server.log.read_text(errors="replace")


def restore(server: Server) -> None:
    """Load what the attack may have unloaded."""
    for model in ("echo", "flowers", "pick", "scalar", "words"):
        server.ask("POST", f"/v2/repository/models/{model}/load", b"{}")
    server.wait_ready()


def attack(server: Server, seconds: float, rng: random.Random, admin: bool) -> Counter[str]:
    """Rounds until the time is over. Raises AssertionError."""
    seen: Counter[str] = Counter()
    target: Any = Target(server)
    http, grpc = server_fuzz.Http(target, rng, seen), server_fuzz.Grpc(target, rng, seen)
    good = list(server_fuzz.known(server.ask))
    assert all(status == 200 for _, status, _ in good), good
    end, rounds, first = time.monotonic() + seconds, 0, 0.0
    while time.monotonic() < end:
        http.round(ROUND)
        grpc.round(ROUND)
        rounds += 1
        if admin:
            restore(server)
        assert list(server_fuzz.known(server.ask)) == good, "good requests are answered otherwise than before"
        assert not (found := server_fuzz.trouble(target.log())), found
        now = server.memory_mb()["RssAnon"]
        first = first if rounds > 5 else now
        assert now - first < GROWTH_MB, f"memory went from {first:.0f} to {now:.0f} MB in {rounds} rounds"
    grpc.close()
    print(
        f"admin {'on' if admin else 'off'}: {rounds} rounds, memory {first:.0f} to {now:.0f} MB", flush=True
    )
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rng, seen = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        models = fuzz_models.publish(Path(folder) / "models")
        for admin in (True, False):
            with serving(str(models), *(["--admin"] if admin else [])) as server:
                try:
                    seen += attack(server, options.minutes * 30, rng, admin)
                except AssertionError as error:
                    print(f"WRONG: {error}\nlog: {server.log}")
                    return 1
    for what, count in sorted(seen.items()):
        print(f"{count:>9,}  {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
