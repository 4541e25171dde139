"""From what is offered, or a scenario's rules, to a job. Pure."""

from __future__ import annotations

import math

import numpy as np

from ..judgement.scenario import OFFLINE_MARGIN, Rules
from ..judgement.verdict import Load
from .job import Job
from .recorder import Phase, closed_rates
from .schedule import REQUESTS_MAX, Times, schedule


def load_job(
    load: Load,
    duration_s: float,
    seed: tuple[int, ...],
    recording: Times | None = None,
    *,
    watch: bool = False,
) -> Job:
    """The job of a load over some seconds. Of a recording, its own times."""
    if load.rate is None:
        return Job(duration_s, load.timeout_s, concurrency=load.concurrency, watch=watch)
    if recording is not None:
        return Job(duration_s, load.timeout_s, recording, watch=watch)
    duration_s = max(duration_s, 1 / load.rate)
    arrivals = "poisson" if load.arrivals.startswith("replay") else load.arrivals
    return Job(duration_s, load.timeout_s, schedule(arrivals, load.rate, duration_s, seed), watch=watch)


def scenario_job(rules: Rules, load: Load, warmup: Phase | None, seed: tuple[int, ...]) -> Job:
    """The job of a scenario. The warm-up tells how many samples keep the target busy for long enough."""
    if rules.scenario.streams:
        samples = rules.scenario.samples
        return Job(rules.duration_s, load.timeout_s, samples=samples, queries_min=rules.queries)
    if load.rate is not None:
        # A little longer, so that the drawn number of requests does not fall short.
        seconds = max(rules.duration_s, (rules.queries + 4 * math.sqrt(rules.queries)) / load.rate)
        return Job(seconds, load.timeout_s, schedule("poisson", load.rate, seconds, seed))
    rate = closed_rates(warmup.recorder).ok if warmup is not None else 0.0
    count = min(REQUESTS_MAX, max(rules.queries, math.ceil(OFFLINE_MARGIN * rate * rules.duration_s)))
    expected_s = count / rate if rate else 60.0
    return Job(expected_s, load.timeout_s + 5 * expected_s, np.zeros(count, np.int64), load.concurrency)
