"""Which calls run on the event loop, and what a request may contain at its bounds; without a server."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

from registry.errors import DeadlineExceeded, Invalid
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.online import hotpath
from service.online.call_formats import TableFormat, table_format
from service.online.negotiation import acceptable_type
from service.online.predictor import INLINE_BYTES, INLINE_ROWS, Predictor, Target
from service.runtime.call_cost import INLINE_S, CallCost
from service.runtime.loading import LoadedModel
from service.runtime.snapshot import SnapshotVersion
from service.web.request_context import combine_headers

JSON, CSV, ARROW = "application/json", "text/csv", "application/vnd.apache.arrow.stream"
SIGNATURE = Signature("regression", (Input("x", "float64"),), (Output("value", "float64", (-1,)),))
CHEAP_ROWS = 2


class Doubling:
    """Doubles its feature, and counts the rows."""

    bytes = answered = 0

    def run(self, rows: Rows) -> Outputs:
        assert rows.matrix is not None
        self.answered += len(rows)
        return {"value": 2 * rows.matrix[:, 0]}

    def close(self) -> None:
        pass


class OneModelPool:
    """A pool of one loaded model that counts the calls in progress. It is its own entry.

    The model is cheap for up to `CHEAP_ROWS` rows.
    """

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.runtime, self.in_use = Doubling(), 0
        self.model = LoadedModel("m", 3, "onnx", SIGNATURE, self.runtime)
        self.model.set_cost(CallCost(0.0, INLINE_S / (CHEAP_ROWS + 0.5)))
        self.model.threads = threads
        self.runtime.answered = 0

    def acquire_loaded(self, version_id: int) -> OneModelPool:
        self.in_use += 1
        return self

    def release(self, entry: OneModelPool) -> None:
        self.in_use -= 1


class CountingExecutor(ThreadPoolExecutor):
    def __init__(self) -> None:
        super().__init__(1)
        self.calls: list[str] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls.append(function.__name__)
        return super().submit(function, *args, **kwargs)


def predict(body: bytes, content_type: str = JSON, answer_type: str = JSON) -> tuple[int, list[str]]:
    """Return the number of rows that were answered, and the functions that ran in a thread."""
    with CountingExecutor() as executor:
        pool = OneModelPool(executor)
        predictor = Predictor(
            cast(Any, None), cast(Any, pool), executor, 1.0, cast(Any, None), cast(Any, None)
        )
        target = Target(SnapshotVersion(1, 3, "ready"))
        try:
            prediction = asyncio.run(predictor.predict(target, TableFormat(content_type, answer_type), body))
        finally:
            assert pool.in_use == 0, "the model is released"
    assert prediction.answer.body
    assert prediction.loaded == cast(Any, pool.model)
    return pool.runtime.answered, executor.calls


def instances(rows: int, size: int) -> bytes:
    """Return a body of exactly `size` bytes."""
    body = b'{"instances":[%s]' % b",".join([b'{"x":1}'] * rows)
    return body + b" " * (size - len(body) - 1) + b"}"


def test_a_small_body_for_a_cheap_model_runs_on_the_event_loop() -> None:
    assert predict(instances(1, INLINE_BYTES)) == (1, [])
    assert predict(instances(CHEAP_ROWS, 1000)) == (CHEAP_ROWS, [])


def test_larger_bodies_and_expensive_calls_run_in_a_thread() -> None:
    assert predict(instances(1, INLINE_BYTES + 1)) == (1, ["_decode"])
    assert predict(instances(CHEAP_ROWS + 1, 1000)) == (CHEAP_ROWS + 1, ["run_each"])
    rows = CHEAP_ROWS + 1
    assert predict(instances(rows, INLINE_BYTES + 1)) == (rows, ["_decode", "run_each"])
    assert predict(instances(INLINE_ROWS + 1, INLINE_BYTES)) == (INLINE_ROWS + 1, ["run_each", "encode"])


def test_tables_are_decoded_and_encoded_in_a_thread() -> None:
    assert predict(b"x\n1\n2\n", CSV) == (2, ["_decode"])
    assert predict(b"x\n1\n2\n3\n", CSV, CSV) == (3, ["_decode", "run_each", "encode"])
    assert predict(instances(1, 100), JSON, CSV) == (1, ["encode"])
    assert predict(instances(1, 100), JSON, ARROW) == (1, ["encode"])


@pytest.mark.parametrize(("body", "content_type"), [(b"{", JSON), (b"", CSV), (b"x", ARROW)])
def test_the_model_is_released_after_an_invalid_body(body: bytes, content_type: str) -> None:
    with pytest.raises(Invalid):
        predict(body, content_type)


class LoadingPool:
    """A pool whose model is never loaded."""

    def acquire_loaded(self, version_id: int) -> None:
        return None

    async def acquire(self, version_id: int) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (0.01, "by the deadline of the request: it is still being loaded"),
        (None, "within 0.02 s: it is still being loaded"),
        (3600.0, "within 0.02 s: it is still being loaded"),
    ],
)
def test_the_deadline_includes_the_load_of_the_model(seconds: float | None, message: str) -> None:
    no_use = cast(Any, None)
    predictor = Predictor(no_use, cast(Any, LoadingPool()), no_use, 0.02, no_use, no_use)
    target, body = Target(SnapshotVersion(1, 3, "ready")), instances(1, 100)
    deadline = None if seconds is None else time.monotonic() + seconds
    with pytest.raises(DeadlineExceeded, match=message):
        asyncio.run(predictor.predict(target, TableFormat(JSON, JSON), body, deadline))


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("1", True), ("9", True), ("9999999999", True), ("0", False), ("01", False), ("10000000000", False),
        ("", False), ("\u0661", False), ("1\n", False), ("-1", False),
    ],
)  # fmt: skip
def test_a_version_number_in_a_path_has_up_to_ten_digits(text: str, accepted: bool) -> None:
    assert (hotpath._NUMBER.fullmatch(text) is not None) == accepted


def test_only_one_alias_is_accepted_and_none_beside_a_number() -> None:
    assert hotpath._alias(b"alias=champion", numbered=False) == "champion"
    for query, numbered in (
        (b"alias=a&alias=b", False),
        (b"alias=a", True),
        (b"x=1", False),
        (b"alias=", False),
    ):
        with pytest.raises(Invalid):
            hotpath._alias(query, numbered)


@pytest.mark.parametrize(
    "chunks", [[b""], [b"abc"], [b"ab", b"c"], [b"", b"abc", b""], [b"a", b"b", b"c"]], ids=str
)
def test_a_body_is_read_to_its_last_chunk(chunks: list[bytes]) -> None:
    messages: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks) - 1}
        for number, chunk in enumerate(chunks)
    ]

    async def receive() -> Message:
        return messages.pop(0)

    assert asyncio.run(hotpath._read(receive)) == b"".join(chunks)
    assert messages == []


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_client_that_disconnects_during_its_body_is_an_error(before: int) -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"x", "more_body": True}] * before
    messages = [*messages, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    with pytest.raises(HTTPException, match="the client disconnected"):
        asyncio.run(hotpath._read(receive))


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("text/csv;q=0.001", CSV),
        ("text/csv;q=0", None),
        ("text/csv;q=-1", None),
        ("text/csv;q=nan", None),
        ("*/*;q=0, text/csv;q=0.1", CSV),
        ("text/*;q=0.9, text/csv;q=0.1, application/json;q=0.5", JSON),  # the most specific range decides
        ("text/*;q=0.1, text/csv;q=0.9, application/json;q=0.5", CSV),
        ("application/*;q=0, */*", CSV),
        ("text/csv, application/json", CSV),  # of equal quality, the first
        ("application/json, text/csv", JSON),
        (f"{ARROW}, application/json", ARROW),
        ("application/*", JSON),
        ("text/csv;q=0.5, text/csv;q=0.9, application/json;q=0.7", CSV),  # the best of equal ranges
        ("image/png", None),
        ("application", None),
    ],
)
def test_the_acceptable_type_of_the_highest_quality_is_chosen(accept: str, media_type: str | None) -> None:
    assert acceptable_type(accept.encode()) == media_type


def test_several_accept_headers_are_one_list() -> None:
    headers = [
        (b"accept", b"image/png"),
        (b"content-type", b" Text/CSV ; charset=utf-8"),
        (b"accept", b"text/csv"),
    ]
    assert table_format(combine_headers(headers)) is table_format(
        {b"content-type": b"text/csv", b"accept": b"text/csv"}
    )
    for name, status in ((b"content-type", 415), (b"accept", 406)):
        with pytest.raises(HTTPException) as caught:
            table_format({name: b"image/png"})
        assert caught.value.status_code == status
