"""HandleReloadConfigRequest: a whole new list of models, sent to a running server.

The list takes the place of the server's models, like a configuration file that was
changed; what else the server was configured with stays. The answer comes when every
model serves what it should or cannot, at the latest after a minute or the client's
deadline; nobody else waits for it. A list that is wrong changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError, RequestError
from ..loader.plan import ModelConfig
from ..loader.reconciler import Model
from ..loader.servable import State
from ..wire import tfs_proto
from ..wire.messages import message
from .access import require_admin
from .calls import as_error
from .model_config_list import from_message
from .rpc import Methods, Rpc, RpcReply
from .tfs_grpc import status_proto

if TYPE_CHECKING:
    from .app import Server

METHOD = "tensorflow.serving.ModelService/HandleReloadConfigRequest"
WAIT_S = 60.0
POLL_S = 0.02


def methods(server: Server) -> Methods:
    """The method, for a server."""
    return Methods({METHOD: partial(_handle, server)}, {})


def _handle(server: Server, rpc: Rpc, reply: RpcReply) -> None:
    require_admin(rpc.context.admin)
    request = tfs_proto.read("tensorflow.serving.ReloadConfigRequest", rpc.message)
    if request.config.WhichOneof("config") is None:
        raise RequestError("the request has no configuration", expected="model_config_list")
    wait_s = min(WAIT_S, rpc.context.timeout_ns * 0.9e-9) if rpc.context.timeout_ns else WAIT_S
    server.calls.spawn(_reload(server, request.config, time.monotonic() + wait_s, reply))


async def _reload(server: Server, config: Any, until: float, reply: RpcReply) -> None:
    try:
        reply(await _answer(server, config, until))
    except Exception as error:
        reply(as_error(error, METHOD))


async def _answer(server: Server, config: Any, until: float) -> bytes:
    try:
        models, warnings = await asyncio.to_thread(from_message, config, "HandleReloadConfigRequest")
        server.reconfigure(replace(server.config, models=models, warnings=warnings))
    except InputError as error:
        raise RequestError(
            error.what, where=error.where, expected=error.expected, found=error.found, hint=error.hint
        ) from error
    for name in models:
        server.reconciler.look(name)
    wanted = {name: m.config for name, m in server.reconciler.models.items() if name in models}
    while not _settled(server.reconciler.models, wanted):
        if time.monotonic() > until or server.draining:
            break
        await asyncio.sleep(POLL_S)
    late = not _settled(server.reconciler.models, wanted)
    reasons = [r for name in wanted if (r := _reason(server.reconciler.models.get(name), wanted[name]))]
    code = "OK" if not reasons else "DEADLINE_EXCEEDED" if late else "UNAVAILABLE"
    response = message("tensorflow.serving.ReloadConfigResponse")()
    response.status.CopyFrom(status_proto(code, "\n".join(reasons)))
    data: bytes = response.SerializeToString()
    return data


def _settled(models: Mapping[str, Model], wanted: Mapping[str, ModelConfig]) -> bool:
    """Whether nothing more will happen soon to any of the models that were asked for."""
    return all(
        name not in models or models[name].config is not config or models[name].settled()
        for name, config in wanted.items()
    )


def _reason(model: Model | None, config: ModelConfig) -> str:
    """What a model lacks of its configuration, "" for nothing."""
    if model is None or model.config is not config:
        return f"{config.name}: another configuration took its place"
    if not any(slot.state is State.AVAILABLE for slot in model.slots.values()):
        return f"{config.name}: {model.problem or model.why_unavailable()}"
    named = {*config.policy.versions, *config.labels.values()}
    lacking = [model.why(v) for v in sorted(named) if _state(model, v) is not State.AVAILABLE]
    return f"{config.name}: {'; '.join(lacking)}" if lacking else ""


def _state(model: Model, version: int) -> State | None:
    return model.slots[version].state if version in model.slots else None
