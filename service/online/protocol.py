"""uvicorn's HTTP protocol, with a short way for predict requests.

uvicorn starts a task when the headers of a request are complete. For a predict request, this protocol waits
for the body first, and asks `Lane` for the answer. If the lane has none, the parser's events are passed to
uvicorn as if they arrived now. It uses attributes of uvicorn's class that are not documented: the tests send
the same requests both ways.
"""

from __future__ import annotations

import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.online.lane import Lane, Request

_H2C = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n|\Z)", re.IGNORECASE)
MAX_HEADERS_BYTES = 64 * 1024
"""A request whose line and headers are larger is refused: the parser keeps them in memory without a limit."""


class PredictProtocol(HttpToolsProtocol):
    lane: Lane
    """Set by `with_lane`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request: Request | None = None  # while it waits for its body
        self._body = b""
        self._between_messages = True
        self._data = b""  # with which the current message began
        self._is_refused = False  # the lane has no answer to the current message
        self._answered = False  # since the timer for idle connections was started
        self._header_bytes = 0  # received since headers were complete or a part of a body arrived

    def data_received(self, data: bytes) -> None:
        if self._between_messages and self._is_ready() and (known := self.lane.recall(data)) is not None:
            if (answer := self.lane.answer(*known)) is not None:
                self._send(answer)
                self._note_answer()
                return
            self._is_refused = True
        if self._between_messages and b"h2c" in data:
            data = _without_upgrade(data)
        self._data = data if self._between_messages else b""
        self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes > MAX_HEADERS_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request's headers are larger than {MAX_HEADERS_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._between_messages = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._header_bytes = 0
        self._request, self._body = self._admit(), b""
        if self._request is None:
            self._start_application()

    def on_body(self, body: bytes) -> None:
        self._header_bytes = 0
        if self._request is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        self._between_messages, self._is_refused = True, False
        if self._request is None:
            super().on_message_complete()
            return
        answer = self.lane.answer(self._request, self._body)
        if answer is None:
            self._start_application()
            super().on_message_complete()
            return
        self.lane.remember(self._data, self._request)
        self._request, self._data = None, b""
        self._send(answer)
        self.on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self._answered:
            self._start_timer()
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        if self._request is not None:
            self._start_application()  # the request is answered before the connection closes
        super().shutdown()

    def _is_ready(self) -> bool:
        """Whether all earlier requests are answered, and the client reads its answers."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _admit(self) -> Request | None:
        """Return the request if the lane may answer it, and this connection is ready for the answer."""
        if (
            self._is_refused
            or self.parser.get_method() != b"POST"
            or not self._is_ready()
            or self.parser.get_http_version() != "1.1"
            or not self.parser.should_keep_alive()
        ):
            return None
        return self.lane.admit(self.url, self.headers)

    def _send(self, answer: bytes) -> None:
        """Send the status line, the server's own headers such as `date`, and the answer of the lane."""
        default_headers = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join([STATUS_LINE[200], *default_headers, answer]))

    def _note_answer(self) -> None:
        """Keep the connection of an answered request: a running timer is extended when it ends."""
        if self.timeout_keep_alive_task is None:
            self._start_timer()
        else:
            self._answered = True

    def _start_timer(self) -> None:
        self._answered = False
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _start_application(self) -> None:
        """Pass the headers and the body so far to uvicorn."""
        self._request, self._data = None, b""
        self._unset_keepalive_if_required()  # of an answer to a request that arrived together with this one
        super().on_headers_complete()
        if self._body:
            super().on_body(self._body)


def _without_upgrade(data: bytes) -> bytes:
    """Remove an offer to go on in HTTP/2 from the head that `data` begins with.

    Java's client makes it by default. A server may ignore it (RFC 9110, 7.8), but the parser ends the message
    at the head, and its body would be read as the next request.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _H2C.sub(b"", head) + end + rest


def with_lane(lane: Lane) -> type[PredictProtocol]:
    """Return the protocol class for this lane: uvicorn creates the protocols itself."""
    return type("PredictProtocol", (PredictProtocol,), {"lane": lane})
