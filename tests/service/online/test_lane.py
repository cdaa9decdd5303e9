"""Requests that the lane answers, and those it leaves to the application, over both HTTP protocols."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest

from registry import keys
from registry.tables import now
from service.online import lane, predictor
from service.online.predictor import INLINE_BYTES
from service.online.protocol import MAX_HEADERS_BYTES, with_lane
from service.serve import web_config
from tests.harness.wire import Wire
from tests.service.api import Api
from tests.service.estimators import sign_classifier

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
    "a long Content-Length": request(Content_Length="0" * 5000 + str(len(BODY))),
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


@pytest.fixture(autouse=True)
async def _loaded(api: Api) -> None:
    """The lane does not wait for a model."""
    answer = await api.client.post(PREDICT, content=BODY, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("requested", ANSWERED_AT_ONCE.values(), ids=list(ANSWERED_AT_ONCE))
async def test_the_lane_answers_as_the_application_does(api: Api, requested: bytes) -> None:
    authorized = _authorize(requested, api.admin)
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


async def test_an_offer_to_go_on_in_http_2_is_ignored(api: Api) -> None:
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2_Settings": "AAEAAEAAAAIAAAAB"}
    plain, offered = (_authorize(request(**headers), api.admin) for headers in ({}, offer))
    wire = lane_wire(api)
    assert comparable(await wire.exchange(offered, offered)) == 2 * comparable(
        await lane_wire(api).exchange(plain)
    )


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


async def test_an_error_of_the_server_is_answered_by_the_application(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(predictor, "_run", fail)
    requested = _authorize(request(), api.admin)
    answer = await lane_wire(api).exchange(requested)
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert comparable(answer) == comparable(await application_wire(api).exchange(requested))


async def test_a_connection_is_not_idle_while_the_application_answers(api: Api) -> None:
    wire = lane_wire(api)
    wire.protocol.data_received(_authorize(request(), api.admin))
    assert wire.protocol.timeout_keep_alive_task is not None
    wire.protocol.data_received(_authorize(request(), api.admin) + request("/readyz", b"", "GET"))
    assert wire.protocol.timeout_keep_alive_task is None
    await wire.exchange()
    assert wire.protocol.timeout_keep_alive_task is not None


async def test_headers_without_an_end_are_refused(api: Api) -> None:
    for beginning, part in (
        (b"GET /", b"a" * 1000),
        (request().partition(b"\r\n")[0], b"\r\nx: " + b"a" * 1000),
    ):
        wire = lane_wire(api)
        wire.protocol.data_received(beginning)
        sent = 0
        while not wire.closed:
            wire.protocol.data_received(part)
            sent += len(part)
        assert MAX_HEADERS_BYTES - 2000 < sent < MAX_HEADERS_BYTES + 2000
        assert wire.sent.startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_body_larger_than_headers_may_be_is_answered(api: Api) -> None:
    requested = _authorize(request(body=BODY + b" " * 2 * MAX_HEADERS_BYTES), api.admin)
    pieces = [requested[i : i + 10_000] for i in range(0, len(requested), 10_000)]
    assert (await lane_wire(api).exchange(*pieces)).startswith(b"HTTP/1.1 200 OK\r\n")


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


async def test_a_head_that_was_answered_before_is_not_parsed_again(api: Api) -> None:
    requested = _authorize(request(), api.admin)
    first = await lane_wire(api).exchange(requested)
    wire = lane_wire(api)
    second = await wire.exchange(requested)
    assert wire.protocol.headers is None, "not parsed"
    assert comparable(second) == comparable(first)
    other_row = requested.replace(b'"x0":2.0', b'"x0":-12')
    third = (await wire.exchange(other_row)).removeprefix(second)
    assert wire.protocol.headers is None
    assert comparable(third) == comparable(await application_wire(api).exchange(other_row))


async def test_a_known_head_with_a_body_that_is_refused_is_answered_by_the_application(api: Api) -> None:
    requested = _authorize(request(), api.admin)
    await lane_wire(api).exchange(requested)
    refused = requested.replace(b'"x0":2.0', b'"x0":"a"')
    assert len(refused) == len(requested)
    wire = lane_wire(api)
    answer = await wire.exchange(refused)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert comparable(answer) == comparable(await application_wire(api).exchange(refused))
    assert (await wire.exchange(requested)).removeprefix(answer).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_known_heads_in_pieces_and_pipelined_are_answered(api: Api) -> None:
    requested = _authorize(request(), api.admin)
    expected = comparable(await lane_wire(api).exchange(requested))
    for chunks in ([requested[:-1], requested[-1:]], [requested[:9], requested[9:]]):
        assert comparable(await lane_wire(api).exchange(*chunks)) == expected
    wire = lane_wire(api)
    two = await wire.exchange(requested + requested[:20], requested[20:] + requested)
    assert comparable(two) == expected * 3


async def test_a_known_head_is_refused_once_its_key_is_revoked(api: Api) -> None:
    issued = await api.client.post("/v1/keys", json={"name": "short-lived", "scopes": ["predict"]})
    requested = _authorize(request(), issued.json()["key"])
    wire = lane_wire(api)
    for _ in range(2):
        assert (await wire.exchange(requested)).startswith(b"HTTP/1.1 200 OK\r\n")
        wire.sent = b""
    assert (await api.client.delete(f"/v1/keys/{issued.json()['id']}")).status_code == 200
    assert (await wire.exchange(requested)).startswith(b"HTTP/1.1 401 ")


async def test_a_known_head_is_refused_once_its_key_expires(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, requested = lane_wire(api), _authorize(request(), await api.key("predict", expires_in=3600))
    for _ in range(2):
        assert (await wire.exchange(requested)).startswith(b"HTTP/1.1 200 OK\r\n")
        wire.sent = b""
    monkeypatch.setattr(keys, "now", lambda: now() + timedelta(hours=2))
    assert (await wire.exchange(requested)).startswith(b"HTTP/1.1 401 ")


async def test_a_known_head_is_refused_once_its_key_expires_after_a_body_that_was_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, requested = lane_wire(api), _authorize(request(), await api.key("predict", expires_in=3600))
    assert (await wire.exchange(requested)).startswith(b"HTTP/1.1 200 OK\r\n")
    await wire.exchange(requested.replace(b'"x0":2.0', b'"x0":"a"'))
    wire.sent = b""
    monkeypatch.setattr(keys, "now", lambda: now() + timedelta(hours=2))
    assert (await wire.exchange(requested)).startswith(b"HTTP/1.1 401 ")


async def test_a_known_head_follows_its_alias(api: Api, unique_name: str) -> None:
    for version, swapped in ((1, False), (2, True)):
        copied = await api.publish(unique_name, sign_classifier(swapped))
        assert copied["version"] == version
    wire, requested = lane_wire(api), _authorize(request(f"/v1/models/{unique_name}/predict"), api.admin)
    for version, label in ((1, b"yes"), (2, b"no"), (1, b"yes")):
        await api.promote(unique_name, version)
        wire.sent = b""
        assert b'"label":"%b"' % label in await wire.exchange(requested)


async def test_the_number_of_known_heads_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "MAX_HEADS", 3)
    wire = lane_wire(api)
    for number in range(10):
        await wire.exchange(_authorize(request(X_Number=str(number)), api.admin))
        assert len(api.lane._known) <= max(3, number)
    await wire.exchange(_authorize(request(X_Request_ID="unique"), api.admin))
    assert not any(b"unique" in head for head in api.lane._known)


async def test_an_idle_connection_is_closed_after_its_last_answer(api: Api) -> None:
    wire, requested = lane_wire(api), _authorize(request(), api.admin)
    await wire.exchange(requested)
    wire.protocol.timeout_keep_alive_task.cancel()
    await wire.exchange(requested)  # known now: no timer is cancelled or started for it
    wire.protocol.timeout_keep_alive_handler()
    assert not wire.closed, "it answered since the timer was started"
    wire.protocol.timeout_keep_alive_task.cancel()
    wire.protocol.timeout_keep_alive_handler()
    assert wire.closed


def _authorize(requested: bytes, key: str) -> bytes:
    return requested.replace(b"\r\n", f"\r\nAuthorization: Bearer {key}\r\n".encode(), 1)
