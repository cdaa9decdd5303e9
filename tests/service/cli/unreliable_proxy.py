"""A proxy in front of a real server that causes the faults of a bad network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "Range", "If-Match")
RESPONSE_HEADERS = ("Content-Type", "Content-Range", "ETag", "Repr-Digest")


class UnreliableProxy:
    """The faults to cause. Each call of the method `faulty_method` takes the next of `faults`:

    "lose" forwards the call and closes the connection without a response, "cut" does so in the middle of the
    body, "busy" responds 409 and "away" 503 without forwarding. Without faults calls are forwarded. With
    `blocks_events`, event streams are not found. `ranges` are the requested ranges.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.faulty_method = "POST"
        self.faults: deque[str] = deque()
        self.blocks_events = False
        self.ranges: list[str] = []


@contextmanager
def unreliable_proxy(server_url: str) -> Iterator[UnreliableProxy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.faults.popleft() if self.command == proxy.faulty_method and proxy.faults else None
            headers = {name: self.headers[name] for name in REQUEST_HEADERS if name in self.headers}
            if "Range" in headers:
                proxy.ranges.append(headers["Range"])
            if fault == "busy":
                return self.respond(409, b'{"detail": "still running"}', {})
            if fault == "away":
                return self.respond(503, b"", {})
            if proxy.blocks_events and self.path.endswith("/events"):
                return self.respond(404, b"", {})
            response = httpx.request(self.command, server_url + self.path, content=body, headers=headers)
            if fault == "lose":
                self.close_connection = True
                return None
            headers = {name: response.headers[name] for name in RESPONSE_HEADERS if name in response.headers}
            if self.command == "HEAD":
                return self.respond(response.status_code, b"", headers, response.headers["Content-Length"])
            return self.respond(response.status_code, response.content, headers, cut=fault == "cut")

        do_GET = do_HEAD = do_POST = do_PUT = forward

        def respond(
            self, status: int, content: bytes, headers: dict[str, str], length: str = "", cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        proxy = UnreliableProxy(f"http://127.0.0.1:{http_server.server_port}")
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            http_server.shutdown()
            thread.join()
