"""The short way of a predict request: answered as soon as it is received, without ASGI and without a task.

It serves what needs nothing but the event loop: a valid key, a loaded and cheap model, a small body without
faults. `Lane` returns None for every other request, which then goes through the ASGI application from the
beginning: only that path reports errors, waits, and runs in threads. Both use the same
`KeyVerifier` and `Predictor`, and send the same headers (docs/adr/0040).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from starlette.exceptions import HTTPException

from registry.errors import TriviumError
from service.online.call_formats import Headers
from service.online.hotpath import ModelPath, answer_headers, parse_path, parse_query
from service.online.predictor import INLINE_BYTES, Predictor
from service.web.auth import KeyVerifier, denial_reason, record_request
from service.web.request_context import combine_headers

MAX_URL_BYTES = 256
UNUSUAL_HEADERS = frozenset(
    {b"content-encoding", b"expect", b"transfer-encoding", b"upgrade", b"x-request-timeout"}
)
"""Requests with one of these go through the ASGI application."""


class Request(NamedTuple):
    """A predict request whose body is not yet complete."""

    target: ModelPath
    path: str
    headers: Mapping[bytes, bytes]


class Lane:
    def __init__(self, keys: KeyVerifier, predictor: Predictor) -> None:
        self.keys, self.predictor = keys, predictor

    @staticmethod
    def admit(url: bytes, header_pairs: Sequence[tuple[bytes, bytes]]) -> Request | None:
        """Return the POST request if `answer` may be able to answer it once its body is complete."""
        if len(url) > MAX_URL_BYTES or (target := _find_target(url)) is None:
            return None
        headers = combine_headers(header_pairs)
        length = headers.get(b"content-length", b"")
        if not UNUSUAL_HEADERS.isdisjoint(headers) or not length.isdigit() or int(length) > INLINE_BYTES:
            return None
        return Request(target, url.partition(b"?")[0].decode("ascii"), headers)

    def answer(self, request: Request, body: bytes) -> tuple[Headers, bytes] | None:
        """Return the headers and the body of the answer, or None: then nothing was counted or recorded."""
        start = time.perf_counter()
        door, model, alias, number = request.target
        context = self.keys.authenticate(request.headers)
        if context.key is None or denial_reason(context.key, "predict", model=model) is not None:
            return None
        try:
            target = self.predictor.resolve_now(model, alias, number, request.headers)
            if target.is_random:  # another attempt may select another version: it would miss failures
                return None
            prediction = self.predictor.predict_now(target, door.select_format(request.headers), body)
        except (TriviumError, HTTPException):
            return None
        if prediction is None:
            return None
        context.route, context.status, context.quiet = door.route, 200, True
        record_request(context, "POST", request.path, time.perf_counter() - start)
        return [*answer_headers(prediction), context.id_header], prediction.answer.body


@lru_cache(maxsize=4096)
def _find_target(url: bytes) -> ModelPath | None:
    """Return the model and version that a request target without escapes names, otherwise None."""
    path, _, query = url.partition(b"?")
    if b"%" in path or b"#" in url or not path.isascii():
        return None
    try:
        parsed = parse_path(path.decode("ascii"))
        return None if parsed is None else parse_query(parsed, query)
    except TriviumError:
        return None
