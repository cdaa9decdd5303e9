"""The Open Inference Protocol over gRPC, on a port of its own in the event loop of the web process.

`ModelInfer` is a format of the same predict call as over HTTP: `predictor.py` runs it. Keys, scopes, request
ids, limits of size, metrics and log lines are those of HTTP. An error has the gRPC code of its HTTP status,
and the text of the protocol's REST form. Messages are received as bytes: `runtime/codec` reads them.

This module imports grpc, which only the extra `grpc` installs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio

from registry.errors import NotFound, NotReady, TriviumError, Unavailable, invalid_field
from service import telemetry
from service.online.call_formats import Answer
from service.online.model_metadata import (
    EXTENSIONS,
    SERVER_NAME,
    SERVER_VERSION,
    describe_model,
    resolve_version,
)
from service.online.predictor import Predictor
from service.runtime.codec import inference_messages as messages
from service.web.auth import (
    UNAUTHORIZED,
    KeyVerifier,
    denial_reason,
    record_request,
    unauthorized_reason,
)
from service.web.health import run_checks
from service.web.problems import INTERNAL_ERROR, V2_STATUS, build_problem, status_of, text_of
from service.web.request_context import RequestContext, combine_headers
from service.web.services import Services

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs, Rows
    from service.runtime.codec.inference_request import AnswerForm
    from service.runtime.loading import LoadedModel

SERVICE = "/inference.GRPCInferenceService/"
METHOD = "GRPC"
"""Stands for the HTTP method in metrics and logs."""
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""By HTTP status under `/v2`: `web/problems.py` has that of each error."""
USAGE = (
    "the service inference.GRPCInferenceService has ServerLive, ServerReady, ServerMetadata, ModelReady, "
    "ModelMetadata and ModelInfer"
)
MAX_TEXT_BYTES = 2000
"""Of an error. Clients reject 8 KB of metadata, and each byte of the text may take 3."""
MB = 1 << 20

log = telemetry.logger("trivium.grpc")


class _Denied(Exception):
    """A call is denied for a reason that is no `TriviumError`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Call(NamedTuple):
    """`deadline`: time of `time.monotonic`. `trailing` is the metadata of the answer."""

    body: bytes
    context: RequestContext
    deadline: float | None
    trailing: list[tuple[str, str]]


class _Method(NamedTuple):
    """`quiet`: only failed and slow calls are logged."""

    answer: Callable[[_Call], Awaitable[bytes]]
    quiet: bool = False


class MessageFormat:
    """The format of `ModelInfer`."""

    inline_body = inline_answer = True
    is_shared = False

    def __init__(self) -> None:
        self._form: AnswerForm

    def decode(self, loaded: LoadedModel, body: bytes) -> Rows:
        rows, self._form = loaded.codec.messages.decode(body)
        return rows

    def encode(self, loaded: LoadedModel, outputs: Outputs, prediction_id: str) -> Answer:
        codec = loaded.codec.messages
        return Answer(codec.encode(outputs, self._form, loaded.name, loaded.number, prediction_id), [])


class InferenceService:
    """The methods of the service."""

    def __init__(self, services: Services, predictor: Predictor) -> None:
        self._services = services
        self._predictor = predictor
        self.methods = {
            "ServerLive": _Method(self._server_live, quiet=True),
            "ServerReady": _Method(self._server_ready, quiet=True),
            "ServerMetadata": _Method(self._server_metadata),
            "ModelReady": _Method(self._model_ready, quiet=True),
            "ModelMetadata": _Method(self._model_metadata),
            "ModelInfer": _Method(self._model_infer, quiet=True),
        }

    async def _server_live(self, call: _Call) -> bytes:
        messages.parse(messages.ServerLiveRequest, call.body)
        return _encode(messages.ServerLiveResponse(live=True))

    async def _server_ready(self, call: _Call) -> bytes:
        messages.parse(messages.ServerReadyRequest, call.body)
        checks = await asyncio.to_thread(run_checks, self._services)
        ready = all(result == "ok" for result in checks.values())
        return _encode(messages.ServerReadyResponse(ready=ready))

    async def _server_metadata(self, call: _Call) -> bytes:
        messages.parse(messages.ServerMetadataRequest, call.body)
        return _encode(
            messages.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)
        )

    async def _model_ready(self, call: _Call) -> bytes:
        """Whether the version answers. Of a model that does not exist, too: false, as Triton does."""
        request = messages.parse(messages.ModelReadyRequest, call.body)
        _require(call, "any", request.name)
        try:
            await resolve_version(self._services, request.name, request.version or None)
        except (NotFound, NotReady, Unavailable):
            return _encode(messages.ModelReadyResponse(ready=False))
        return _encode(messages.ModelReadyResponse(ready=True))

    async def _model_metadata(self, call: _Call) -> bytes:
        request = messages.parse(messages.ModelMetadataRequest, call.body)
        _require(call, "any", request.name)
        model = await describe_model(self._services, request.name, request.version or None)
        answer = messages.ModelMetadataResponse(
            name=model.name, versions=model.versions, platform=model.platform
        )
        for described, tensors in ((answer.inputs, model.inputs), (answer.outputs, model.outputs)):
            for tensor in tensors:
                parameters = {k: {"string_param": v} for k, v in tensor.get("parameters", {}).items()}
                described.add(**(tensor | {"parameters": parameters}))
        return _encode(answer)

    async def _model_infer(self, call: _Call) -> bytes:
        name, version = messages.parse_target(call.body)
        _require(call, "predict", name)
        number = _version_number(version) if version else None
        target = await self._predictor.resolve(name, None, number, call.context.headers)
        prediction = await self._predictor.predict(target, MessageFormat(), call.body, call.deadline)
        call.trailing.append(("x-prediction-id", prediction.id))
        return prediction.answer.body


def _encode(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


def _require(call: _Call, scope: Any, model: str) -> None:
    """Raises `_Denied` unless the key has the scope, and access to the model."""
    if (reason := denial_reason(call.context.key, scope, model=model)) is not None:
        raise _Denied(403, reason)


def _version_number(version: str) -> int:
    if not (version.isascii() and version.isdigit() and len(version) <= 10 and version[0] != "0"):
        detail = f"version {version!r} is not an integer from 1"
        raise invalid_field("model_version", "not a version number", "an integer from 1", detail=detail)
    return int(version)


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Receives the calls of all methods: request id, key, errors, metrics and log line."""

    def __init__(self, service: InferenceService, keys: KeyVerifier) -> None:
        self._keys = keys
        self._methods = {SERVICE + name: method for name, method in service.methods.items()}

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call, before its message is received: without a key, none is."""
        path = handler_call_details.method
        if (method := self._methods.get(path)) is None:
            return _unimplemented(path)
        request = self._keys.authenticate(_headers(handler_call_details.invocation_metadata))
        if request.key is None:
            return _unauthenticated(path, request)
        request.route = path
        return grpc.unary_unary_rpc_method_handler(partial(_serve, path, method, request))


async def _serve(path: str, method: _Method, request: RequestContext, body: bytes, context: Any) -> bytes:
    start = time.perf_counter()
    call = _Call(body, request, _deadline(context), [("x-request-id", request.request_id)])
    try:
        answer = await method.answer(call)
        request.status, request.quiet = 200, method.quiet
        context.set_trailing_metadata(call.trailing)
        return answer
    except asyncio.CancelledError:  # the client left, or its deadline passed
        request.status = 499
        raise
    except Exception as error:
        return _fail(error, path, request, context)
    finally:
        record_request(request, METHOD, path, time.perf_counter() - start)


def _headers(metadata: Any) -> dict[bytes, bytes]:
    return combine_headers(
        (name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata
    )


def _deadline(context: Any) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _fail(error: Exception, path: str, request: RequestContext, context: Any) -> bytes:
    """Set the status of an error, and return the empty answer that goes with it."""
    if isinstance(error, TriviumError):
        problem = build_problem(
            status_of(error), str(error), path, request.request_id, getattr(error, "errors", ())
        )
        request.status, text = V2_STATUS.get(problem.status, problem.status), text_of(problem)
    elif isinstance(error, _Denied):
        request.status, text = error.status, str(error)
    else:
        request.status, text = 500, f"{INTERNAL_ERROR}: {request.request_id}"
        log.error("request.failed", request_id=request.request_id, path=path, exc_info=error)
    context.set_trailing_metadata([("x-request-id", request.request_id)])
    context.set_code(CODES.get(request.status, grpc.StatusCode.INTERNAL))
    context.set_details(_shorten(text))
    return b""


def _shorten(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[: MAX_TEXT_BYTES - 3].decode(errors="ignore") + "..."


def _unimplemented(method: str) -> Any:
    """Return a handler that reads no message, of a call with one message or a stream."""

    async def abort(_messages: Any, context: Any) -> None:
        telemetry.request_meter("unknown", METHOD, 501).observe(0.0)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented; {USAGE}")

    return grpc.stream_stream_rpc_method_handler(abort)


def _unauthenticated(path: str, request: RequestContext) -> Any:
    """Return a handler that reads no message, of a call without a valid key."""
    request.route, request.status = UNAUTHORIZED, 401

    async def abort(_messages: Any, context: Any) -> None:
        record_request(request, METHOD, path, 0.0)
        reason = unauthorized_reason(b"authorization" in request.headers)
        metadata = (("x-request-id", request.request_id),)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason, metadata)

    return grpc.stream_stream_rpc_method_handler(abort)


class GrpcServer:
    """The server of one web process."""

    def __init__(self, services: Services, predictor: Predictor) -> None:
        self._services = services
        self.predictor = predictor
        self._server: Any = None
        self._stopping: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen on `port` from now on. Raises `RuntimeError` if that is not possible."""
        service, settings = InferenceService(self._services, self.predictor), self._services.settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._server = grpc.aio.server(
            handlers=[_Handler(service, KeyVerifier(self._services.snapshot))],
            options=[
                ("grpc.max_receive_message_length", settings.max_body_mb * MB),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 1),  # the web processes of a server share the port
            ],
        )
        self.port = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        await self._server.start()

    def begin_stop(self) -> None:
        """Reject new calls; running ones have the grace period to end."""
        if self._server is not None and self._stopping is None:
            grace_s = self._services.settings.shutdown_grace_s
            self._stopping = asyncio.get_running_loop().create_task(self._server.stop(grace_s))

    async def stop(self) -> None:
        """Wait until the running calls have ended."""
        self.begin_stop()
        if self._stopping is not None:
            await self._stopping
