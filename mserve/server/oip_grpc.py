"""The Open Inference Protocol's gRPC service, as a codec over the Front.

ModelStreamInfer answers in the order of the requests, with an error of its own for each
that fails; as many requests are under way at once as on a connection of HTTP, so that they
can share batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from functools import cache, partial
from typing import Any

from ..errors import MserveError, Unimplemented
from ..front import Query
from ..loader.servable import Servable
from ..tensors import Array
from ..wire import oip_proto
from ..wire.context import Context
from ..wire.messages import message, methods
from ..wire.oip import to_raw
from ..wire.oip_known import Asked, Reader
from ..wire.oip_plan import Plan, shapes_of
from ..wire.protobuf import encode_bytes
from . import oip
from .calls import LOOP_BYTES, READ_BYTES, Call, Calls, as_error
from .exchange import Cancel
from .express import Express
from .http import PIPELINE_MAX
from .oip import Oip
from .peers import Held, Peers
from .rpc import Methods, Rpc, RpcReply, Unary

SERVICE = "inference.GRPCInferenceService/"
# Every answer of a stream is its request's last one; clients of decoupled models look for the mark.
_FINAL = "triton_final_response"
# The field of a ModelStreamInferResponse that holds an answer.
_INFER_RESPONSE = 2
_ABSENT = ("TraceSetting", "LogSettings", "SystemSharedMemoryRegister", "CudaSharedMemoryRegister")


class Infer(Call):
    """ModelInfer. The reply is a ModelInferResponse or an error."""

    protocol = "oip-grpc"

    def __init__(
        self,
        body: bytes | Asked,
        context: Context,
        reply: Callable[[Any], None],
        reader: Reader | None = None,
    ) -> None:
        """`body` is the message, read by `reader`, or what it asks for."""
        super().__init__(context, reply)
        self._reader = reader
        self._body = body
        self.plan: Plan | None = None
        self.id = ""

    def parse(self) -> None:
        body, reader = self._body, self._reader or Reader()
        self._asked = asked = body if isinstance(body, Asked) else reader.read(body)
        self._body = b""  # a large one waits in one form only
        self.model, self.id = asked.known.model, asked.id
        self.version, self.label = oip.version_of(asked.known.version)
        oip.prepare(self, asked.known.bare)

    def queries(self) -> Sequence[Query]:
        asked, plans = self._asked, self.servable.plans
        plan = plans.find_key(asked.key) if asked.key else None
        if plan is not None and (inputs := plan.inputs_of(asked.raw)) is not None:
            self.plan = plan
            return (Query(plan.signature, inputs, plan.rows),)
        message = asked.message()
        query = oip.query(message, self.servable)
        if asked.key:
            signature = self.servable.signatures[query.signature]
            plans.learn_key(asked.key, message, query.signature, signature, asked.raw)
        return (query,)

    def encode(self, results: Sequence[Sequence[Array]]) -> bytes:
        outputs, plan = results[0], self.plan
        if plan is not None and (known := plan.heads.get(shapes_of(outputs))):
            return oip_proto.response(known[0], self.id, [outputs[place].tobytes() for place in plan.places])
        asked = oip.outputs(self._asked.known.bare, self.servable, self.signature, outputs)
        head = oip_proto.head(self.model, str(self.servable.version), asked)
        if plan is not None:
            plan.keep_head(shapes_of(outputs), head)
        return oip_proto.response(head, self.id, [to_raw(output.array) for output in asked])

    def refuse(self, error: MserveError) -> MserveError:
        return error

    def code(self, error: MserveError | None) -> str:
        return error.grpc_status if error else "OK"


class InferExpress(Express):
    """ModelInfer of which everything but the tensors is known."""

    __slots__ = ("_asked", "_context", "_reply", "plan")

    protocol = Infer.protocol

    def __init__(
        self, calls: Calls, asked: Asked, context: Context, reply: RpcReply, *, servable: Servable, plan: Plan
    ) -> None:
        super().__init__(calls, asked.known.model, servable, context.start_ns)
        self.request_id = context.request_id
        self.plan = plan
        self.signature, self.rows, self.alone = plan.signature, plan.rows, plan.alone
        self._asked, self._context, self._reply = asked, context, reply

    def code(self, error: MserveError | None) -> str:
        return error.grpc_status if error else "OK"

    def encode(self, outputs: Sequence[Array]) -> bytes | None:
        plan = self.plan
        known = plan.heads.get(shapes_of(outputs))
        if known is None:
            return None
        return oip_proto.response(
            known[0], self._asked.id, [outputs[place].tobytes() for place in plan.places]
        )

    def send(self, answer: bytes) -> None:
        self._reply(answer)

    def make(self) -> Call:
        call = Infer(self._asked, self._context, self._reply)
        call.plan = self.plan
        return call


class OipGrpc:
    """Answers the calls of GRPCInferenceService."""

    def __init__(self, protocol: Oip, peers: Peers) -> None:
        self._oip = protocol
        self._peers = peers
        self._calls = protocol.calls
        self._reader = Reader()

    def methods(self) -> Methods:
        """The service's handlers by full method name."""
        unary: dict[str, Unary] = {
            name: partial(self._page, name, page) for name, page in self._pages().items()
        }
        unary |= {"ModelInfer": self._infer}
        unary |= {"RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload}
        unary |= dict.fromkeys(_ABSENT, _absent)
        streams = {"ModelStreamInfer": self._stream}
        return Methods(
            {SERVICE + n: h for n, h in unary.items()}, {SERVICE + n: h for n, h in streams.items()}
        )

    def _pages(self) -> Mapping[str, Callable[[Any], Mapping[str, Any]]]:
        """What answers at once: from the request's message, the answer's fields."""
        protocol = self._oip
        return {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": not protocol.unready()},
            "ServerMetadata": lambda _: protocol.server(),
            "ModelReady": lambda m: {"ready": protocol.why_unready(m.name, m.version) is None},
            "ModelMetadata": lambda m: protocol.metadata(m.name, m.version),
            "ModelConfig": lambda m: {"config": protocol.config(m.name, m.version)},
            "ModelStatistics": lambda m: protocol.statistics(m.name, m.version),
            "RepositoryIndex": lambda m: {"models": protocol.index(ready=m.ready)},
            "SystemSharedMemoryStatus": lambda _: {},
            "CudaSharedMemoryStatus": lambda _: {},
            "SystemSharedMemoryUnregister": lambda _: {},
            "CudaSharedMemoryUnregister": lambda _: {},
        }

    def _page(self, name: str, page: Callable[[Any], Mapping[str, Any]], rpc: Rpc, reply: RpcReply) -> None:
        asked, answer = _types(name)
        reply(oip_proto.encode(answer, page(_decode(asked, rpc))))

    def _infer(self, rpc: Rpc, reply: RpcReply) -> Cancel:
        body: bytes | Asked = rpc.message
        size = len(rpc.message)
        if size <= LOOP_BYTES and not self._calls.observers:
            try:
                body = self._reader.read(rpc.message)
                if express := self._express(body, size, rpc.context, reply):
                    express.begin(rpc.context.timeout_ns)
                    return express.cancel
            except MserveError:
                pass  # the long way will say why
        return self._calls.begin(Infer(body, rpc.context, reply, self._reader), size)

    def _express(self, asked: Asked, size: int, context: Context, reply: RpcReply) -> InferExpress | None:
        """A request that may go the express way; None where it may not. Raises MserveError."""
        known = asked.known
        if not asked.key:
            return None
        servable = self._calls.front.resolve(known.model, *oip.version_of(known.version))
        plan = servable.plans.find_key(asked.key)
        if plan is None or plan.timed or (inputs := plan.inputs_of(asked.raw)) is None:
            return None
        if size > READ_BYTES:
            self._calls.front.executor.check_room(servable)
        express = InferExpress(self._calls, asked, context, reply, servable=servable, plan=plan)
        express.inputs = inputs
        return express

    def _load(self, rpc: Rpc, reply: RpcReply) -> None:
        asked = _decode("RepositoryModelLoadRequest", rpc)
        parameters = oip_proto.parameters(asked.parameters)
        self._calls.spawn(_administer(self._oip.load(asked.model_name, parameters, rpc.context), reply))

    def _unload(self, rpc: Rpc, reply: RpcReply) -> None:
        asked = _decode("RepositoryModelUnloadRequest", rpc)
        self._calls.spawn(_administer(self._oip.unload(asked.model_name, rpc.context), reply))

    async def _stream(self, messages: AsyncIterator[bytes], rpc: Rpc) -> AsyncIterator[bytes]:
        answers: asyncio.Queue[_Asked | None] = asyncio.Queue(PIPELINE_MAX)
        reader = asyncio.get_running_loop().create_task(self._read(messages, rpc.context, answers))
        asked: _Asked | None = None
        try:
            while (asked := await answers.get()) is not None:
                yield _streamed(asked.call.id, await asked.answer)
                asked.drop()
            await reader
        finally:
            reader.cancel()
            while asked is not None:  # the client has left: so does what it asked for
                asked.drop()
                asked = answers.get_nowait() if not answers.empty() else None

    async def _read(
        self, messages: AsyncIterator[bytes], context: Context, answers: asyncio.Queue[_Asked | None]
    ) -> None:
        """Begin the call of each message; wait while the window is full."""
        try:
            async for body in messages:
                asked = self._ask(body, context)
                del body  # not held here until the next one comes
                try:
                    await answers.put(asked)
                except asyncio.CancelledError:
                    asked.drop()
                    raise
        finally:
            await answers.put(None)

    def _ask(self, body: bytes, stream: Context) -> _Asked:
        now = time.monotonic_ns()
        timeout = max(1, stream.start_ns + stream.timeout_ns - now) if stream.timeout_ns else 0
        context = Context(now, timeout, stream.request_id, stream.traceparent, stream.admin)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = Infer(body, context, partial(_settle, answer), self._reader)
        held = Held(self._peers)
        try:
            held.take(len(body))
        except MserveError as error:
            held.release()
            # Its traceback would hold the message until the requests before it are answered.
            answer.set_result(error.with_traceback(None))
            return _Asked(Infer(b"", context, answer.set_result), answer, held, lambda: None)
        return _Asked(call, answer, held, self._calls.begin(call, len(body)))


class _Asked:
    """A request of a stream on its way. It counts as held until `drop`: an answered one may wait
    for a client that does not read.
    """

    def __init__(self, call: Infer, answer: asyncio.Future[Any], held: Held, cancel: Cancel) -> None:
        self.call = call
        self.answer = answer
        self._held = held
        self._cancel = cancel

    def drop(self) -> None:
        """It is answered, or its client has left."""
        self._cancel()
        self._held.release()


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _streamed(request_id: str, result: Any) -> bytes:
    """One message of a stream's answer; an error comes with the id of its request."""
    if isinstance(result, MserveError):
        answer = message("inference.ModelStreamInferResponse")(error_message=str(result))
        answer.infer_response.id = request_id
        answer.infer_response.parameters[_FINAL].bool_param = True
        return bytes(answer.SerializeToString())
    return encode_bytes(_INFER_RESPONSE, result + _final())


@cache
def _final() -> bytes:
    """The mark of a last answer, which may follow the other fields of a ModelInferResponse."""
    marked = message("inference.ModelInferResponse")()
    marked.parameters[_FINAL].bool_param = True
    return bytes(marked.SerializeToString())


async def _administer(work: Coroutine[Any, Any, None], reply: RpcReply) -> None:
    try:
        await work
    except Exception as error:
        reply(as_error(error, "an administrative call"))
    else:
        reply(b"")


def _decode(name: str, rpc: Rpc) -> Any:
    """A call's message. Raises RequestError; Unimplemented where it names a repository."""
    asked = oip_proto.decode(name, rpc.message)
    if getattr(asked, "repository_name", ""):
        raise Unimplemented(
            "this server has one repository, without a name", found=asked.repository_name[:60]
        )
    return asked


def _absent(rpc: Rpc, reply: RpcReply) -> None:
    raise Unimplemented("this server does not have this part of Triton's API", where=rpc.method)


def _types(name: str) -> tuple[str, str]:
    """The names of a method's messages."""
    method = methods(SERVICE.rstrip("/"))[name]
    return method.input_type.name, method.output_type.name
