"""HDR: latencies as a HdrHistogram log, which plotters and other tools read. Pure.

A histogram of three significant digits: values are counted in buckets whose width doubles
with every power of two above 2048, so that each is known to a thousandth. The encoding is
the "V2 compressed" one: counts as zigzag LEB128 numbers, a run of n zeros as -n, deflated,
in base64; a line of the log holds start, length, largest value in milliseconds, and that.
Values are nanoseconds.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from ..judgement.quantiles import Ints

HIGHEST_NS = 3_600 * 10**9
_DIGITS = 3
_HALF_BITS = 10  # 1024 buckets in each power of two: three digits
_COOKIE, _COOKIE_COMPRESSED = 0x1C849313, 0x1C849314


def log(histograms: Mapping[str, Ints], seconds: float, started_s: float) -> str:
    """A log of one interval for each named set of latencies; `started_s` is Unix time.

    What was never answered counts as an hour, the largest value.
    """
    lines = [
        "#[Logged by mserve bench; values in nanoseconds; what was never answered counts as one hour]",
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {started_s:.3f} (seconds since epoch)]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for tag, latencies in histograms.items():
        most = min(HIGHEST_NS, int(latencies.max())) / 1e6 if len(latencies) else 0.0
        lines.append(f"Tag={tag},0.000,{seconds:.3f},{most:.6f},{encoded(latencies)}")
    return "\n".join(lines) + "\n"


def encoded(latencies: Ints) -> str:
    """One histogram as base64 text."""
    payload = b"".join(_numbers(np.bincount(buckets(latencies)))) if len(latencies) else b""
    head = struct.pack(">iiiiqqd", _COOKIE, len(payload), 0, _DIGITS, 1, HIGHEST_NS, 1.0)
    body = zlib.compress(head + payload)
    return base64.b64encode(struct.pack(">ii", _COOKIE_COMPRESSED, len(body)) + body).decode()


def buckets(latencies: Ints) -> Ints:
    """The index of each value's bucket."""
    values = np.clip(latencies, 1, HIGHEST_NS)
    _, bits = np.frexp(values.astype(np.float64))  # how many bits the value has
    shift = np.maximum(0, bits.astype(np.int64) - (_HALF_BITS + 1))
    index: Ints = (shift << _HALF_BITS) + (values >> shift)
    return index


def _numbers(counts: Ints) -> Iterator[bytes]:
    """The counts as zigzag LEB128 numbers, runs of zeros as one negative number."""
    after = 0
    for index in np.flatnonzero(counts).tolist():
        if index > after:
            yield _leb128(2 * (index - after) - 1)
        yield _leb128(2 * int(counts[index]))
        after = index + 1


def _leb128(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
