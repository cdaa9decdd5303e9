"""How this server and its children talk: length-prefixed MessagePack over a socket pair.

Numbers travel as their raw bytes with dtype and shape, strings as lists. Nothing here unpickles, and
what comes back from a child is checked before it is believed: a child runs a model of somebody else's.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import msgspec
import numpy as np

from registry.rows import Array, Outputs, Rows
from registry.signature import Signature

HEADER = struct.Struct("!Q")
MOST_BYTES = 2 << 30
"""The largest message that is read: a child cannot make the server reserve more than that."""


class Broken(Exception):
    """The peer went away, or sent what is no message."""


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One array: raw little-endian bytes for numbers, a flat list for strings (None = missing)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[str | None]


class Load(msgspec.Struct, frozen=True, tag=True):
    """To a child, first: the model it is for."""

    artifact: str
    format: str
    signature: Signature
    memory_mb: int


class Call(msgspec.Struct, frozen=True, tag=True):
    """To a child: answer these rows. One of the two is set, as in `Rows`."""

    matrix: Tensor | None = None
    columns: tuple[Tensor, ...] | None = None


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """From a child: the model is in memory."""


class Answer(msgspec.Struct, frozen=True, tag=True):
    outputs: dict[str, Tensor]


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """The model does not take these rows; `message` is the model's own."""

    message: str


class Failure(msgspec.Struct, frozen=True, tag=True):
    """Loading or answering went wrong in a way that is not the rows' fault."""

    message: str


FromChild = Loaded | Answer | Refusal | Failure
_PLAIN = {"float64": "<f8", "float32": "<f4", "int64": "<i8", "bool": "|u1"}


def send(channel: socket.socket, message: object, deadline: float | None = None) -> None:
    """Send one message. `deadline` is a `time.monotonic()`.

    Raises `TimeoutError` when the peer does not take it in time, and `Broken` when it is gone.
    """
    body = msgspec.msgpack.encode(message)
    _until(channel, deadline)
    try:
        channel.sendall(HEADER.pack(len(body)) + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise Broken(str(error)) from error


def receive(channel: socket.socket, kind: Any, deadline: float | None = None) -> Any:
    """The next message, decoded as `kind`. Raises `TimeoutError` after `deadline`, and `Broken` when
    the peer is gone or what it sent is no `kind`."""
    (length,) = HEADER.unpack(_exactly(channel, HEADER.size, deadline))
    if length > MOST_BYTES:
        raise Broken(f"a message of {length} bytes")
    return decode(_exactly(channel, length, deadline), kind)


def await_message(channel: socket.socket, deadline: float) -> None:
    """Return when there is something to `receive`, be it the end. Raises `TimeoutError` after `deadline`."""
    _until(channel, deadline)
    try:
        channel.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        raise
    except OSError as error:
        raise Broken(str(error)) from error


def decode(body: bytes | bytearray, kind: Any) -> Any:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise Broken(str(error)) from error


def pack(array: Array) -> Tensor:
    """Raises `TypeError` for a dtype that no signature has."""
    if array.dtype == object or array.dtype.kind in "UT":
        return Tensor("string", array.shape, [None if v is None else str(v) for v in array.ravel().tolist()])
    name = array.dtype.name
    if name not in _PLAIN:
        raise TypeError(f"an array of {array.dtype} cannot be sent")
    plain = np.ascontiguousarray(array)
    return Tensor(name, array.shape, plain.astype(_PLAIN[name], copy=False).tobytes())


def unpack(tensor: Tensor) -> Array:
    """The array, writable. Raises `Broken` when dtype, shape and bytes do not fit each other."""
    size = int(np.prod(tensor.shape, dtype=object)) if all(d >= 0 for d in tensor.shape) else -1
    if tensor.dtype == "string":
        if not isinstance(tensor.data, list) or len(tensor.data) != size:
            raise Broken("strings that do not fill their shape")
        strings = np.empty(size, dtype=object)
        strings[:] = tensor.data
        return strings.reshape(tensor.shape)
    plain = _PLAIN.get(tensor.dtype)
    if plain is None or not isinstance(tensor.data, bytes):
        raise Broken(f"an array of {tensor.dtype!r}")
    if len(tensor.data) != size * np.dtype(plain).itemsize:
        raise Broken(f"{len(tensor.data)} bytes do not fill {tensor.shape} of {tensor.dtype}")
    numbers = np.frombuffer(tensor.data, dtype=plain).reshape(tensor.shape)
    return numbers != 0 if tensor.dtype == "bool" else numbers.astype(tensor.dtype)


def pack_rows(rows: Rows) -> Call:
    if rows.matrix is not None:
        return Call(matrix=pack(rows.matrix))
    assert rows.columns is not None
    return Call(columns=tuple(pack(column) for column in rows.columns))


def unpack_rows(call: Call) -> Rows:
    if call.matrix is not None:
        return Rows(matrix=unpack(call.matrix))
    return Rows(columns=tuple(unpack(column) for column in call.columns or ()))


def unpack_outputs(answer: Answer, signature: Signature, rows: int) -> Outputs:
    """The answer's arrays in the signature's order. Raises `Broken` when they are not what the signature
    promises: names, dtypes, dimensions, one entry for each of the `rows`."""
    if answer.outputs.keys() != {output.name for output in signature.outputs}:
        raise Broken(f"outputs {sorted(answer.outputs)} that the signature does not have")
    outputs: Outputs = {}
    for promised in signature.outputs:
        tensor = answer.outputs[promised.name]
        if tensor.dtype != promised.dtype or tensor.shape != (rows, *promised.shape[1:]):
            raise Broken(
                f"output {promised.name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"promised was {promised.dtype} {[rows, *promised.shape[1:]]}"
            )
        outputs[promised.name] = unpack(tensor)
    return outputs


def _exactly(channel: socket.socket, length: int, deadline: float | None) -> bytearray:
    body = bytearray(length)
    view, at = memoryview(body), 0
    while at < length:
        _until(channel, deadline)
        try:
            got = channel.recv_into(view[at:])
        except TimeoutError:
            raise
        except OSError as error:
            raise Broken(str(error)) from error
        if got == 0:
            raise Broken("the process ended")
        at += got
    return body


def _until(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        channel.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    channel.settimeout(left)
