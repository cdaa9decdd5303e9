"""How this server and its children talk: length-prefixed MessagePack over a socket pair.

The messages and how they travel; `arrays.py` puts arrays into them. Nothing here unpickles, and nothing
imports numpy: the server has children before it has a model.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import msgspec

from registry.signature import Signature

HEADER = struct.Struct("!Q")
MOST_BYTES = 2 << 30
"""The largest message that is read: a child cannot make the server reserve more than that."""


class Broken(Exception):
    """The peer went away, or sent what is no message."""


class Unread(Broken):
    """The peer went away before it had read all that we sent: it has done nothing about it."""


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


def send(channel: socket.socket, message: object, deadline: float | None = None) -> None:
    """Send one message. `deadline` is a `time.monotonic()`.

    Raises `TimeoutError` when the peer does not take it in time, and `Unread` when it is gone.
    """
    body = msgspec.msgpack.encode(message)
    _until(channel, deadline)
    try:
        channel.sendall(HEADER.pack(len(body)) + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise Unread(str(error)) from error


def receive(channel: socket.socket, kind: Any, deadline: float | None = None) -> Any:
    """The next message, decoded as `kind`. Raises `TimeoutError` after `deadline`, and `Broken` when
    the peer is gone or what it sent is no `kind`; `Unread` when it left what we sent before."""
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


def _exactly(channel: socket.socket, length: int, deadline: float | None) -> bytearray:
    body = bytearray(length)
    view, at = memoryview(body), 0
    while at < length:
        _until(channel, deadline)
        try:
            got = channel.recv_into(view[at:])
        except TimeoutError:
            raise
        except ConnectionResetError as error:  # what a socket pair says when something lay there unread
            raise Unread(str(error)) from error
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
