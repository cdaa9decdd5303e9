"""A proxy before a real server that loses answers when told: what a bad network looks like to a client."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

PASSED_ON = ("Authorization", "Content-Type", "Idempotency-Key")


class Lossy:
    """Hands each call of the method `faulty` to the next of `faults`: "lose" hangs up instead of passing the
    server's answer on, "busy" answers 409 without asking the server. With none left it only passes on."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faulty = "POST"
        self.faults: deque[str] = deque()


@contextmanager
def lossy(server_url: str) -> Iterator[Lossy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = proxy.faults.popleft() if self.command == proxy.faulty and proxy.faults else None
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            status, content = 409, b'{"detail": "still running"}'
            if fault != "busy":
                answer = httpx.request(self.command, server_url + self.path, content=body, headers=headers)
                status, content = answer.status_code, answer.content
            if fault == "lose":
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = pass_on

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
