"""The first run of a version, before it answers anyone: it warms the model up, and proves it.

Recorded requests are answered and compared with the recorded answers, grossly: other
machines and versions of the engine round otherwise. That finds weights which are not the
exported ones though their files have the right size, such as those of a copy that
reserves its space before it writes. A run that does not end is stopped, since it would
keep its thread for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..errors import ExecutionFailed, ModelRefused, MserveError
from ..format.golden import Golden
from ..numerics import gross_difference
from ..runtime.engines import time_limit

if TYPE_CHECKING:
    from .servable import Servable

WARM_UP_S = 60.0
LONG_RUN_NS = 1_000_000
SLOW_DISK = 20e6  # bytes a second; the first run may read all weights


def warm_up(servable: Servable) -> None:
    """Run the recorded requests once, or made-up inputs where there are none.

    Raises ModelRefused when the model fails on its own recorded requests, answers them
    otherwise than it did, or takes longer than WARM_UP_S and a slow disk to read it.
    """
    with _limited(servable) as options:
        for name, sample in servable.golden.items():
            _prove(servable, name, sample, options)
        if not servable.golden:
            with suppress(MserveError):  # made-up inputs may not suit the model, or be too large
                name, signature = servable.signature()
                servable.compute(name, servable.made_up(signature), options)


def runs_long(servable: Servable, *, wide: bool = False) -> bool:
    """Whether a row of the first signature keeps a thread busy for longer than LONG_RUN_NS.

    Only this thread's own time counts, so that a busy machine does not look like a long run.
    """
    with _limited(servable) as options, suppress(MserveError):
        name = next(iter(servable.signatures))
        inputs = servable.example(name)
        servable.compute(name, inputs, options, wide=wide)
        start = time.thread_time_ns()
        servable.compute(name, inputs, options, wide=wide)
        return time.thread_time_ns() - start > LONG_RUN_NS
    return False


@contextmanager
def _limited(servable: Servable) -> Iterator[Any]:
    """Options of runs that end after a while. Raises ModelRefused if they did."""
    limit_s = WARM_UP_S + servable.bundle.byte_size / SLOW_DISK
    options = servable.run_options(next(iter(servable.signatures)))
    with time_limit(options, limit_s, servable.bundle.path, "the model's first run"):
        yield options


def _prove(servable: Servable, name: str, sample: Golden, options: Any) -> None:
    """One signature's recorded requests, answered and compared."""
    where = f"{servable.bundle.path}: signature {name}"
    outputs = servable.signatures[name].outputs
    try:
        first = servable.compute(name, sample.inputs, options)
        reasons = [gross_difference(sample.outputs[a], x) for a, x in zip(outputs, first, strict=True)]
        if not any(reasons):
            return
        # A model that draws random numbers answers itself no better.
        second = servable.compute(name, sample.inputs, options)
    except ExecutionFailed as error:
        raise ModelRefused(
            "the model fails on its own golden samples", where=where, found=error.found
        ) from error
    for alias, reason, x, y in zip(outputs, reasons, first, second, strict=True):
        if reason and not gross_difference(x, y):
            raise ModelRefused(
                "the model's answers to its recorded requests are not the recorded ones",
                where=f"{where}, output {alias}",
                found=reason,
                hint="copy the version again from where it was exported; mserve validate tells what changed",
            )
