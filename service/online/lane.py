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
from registry.keys import Key
from service.online.call_formats import CallFormat, Headers
from service.online.hotpath import ModelPath, answer_headers, parse_path, parse_query
from service.online.predictor import INLINE_BYTES, Prediction, Predictor, Target
from service.runtime.snapshot import Snapshot
from service.telemetry import RequestMeter, request_meter
from service.web.auth import SLOW_S, KeyVerifier, denial_reason, record_request, request_id_of
from service.web.body_limits import MAX_LENGTH_DIGITS
from service.web.request_context import RequestContext, combine_headers

MAX_URL_BYTES = 256
UNUSUAL_HEADERS = frozenset(
    {b"content-encoding", b"expect", b"transfer-encoding", b"upgrade", b"x-request-timeout"}
)
"""Requests with one of these go through the ASGI application."""
HEAD_END = b"\r\n\r\n"
MAX_HEAD_BYTES = 4096
MAX_HEADS = 1024
"""Heads remembered at a time."""


class Plan(NamedTuple):
    """What answers a request. It holds as long as the registry's revision is the same."""

    revision: int
    key: Key
    target: Target
    call_format: CallFormat | None  # None: each call needs a new one
    meter: RequestMeter


class Request:
    """A predict request without its body, or several whose heads are the same."""

    __slots__ = ("head", "headers", "length", "model_headers", "path", "plan", "target")

    def __init__(self, target: ModelPath, path: str, headers: Mapping[bytes, bytes], length: int) -> None:
        self.target, self.path, self.headers, self.length = target, path, headers, length
        self.plan: Plan | None = None
        self.model_headers: Headers | None = None  # of the last answer, which `head` has
        self.head = b""  # a template


class Lane:
    def __init__(self, keys: KeyVerifier, predictor: Predictor, snapshot: Snapshot) -> None:
        self.keys, self.predictor, self.snapshot = keys, predictor, snapshot
        self._known: dict[bytes, Request] = {}

    @staticmethod
    def admit(url: bytes, header_pairs: Sequence[tuple[bytes, bytes]]) -> Request | None:
        """Return the POST request if `answer` may be able to answer it once its body is complete."""
        if len(url) > MAX_URL_BYTES or (target := _find_target(url)) is None:
            return None
        headers = combine_headers(header_pairs)
        length = headers.get(b"content-length", b"")
        if not (length.isdigit() and len(length) <= MAX_LENGTH_DIGITS and int(length) <= INLINE_BYTES):
            return None
        if not UNUSUAL_HEADERS.isdisjoint(headers):
            return None
        return Request(target, url.partition(b"?")[0].decode("ascii"), headers, int(length))

    def remember(self, data: bytes, request: Request) -> None:
        """Remember the head of an answered request, if `data` is this request and nothing else.

        Clients repeat the head of their requests. Parsing it takes as long as the rest of a small prediction.
        """
        end = data.find(HEAD_END) + len(HEAD_END)
        if len(data) - end != request.length or end > MAX_HEAD_BYTES or b"x-request-id" in request.headers:
            return
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[data[:end]] = request

    def recall(self, data: bytes) -> tuple[Request, bytes] | None:
        """Return the request and the body if `data` is a whole request with a known head."""
        end = data.find(HEAD_END) + len(HEAD_END)
        request = self._known.get(data[:end])
        if request is None or len(data) - end != request.length:
            return None
        return request, data[end:]

    def answer(self, request: Request, body: bytes) -> bytes | None:
        """Return the headers and the body of the answer, or None: then nothing was counted or recorded."""
        start = time.perf_counter()
        plan = request.plan
        if plan is None or plan.revision != self.snapshot.state.revision or plan.key.expires_at is not None:
            plan = request.plan = self._plan(request)
        if plan is None:
            return None
        door = request.target.door
        try:
            call_format = plan.call_format or door.select_format(request.headers)
            prediction = self.predictor.predict_now(plan.target, call_format, body)
        except Exception:  # also an error of the server, which the application logs and answers with 500
            return None
        if prediction is None:
            return None
        request_id, seconds = request_id_of(request.headers), time.perf_counter() - start
        if seconds > SLOW_S:
            context = RequestContext(
                request_id, plan.key, request.headers, door.route, quiet=True, status=200
            )
            record_request(context, "POST", request.path, seconds)
        else:
            plan.meter.observe(seconds)
        if plan.call_format is None:
            head = _render([*answer_headers(prediction), (b"x-request-id", request_id.encode())])
        else:
            if request.model_headers is not prediction.loaded.headers:
                request.model_headers, request.head = prediction.loaded.headers, _head_template(prediction)
            length = len(prediction.answer.body)
            head = request.head % (length, prediction.id.encode(), request_id.encode())
        return head + prediction.answer.body

    def _plan(self, request: Request) -> Plan | None:
        door, model, alias, number = request.target
        revision = self.snapshot.state.revision
        key = self.keys.verify(request.headers.get(b"authorization", b""))
        if key is None or denial_reason(key, "predict", model=model) is not None:
            return None
        try:
            target = self.predictor.resolve_now(model, alias, number, request.headers)
            call_format = door.select_format(request.headers)
        except (TriviumError, HTTPException):
            return None
        if target.is_random:  # another attempt may select another version: it would miss failures
            return None
        meter = request_meter(door.route, "POST", 200)
        return Plan(revision, key, target, call_format if call_format.is_shared else None, meter)


def _render(headers: Headers) -> bytes:
    """Return the lines of the headers, and the empty line after them."""
    return b"%b\r\n" % b"".join([b"%b: %b\r\n" % header for header in headers])


def _head_template(prediction: Prediction) -> bytes:
    """Return the headers with places for the length of the body, the prediction's id and the request's id.

    The other values do not depend on the call, and cannot contain a percent sign.
    """
    variable = {b"content-length": b"%d", b"x-prediction-id": b"%b"}
    headers = [(name, variable.get(name, value)) for name, value in answer_headers(prediction)]
    return _render([*headers, (b"x-request-id", b"%b")])


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
