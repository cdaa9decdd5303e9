"""uvicorn's HTTP protocol, with a short way for predict requests.

uvicorn starts a task when the headers of a request are complete. For a predict request, this protocol waits
for the body first, and asks `Lane` for the answer. If the lane has none, the parser's events are passed to
uvicorn as if they arrived now. It uses attributes of uvicorn's class that are not documented: the tests send
the same requests both ways.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.online.call_formats import Headers
from service.online.lane import Lane, Request


class PredictProtocol(HttpToolsProtocol):
    lane: Lane
    """Set by `with_lane`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request: Request | None = None  # while it waits for its body
        self._body = b""

    def on_headers_complete(self) -> None:
        self._request, self._body = self._admit(), b""
        if self._request is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._request is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if self._request is None:
            super().on_message_complete()
            return
        answer = self.lane.answer(self._request, self._body)
        if answer is None:
            self._start_application()
            super().on_message_complete()
            return
        self._request = None
        headers, body = answer
        self.transport.write(response_head([*self.server_state.default_headers, *headers]) + body)
        self.on_response_complete()

    def shutdown(self) -> None:
        if self._request is not None:
            self._start_application()  # the request is answered before the connection closes
        super().shutdown()

    def _admit(self) -> Request | None:
        """Return the request if the lane may answer it, and this connection is ready for the answer."""
        is_ready = (
            self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        )
        return self.lane.admit(self.url, self.headers) if is_ready else None

    def _start_application(self) -> None:
        """Pass the headers and the body so far to uvicorn."""
        self._request = None
        super().on_headers_complete()
        if self._body:
            super().on_body(self._body)


def with_lane(lane: Lane) -> type[PredictProtocol]:
    """Return the protocol class for this lane: uvicorn creates the protocols itself."""
    return type("PredictProtocol", (PredictProtocol,), {"lane": lane})


def response_head(headers: Headers) -> bytes:
    """Return the status line and the headers of a successful answer."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"%b%b\r\n" % (STATUS_LINE[200], b"".join(lines))
