"""A constant answer by Granian over its own interface (RSGI) and ASGI. It has the bytes of `BENCH_ANSWER`."""

import os
from pathlib import Path
from typing import Any

ANSWER = Path(os.environ["BENCH_ANSWER"]).read_bytes()
RSGI_HEADERS = [("content-type", "application/json")]
ASGI_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]


async def rsgi(scope: Any, protocol: Any) -> None:
    await protocol()  # the request's body
    protocol.response_bytes(200, RSGI_HEADERS, ANSWER)


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": ASGI_HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
