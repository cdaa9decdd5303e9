"""Message channel between a process and its children: length-prefixed MessagePack over a socket pair.

The messages themselves are in `isolated_protocol.py` and in `service/builds/protocol.py`. Nothing here
unpickles. numpy is not imported: the server has children before it has loaded a model.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any

import msgspec

HEADER = struct.Struct("!Q")
MAX_MESSAGE_BYTES = 2 << 30
"""Longer messages are not read: a child cannot make the server allocate more memory than this."""


class ChannelBroken(Exception):
    """The peer ended or closed the channel, or sent something that is not a valid message."""


class MessageUnread(ChannelBroken):
    """The peer ended before it read everything that was sent: it has not acted on it."""


def send(channel: socket.socket, message: object, deadline: float | None = None) -> None:
    """Send one message. `deadline` is a `time.monotonic()` value.

    Raises `TimeoutError` when the peer does not read it by the deadline, and `MessageUnread` when the peer
    has ended.
    """
    body = msgspec.msgpack.encode(message)
    _set_timeout(channel, deadline)
    try:
        channel.sendall(HEADER.pack(len(body)) + body)
    except TimeoutError:
        raise
    except OSError as error:
        raise MessageUnread(str(error)) from error


def receive(channel: socket.socket, kind: Any, deadline: float | None = None) -> Any:
    """Return the next message, decoded as `kind`.

    Raises `TimeoutError` after `deadline`, `ChannelBroken` when the peer has ended or the message is not a
    `kind`, and `MessageUnread` when the peer ended without reading what was sent to it before.
    """
    (length,) = HEADER.unpack(_receive_exactly(channel, HEADER.size, deadline))
    if length > MAX_MESSAGE_BYTES:
        raise ChannelBroken(f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES} bytes")
    return decode(_receive_exactly(channel, length, deadline), kind)


def await_message(channel: socket.socket, deadline: float) -> None:
    """Wait until `receive` does not block: a message has arrived, or the peer has ended.

    Raises `TimeoutError` after `deadline`.
    """
    _set_timeout(channel, deadline)
    try:
        channel.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        raise
    except OSError as error:
        raise ChannelBroken(str(error)) from error


def decode(body: bytes | bytearray, kind: Any) -> Any:
    """Raises `ChannelBroken` when `body` is not a message of `kind`."""
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ChannelBroken(str(error)) from error


def _receive_exactly(channel: socket.socket, length: int, deadline: float | None) -> bytearray:
    body = bytearray(length)
    view, position = memoryview(body), 0
    while position < length:
        _set_timeout(channel, deadline)
        try:
            count = channel.recv_into(view[position:])
        except TimeoutError:
            raise
        except ConnectionResetError as error:  # raised for a socket pair when the peer left data unread
            raise MessageUnread(str(error)) from error
        except OSError as error:
            raise ChannelBroken(str(error)) from error
        if count == 0:
            raise ChannelBroken("the process ended")
        position += count
    return body


def _set_timeout(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        channel.settimeout(None)
        return
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    channel.settimeout(remaining_s)
