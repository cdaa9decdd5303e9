"""Requests that the lane answers, and those it leaves to the application, over both HTTP protocols."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Sequence

import msgspec
import pytest

from service.online.predictor import INLINE_BYTES
from service.online.protocol import with_lane
from service.serve import web_config
from tests.harness.wire import Wire
from tests.service.api import Api

pytestmark = pytest.mark.anyio

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
BODY = msgspec.json.encode({"instances": [ROW]})
PREDICT = "/v1/models/forest/predict"


def application_wire(api: Api) -> Wire:
    return Wire(web_config(api.app, api.settings))


def lane_wire(api: Api) -> Wire:
    return Wire(web_config(api.app, api.settings, with_lane(api.lane)))


def request(path: str = PREDICT, body: bytes = BODY, method: str = "POST", **headers: str | None) -> bytes:
    """Return an HTTP/1.1 request; a header of None is left out."""
    fields: dict[str, str | None] = {"Host": "trivium.test", "Content-Type": "application/json"}
    fields |= {"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = [f"{k}: {v}\r\n" for k, v in fields.items() if v is not None]
    return f"{method} {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + body


def comparable(answer: bytes) -> bytes:
    """The answer without what differs between two calls: ids, which may differ in length."""
    masked = re.sub(rb"(pred|req)-[0-9a-f]+-[0-9a-f]+", b"ID", answer)
    return re.sub(rb"content-length: \d+", b"content-length: N", masked)


CSV = b"x0,x1,x2\r\n2,0,0\r\n"
V2_BODY = b'{"inputs":[{"name":"input","shape":[1,3],"datatype":"FP64","data":[2,0,0]}]}'
ANSWERED_AT_ONCE = {
    "an alias": request(),
    "an alias by name": request(PREDICT + "?alias=champion"),
    "a version": request("/v1/models/forest/versions/1/predict"),
    "invocations": request("/v1/models/forest/invocations"),
    "V2": request("/v2/models/forest/infer", V2_BODY),
    "several rows": request(body=msgspec.json.encode({"instances": [ROW, ROW]})),
    "its own request id": request(X_Request_ID="mine-1"),
}
LEFT_TO_THE_APPLICATION = {
    "CSV body": request(body=CSV, Content_Type="text/csv"),
    "CSV answer": request(Accept="text/csv"),
    "gzip": request(body=gzip.compress(BODY), Content_Encoding="gzip"),
    "a timeout": request(X_Request_Timeout="2"),
    "a wrong timeout": request(X_Request_Timeout="soon"),
    "an expectation": request(Expect="100-continue"),
    "connection: close": request(Connection="close"),
    "chunks": request(body=b"", Content_Length=None, Transfer_Encoding="chunked")
    + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    "HTTP/1.0": request().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a large body": request(body=BODY + b" " * INLINE_BYTES),
    "a wrong body": request(body=b'{"instances":[{"x0":"a"}]}'),
    "no JSON": request(body=b"{"),
    "an empty body": request(body=b""),
    "an unknown model": request("/v1/models/nobody/predict"),
    "an unknown version": request("/v1/models/forest/versions/99/predict"),
    "a wrong version": request("/v1/models/forest/versions/x/predict"),
    "an unknown alias": request(PREDICT + "?alias=nobody"),
    "an unknown parameter": request(PREDICT + "?x=1"),
    "escapes": request("/v1/models/f%6Frest/predict"),
    "a long path": request("/v1/models/" + "a" * 300 + "/predict"),
    "a media type": request(Content_Type="image/png"),
    "another method": request(method="GET", body=b""),
    "another path": request("/v1/models/forest/explain"),
    "an isolated model": request("/v1/models/ranks/predict"),
}


@pytest.mark.parametrize("requested", ANSWERED_AT_ONCE.values(), ids=list(ANSWERED_AT_ONCE))
async def test_the_lane_answers_as_the_application_does(api: Api, requested: bytes) -> None:
    authorized = _authorize(requested, api.admin)
    await api.client.post(PREDICT, content=BODY, headers={"Content-Type": "application/json"})  # loads it
    wire = lane_wire(api)
    answer = await wire.exchange(authorized)
    assert wire.protocol.cycle is None, "answered without a task"
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head
    assert comparable(answer) == comparable(await application_wire(api).exchange(authorized))


@pytest.mark.parametrize("requested", LEFT_TO_THE_APPLICATION.values(), ids=list(LEFT_TO_THE_APPLICATION))
async def test_what_the_lane_does_not_answer_is_answered_by_the_application(
    api: Api, requested: bytes
) -> None:
    authorized = _authorize(requested, api.admin)
    wire = lane_wire(api)
    answer = await wire.exchange(authorized)
    assert wire.protocol.cycle is not None
    assert comparable(answer) == comparable(await application_wire(api).exchange(authorized))


@pytest.mark.parametrize("scopes", [("edge",), ("predict",)], ids=["no scope", "another model"])
async def test_keys_without_access_are_denied_both_ways(api: Api, scopes: Sequence[str]) -> None:
    key = await api.key(*scopes, models=["ridge"])
    for key_text, status in ((key, b"403"), ("trv_0_0", b"401"), (None, b"401")):
        requested = request() if key_text is None else _authorize(request(), key_text)
        answer = await lane_wire(api).exchange(requested)
        assert answer.split()[1] == status
        assert comparable(answer) == comparable(await application_wire(api).exchange(requested))


async def test_a_request_in_pieces_is_answered_once_it_is_complete(api: Api) -> None:
    requested = _authorize(request(), api.admin)
    whole = await lane_wire(api).exchange(requested)
    for size in (1, 7, len(requested) - 5):
        pieces = [requested[i : i + size] for i in range(0, len(requested), size)]
        assert comparable(await lane_wire(api).exchange(*pieces)) == comparable(whole)


async def test_pipelined_requests_are_answered_in_their_order(api: Api) -> None:
    at_once, in_the_application = _authorize(request(), api.admin), request("/readyz", b"", "GET")
    for requests in (
        [at_once, at_once],
        [in_the_application, at_once],
        [at_once, in_the_application, at_once],
    ):
        answers = await lane_wire(api).exchange(b"".join(requests))
        expected = await application_wire(api).exchange(b"".join(requests))
        assert answers.count(b"HTTP/1.1 200 OK") == len(requests)
        assert comparable(answers) == comparable(expected)


async def test_a_server_that_shuts_down_answers_the_request_it_is_receiving(api: Api) -> None:
    wire, requested = lane_wire(api), _authorize(request(), api.admin)
    wire.protocol.data_received(requested[:-5])
    wire.protocol.shutdown()
    assert not wire.closed
    answer = await wire.exchange(requested[-5:])
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in answer
    assert wire.closed


async def test_a_client_that_does_not_read_its_answers_is_left_to_the_application(api: Api) -> None:
    wire, requested = lane_wire(api), _authorize(request(), api.admin)
    wire.protocol.pause_writing()
    wire.protocol.data_received(requested)
    await asyncio.sleep(0)
    assert wire.sent == b""
    wire.protocol.resume_writing()
    assert (await wire.exchange()).startswith(b"HTTP/1.1 200 OK\r\n")


def _authorize(requested: bytes, key: str) -> bytes:
    return requested.replace(b"\r\n", f"\r\nAuthorization: Bearer {key}\r\n".encode(), 1)
