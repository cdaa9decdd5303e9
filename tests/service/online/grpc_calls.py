"""Calls of the Open Inference Protocol over gRPC, for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
import grpc.aio

from service.runtime.codec import inference_messages as messages

SERVICE = "/inference.GRPCInferenceService/"
Metadata = Iterable[tuple[str, str]]


class Answer(NamedTuple):
    """The answer of a call, or its error: `message` is None then."""

    code: grpc.StatusCode
    text: str
    message: Any
    metadata: dict[str, str]


class Client:
    """A connection that sends `key` with each call."""

    def __init__(self, channel: grpc.aio.Channel, key: str | None) -> None:
        self._channel = channel
        self._metadata = [] if key is None else [("authorization", f"Bearer {key}")]

    async def call(
        self, method: str, request: Any = b"", *, metadata: Metadata = (), **options: Any
    ) -> Answer:
        """Send a message, or bytes, and return what the server answers."""
        body = request if isinstance(request, bytes) else request.SerializeToString()
        call = self._channel.unary_unary(SERVICE + method)(
            body, metadata=[*self._metadata, *metadata], **options
        )
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), error.details() or "", None, _texts(error.trailing_metadata()))
        message = getattr(messages, f"{method}Response").FromString(answer)
        return Answer(grpc.StatusCode.OK, "", message, _texts(await call.trailing_metadata()))

    async def stream(self, method: str) -> Answer:
        """Begin a stream without a message, and return its end."""
        call = self._channel.stream_stream(SERVICE + method)(metadata=self._metadata)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), error.details() or "", None, {})
        raise AssertionError("the stream was answered")


def _texts(metadata: Any) -> dict[str, str]:
    return {name: str(value) for name, value in metadata or ()}


@asynccontextmanager
async def connect(port: int, key: str | None) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Client(channel, key)


def infer_request(model: str, *tensors: dict[str, Any], **fields: Any) -> Any:
    return messages.ModelInferRequest(model_name=model, inputs=list(tensors), **fields)


def matrix(rows: list[list[float]], *, raw: bool = False) -> dict[str, Any]:
    """The tensor of all features."""
    values = [] if raw else [value for row in rows for value in row]
    contents = {"fp64_contents": values}
    return {"name": "input", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "contents": contents}


def values_of(answer: Any) -> dict[str, list[Any]]:
    """Decode the outputs of a `ModelInferResponse` as clients do: values by output name, nested as rows."""
    import numpy as np

    outputs = {}
    for index, tensor in enumerate(answer.outputs):
        if answer.raw_output_contents:
            values = _from_raw(tensor.datatype, answer.raw_output_contents[index])
        else:
            ((_, field),) = tensor.contents.ListFields()
            values = [v.decode() if isinstance(v, bytes) else v for v in field]
        outputs[tensor.name] = np.array(values, dtype=object).reshape(tuple(tensor.shape)).tolist()
    return outputs


def _from_raw(datatype: str, data: bytes) -> list[Any]:
    from tests.service.online.test_recorded_clients import from_binary

    return from_binary(datatype, data)
