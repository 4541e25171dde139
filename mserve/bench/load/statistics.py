"""A server's own counters: mserve's page /metrics, or else Open Inference's statistics (Triton's too)."""

from __future__ import annotations

import asyncio
from typing import Any

from ...errors import MserveError
from ...wire.messages import message
from ..targets.endpoint import Endpoint
from ..targets.grpc_asking import OIP, OK, ask
from ..targets.pages import page, text_page
from .server_view import Counters, read_metrics

# Steps of a request as the protocol calls them, and as we do.
_STEPS = {"queue": "queue", "compute_input": "parse", "compute_infer": "compute", "compute_output": "encode"}


async def read(endpoint: Endpoint, model: str) -> Counters | None:
    """The counters of a model now; None where the server keeps none."""
    try:
        return await asyncio.to_thread(_over_grpc if endpoint.is_grpc else _over_http, endpoint, model)
    except MserveError:
        return None


def _over_http(endpoint: Endpoint, model: str) -> Counters | None:
    text = text_page(endpoint, "/metrics")
    counters = read_metrics(text, model) if text is not None else None
    if counters is not None:
        return counters
    status, value = page(endpoint, f"/v2/models/{model}/stats")
    return of_statistics(value) if status == 200 and value is not None else None


def _over_grpc(endpoint: Endpoint, model: str) -> Counters | None:
    from google.protobuf.json_format import MessageToDict

    asked = message("inference.ModelStatisticsRequest")(name=model)
    code, found = ask(endpoint, f"{OIP}/ModelStatistics", asked, "inference.ModelStatisticsResponse")
    if code != OK:
        return None
    return of_statistics(MessageToDict(found, preserving_proto_field_name=True))


def of_statistics(page: dict[str, Any]) -> Counters | None:
    """The counters in a page of statistics, all versions together; None where it is none.

    A batch's size there may be the upper end of a range of sizes.
    """
    try:
        return _of_statistics(page["model_stats"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _of_statistics(models: list[dict[str, Any]]) -> Counters:
    counters = Counters()
    for model in models:
        counters.rows += int(model.get("inference_count", 0))
        counters.batches += int(model.get("execution_count", 0))
        stats = model["inference_stats"]
        for step in ("success", "fail"):
            counters.requests += int(stats.get(step, {}).get("count", 0))
        for theirs, ours in _STEPS.items():
            found = stats.get(theirs, {})
            counters.add_phase(ours, int(found.get("count", 0)), int(found.get("ns", 0)) / 1e9)
        for batch in model.get("batch_stats", ()):
            size, run = int(batch["batch_size"]), batch.get("compute_infer", {})
            counters.run_s += int(run.get("ns", 0)) / 1e9
            counters.batch_rows[size] = counters.batch_rows.get(size, 0.0) + int(run.get("count", 0))
    counters.queue_s = counters.phases.get("queue", (0, 0.0))[1]
    counters.knows_inline = False
    return counters
