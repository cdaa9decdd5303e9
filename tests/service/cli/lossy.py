"""A proxy before a real server that loses answers when told: what a bad network looks like to a client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PASSED_ON = ("Authorization", "Content-Type", "Idempotency-Key", "Range", "If-Match")
PASSED_BACK = ("Content-Type", "Content-Range", "ETag", "Repr-Digest")


class Lossy:
    """Hands each call of the method `faulty` to the next of `faults`: "lose" hangs up instead of passing the
    server's answer on, "cut" does so half way through its body, "busy" answers 409 and "away" 503 without
    asking the server. With none left it only passes on. Where `deaf`, it knows no event streams. `ranges`
    were asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faulty = "POST"
        self.faults: deque[str] = deque()
        self.deaf = False
        self.ranges: list[str] = []


@contextmanager
def lossy(server_url: str) -> Iterator[Lossy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.faults.popleft() if self.command == proxy.faulty and proxy.faults else None
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            if "Range" in headers:
                proxy.ranges.append(headers["Range"])
            if fault == "busy":
                return self.answer(409, b'{"detail": "still running"}', {})
            if fault == "away":
                return self.answer(503, b"", {})
            if proxy.deaf and self.path.endswith("/events"):
                return self.answer(404, b"", {})
            given = httpx.request(self.command, server_url + self.path, content=body, headers=headers)
            if fault == "lose":
                self.close_connection = True
                return None
            about = {name: given.headers[name] for name in PASSED_BACK if name in given.headers}
            if self.command == "HEAD":
                return self.answer(given.status_code, b"", about, given.headers["Content-Length"])
            return self.answer(given.status_code, given.content, about, cut=fault == "cut")

        do_GET = do_HEAD = do_POST = do_PUT = pass_on

        def answer(
            self, status: int, content: bytes, about: dict[str, str], length: str = "", cut: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in about.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.close_connection = self.close_connection or cut

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        proxy = Lossy(f"http://127.0.0.1:{listening.server_port}")
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield proxy
        finally:
            listening.shutdown()
            thread.join()
