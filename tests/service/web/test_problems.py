"""Every error response is a problem document with the request id and what to do."""

from __future__ import annotations

import asyncio
import json

import pytest
from sqlalchemy.exc import OperationalError
from starlette.types import Message

from registry import errors
from registry.errors import FieldError, TriviumError
from registry.names import NAME_PATTERN
from service.web.problems import STATUS, ProblemResponse, _field_error, build_problem, status_of
from tests.service.api import Api, check_problem

pytestmark = pytest.mark.anyio

PREDICT = "/v1/models/flag/predict"
VERSIONS = "/v1/models/flag/versions"
ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}


def descendants(kind: type[TriviumError]) -> list[type[TriviumError]]:
    return [kind, *(d for child in kind.__subclasses__() for d in descendants(child))]


def test_every_error_has_a_status():
    instances = {kind: kind.__new__(kind) for kind in descendants(TriviumError)}
    statuses = {kind: status_of(error) for kind, error in instances.items()}
    assert statuses[errors.InUse] == statuses[errors.NotReady] == 409
    assert statuses[errors.DigestMismatch] == 422
    assert statuses[errors.Unavailable] == 503
    assert statuses[errors.DeadlineExceeded] == 504
    assert set(statuses.values()) <= set(STATUS.values())


async def test_each_error_status_has_a_problem_document(api: Api):
    check_problem(await api.anonymous.get("/v1/models"), 401)
    check_problem(await api.client.get("/v1/nothing"), 404)
    check_problem(await api.client.get("/v1/models/missing"), 404)
    check_problem(await api.client.post("/v1/models/missing/predict", json={"instances": [ROW]}), 404)
    check_problem(await api.client.get("/static/nothing.js"), 404)
    check_problem(await api.client.patch("/v1/models"), 405)
    check_problem(await api.client.get(PREDICT), 405)
    check_problem(await api.client.delete("/v1/models/flag"), 409)
    async with api.with_key(await api.key("edge")) as client:
        check_problem(await client.post(PREDICT, json={"instances": [ROW]}), 403)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/models", {"GET"}),
        ("PUT", "/v1/models/flag/versions/1", {"GET", "PATCH", "DELETE"}),
        ("PUT", "/v1/models/flag", {"GET", "DELETE"}),
        ("PATCH", "/v1/keys", {"GET", "POST"}),
        ("POST", "/v1/models/flag/aliases/champion", {"PUT", "DELETE"}),
        ("HEAD", "/v1/models", {"GET"}),
        ("GET", PREDICT, {"POST"}),
        ("POST", "/docs", {"GET", "HEAD"}),
    ],
)
async def test_405_lists_every_method_of_the_path(api: Api, method: str, path: str, allowed: set[str]):
    answer = await api.client.request(method, path)
    assert answer.status_code == 405
    assert {m.strip() for m in answer.headers["allow"].split(",")} == allowed


async def test_every_response_has_the_request_id_of_the_client(api: Api):
    headers = {"X-Request-ID": "order-7/line.3"}
    answers = [
        await api.client.get("/v1/models", headers=headers),
        await api.anonymous.get("/v1/models", headers=headers),
        await api.anonymous.get("/livez", headers=headers),
        await api.client.get("/v1/nothing", headers=headers),
        await api.client.post(PREDICT, json={"instances": [ROW]}, headers=headers),
        await api.client.post(PREDICT, json={"instances": []}, headers=headers),
        await api.anonymous.get("/docs", headers=headers),
    ]
    assert [a.headers.get_list("x-request-id") for a in answers] == [["order-7/line.3"]] * len(answers)


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 129, "ä", 'say "hi"', "{}", "a,b"])
async def test_an_invalid_request_id_is_replaced(api: Api, request_id: str):
    headers = [(b"x-request-id", request_id.encode()), (b"authorization", f"Bearer {api.admin}".encode())]
    answer = await api.anonymous.get("/v1/nothing", headers=headers)
    new_id = check_problem(answer, 404)["request_id"]
    assert new_id != request_id
    assert new_id.startswith("req-")


async def test_two_requests_have_two_ids(api: Api):
    ids = {(await api.anonymous.get("/livez")).headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


async def test_an_unexpected_error_is_a_500_without_its_message(api: Api, capsys: pytest.CaptureFixture[str]):
    @api.fastapi.get("/v1/broken")
    def broken() -> None:
        raise RuntimeError("a secret in a traceback")

    try:
        answer = await api.client.get("/v1/broken", headers={"X-Request-ID": "mine"})
    finally:
        api.fastapi.router.routes.pop()
    build_problem = check_problem(answer, 500)
    assert build_problem["request_id"] == "mine"
    assert "secret" not in answer.text
    assert "a secret in a traceback" in capsys.readouterr().out  # it is in the log


async def test_a_database_that_does_not_answer_is_503(api: Api):
    @api.fastapi.get("/v1/broken")
    def broken() -> None:
        raise OperationalError("SELECT 1", {}, Exception("database is locked"))

    try:
        answer = await api.client.get("/v1/broken")
    finally:
        api.fastapi.router.routes.pop()
    assert "SELECT" not in check_problem(answer, 503)["detail"]
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(("status", "retry_after"), [(503, [b"1"]), (504, []), (422, [])])
async def test_a_503_in_front_of_fastapi_also_has_retry_after(status: int, retry_after: list[bytes]):
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("a problem response must not read the body")

    answer = ProblemResponse(build_problem(status, "not now", PREDICT, "req_1"))
    await answer({"type": "http", "method": "POST", "path": "/v1/jobs"}, receive, send)
    assert [value for name, value in messages[0]["headers"] if name == b"retry-after"] == retry_after


async def test_errors_of_a_body_name_their_fields(api: Api):
    build_problem = check_problem(
        await api.client.post(VERSIONS, json={"artifact": "x", "format": "pickle", "surprise": 1}), 422
    )
    assert {e["field"] for e in build_problem["errors"]} == {"artifact", "format", "surprise"}
    assert {e["instance"] for e in build_problem["errors"]} == {None}
    by_field = {e["field"]: e for e in build_problem["errors"]}
    assert "sklearn-joblib" in by_field["format"]["expected"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1",
        b"nonsense",
        b"\xff\xfe",
        b"\xff",
        b'"text"',
        b"7",
        b"null",
        b"[" * 5000,
        b'{"a":' * 5000,
    ],
    ids=lambda body: repr(body[:20]),
)
@pytest.mark.parametrize("path", [VERSIONS, "/v1/keys", PREDICT])
async def test_a_body_that_is_not_json_is_422(api: Api, path: str, body: bytes):
    build_problem = check_problem(
        await api.client.post(path, content=body, headers={"Content-Type": "application/json"}), 422
    )
    assert build_problem["errors"]


@pytest.mark.parametrize(
    ("path", "body", "key"),
    [
        ("/v1/keys", '{"name": "a", "scopes": ["predict"], "models": ["a"], "models": null}', "models"),
        ("/v1/models/flag/versions", '{"tags": {"team": "a", "team": "b"}}', "team"),
        ("/v1/jobs", '{"kind": "score", "input": {"uri": "a", "uri": "b"}}', "uri"),
        ("/v1/edge/flag/reports", '{"device": "a", "version": 1, "version": 2, "status": "ok"}', "version"),
    ],
)
async def test_a_repeated_key_of_a_body_is_rejected(api: Api, path: str, body: str, key: str):
    headers = {"Content-Type": "application/json"}
    problem = check_problem(await api.client.post(path, content=body, headers=headers), 422)
    assert problem["detail"] == f"the key '{key}' is repeated"
    assert [e["field"] for e in problem["errors"]] == [key]


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800", "a\\u0000b"])
async def test_text_that_the_database_cannot_store_is_422(api: Api, text: str):
    headers = {"Content-Type": "application/json"}
    for body in (
        '{"name": "%s", "scopes": ["predict"]}',
        '{"name": "a", "scopes": ["predict"], "models": ["%s"]}',
        '{"%s": "a", "scopes": ["predict"]}',
    ):
        check_problem(await api.client.post("/v1/keys", content=body % text, headers=headers), 422)
    for body in (
        '{"description": "%s"}',
        '{"tags": {"%s": "a"}}',
        '{"tags": {"a": "%s"}}',
        '{"tags": {"%s": 1}}',
    ):
        check_problem(await api.client.patch(f"{VERSIONS}/1", content=body % text, headers=headers), 422)
    promotion = b'{"version": 1, "reason": "' + text.encode() + b'"}'
    check_problem(
        await api.client.put("/v1/models/flag/aliases/other", content=promotion, headers=headers), 422
    )
    blob = await api.upload(b"no model")
    for field in ("target", "description"):
        publication = f'{{"artifact": "{blob}", "format": "onnx", "{field}": "{text}"}}'
        check_problem(await api.client.post(VERSIONS, content=publication, headers=headers), 422)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/%00",
        "/v1/models/%00/versions",
        "/v1/models/x%0a",
        "/v1/models/UPPER",
        "/v1/models/flag/aliases/%00/history",
        "/v1/models/flag/versions/0",
        "/v1/models/flag/versions/-1",
        "/v1/models/flag/versions/1.0",
        "/v1/models/flag/versions/99999999999999999999999",
        "/v1/models/flag/versions/" + "9" * 5000,
        "/v1/models?q=%00",
        "/v1/models?tag=a%00:b",
        "/v1/models?tag=nocolon",
        "/v1/models?page_size=0",
        "/v1/models?page_size=1001",
        "/v1/models?page_size=99999999999999999999",
        "/v1/models?page_token=%00",
        "/v1/models?page_token=bm9uc2Vuc2U=",
        "/v1/models?page_token=IgBhIg==",
        "/v1/models/flag/versions?page_token=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk=",
        "/v1/models/flag/aliases/champion/history?at=yesterday",
        "/v1/models/flag/aliases/champion/history?at=5",
        "/v1/models/flag/aliases/champion/history?at=0001-01-01T00:00:00%2B14:00",
        "/v1/models/flag/aliases/champion/history?at=9999-12-31T23:59:59-14:00",
    ],
)
async def test_malformed_paths_and_parameters_are_422_and_name_the_field(api: Api, path: str):
    assert check_problem(await api.client.get(path), 422)["errors"]


@pytest.mark.parametrize(
    ("path", "body", "field", "expected", "message"),
    [
        ("/v1/models?page_size=0", None, "page_size", "1 or more", "too small"),
        ("/v1/models?page_size=1001", None, "page_size", "1000 or less", "too large"),
        ("/v1/models?page_size=many", None, "page_size", "a whole number", "not a whole number"),
        ("/v1/models?page_size=" + "9" * 5000, None, "page_size", "a whole number", "not a whole number"),
        ("/v1/models?zz=1", None, "zz", "no such parameter", "leave it out"),
        ("/v1/models?q=" + "a" * 201, None, "q", "text of at most 200 characters", "too long"),
        ("/v1/models/UPPER", None, "name", NAME_PATTERN, "1 to 63 of a-z 0-9 _ . -"),
        ("/v1/models/flag/versions/x", None, "version", "an integer from 1", "not an integer from 1"),
        (
            "/v1/models/flag/aliases/champion/history?at=yesterday",
            None,
            "at",
            "a time such as 2026-03-03T12:00:00Z",
            "not a time",
        ),
        (VERSIONS, b"{", "body", "JSON", "not valid JSON"),
        (VERSIONS, b"[]", "body", "an object", "not an object"),
        (VERSIONS, b'{"format": "onnx"}', "artifact", "a value", "missing"),
        (
            VERSIONS,
            b'{"artifact": "x"}',
            "artifact",
            "^[0-9a-f]{64}$",
            "a sha256, 64 digits of 0-9 a-f",
        ),
        (
            VERSIONS,
            b'{"format": "pickle"}',
            "format",
            "'sklearn-joblib', 'onnx', 'keras' or 'tflite'",
            "send",
        ),
        (VERSIONS, b'{"zz": 1}', "zz", "no such field", "leave it out"),
        (VERSIONS, b'{"target": 7}', "target", "text", "not text"),
        (VERSIONS, b'{"tags": 7}', "tags", "an object", "not an object"),
        ("/v1/keys", b'{"scopes": []}', "scopes", "1 or more entries", "too few"),
        ("/v1/keys", b'{"scopes": "predict"}', "scopes", "a list", "not a list"),
        ("/v1/keys", b'{"name": ""}', "name", "text of 1 or more characters", "too short"),
        ("/v1/keys", b'{"expires_in": 0}', "expires_in", "more than 0", "too small"),
        ("/v1/keys", b'{"expires_in": 1e12}', "expires_in", "315360000 or less", "too large"),
        ("/v1/keys", b'{"expires_in": "soon"}', "expires_in", "a number", "not a number"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_field_error_states_what_was_expected(
    api: Api, path: str, body: bytes | None, field: str, expected: str, message: str
):
    headers = {"Content-Type": "application/json"}
    method = "GET" if body is None else "POST"
    answer = await api.client.request(method, path, content=body, headers=headers)
    fault = next(e for e in check_problem(answer, 422)["errors"] if e["field"] == field)
    assert fault["expected"] == expected
    assert message in fault["message"]
    assert "Input should" not in answer.text


async def test_a_disconnected_client_is_not_an_error(api: Api):
    async def receive_disconnect() -> dict[str, str]:
        return {"type": "http.disconnect"}

    messages: list[dict[str, object]] = []

    async def send(message) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PREDICT,
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {api.admin}".encode())],
    }
    await asyncio.wait_for(api.app(scope, receive_disconnect, send), 5)
    assert messages[0]["status"] == 400
    assert json.loads(messages[1]["body"])["status"] == 400


async def problem_messages(method: str) -> list[Message]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("a problem response must not read the body")

    answer = ProblemResponse(build_problem(404, "not here", "/v1/a b", "req_1"), [(b"allow", b"GET")])
    await answer({"type": "http", "method": method, "path": "/v1/jobs"}, receive, send)
    return messages


async def test_a_problem_in_front_of_fastapi_states_its_length():
    start, body = await problem_messages("GET")
    headers = dict(start["headers"])
    assert (start["status"], headers[b"content-type"], headers[b"allow"]) == (
        404,
        b"application/problem+json",
        b"GET",
    )
    assert int(headers[b"content-length"]) == len(body["body"])
    assert json.loads(body["body"]) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "not here",
        "instance": "/v1/a%20b",
        "request_id": "req_1",
    }
    head_start, head_body = await problem_messages("HEAD")
    assert (head_start, head_body["body"]) == (start, b"")


def test_text_that_utf8_cannot_encode_is_replaced_in_every_field():
    problem = build_problem(422, "\ud800", "/x", "r", [FieldError("m\udfff", 3, "f\ud800", "e\ud800")])
    (error,) = problem.errors
    assert problem.detail == "?"
    assert (error.message, error.field, error.expected, error.instance) == ("m?", "f?", "e?", 3)
    (error,) = build_problem(422, "d", "/x", "r", [FieldError("m")]).errors
    assert (error.message, error.field, error.expected, error.instance) == ("m", None, None, None)


@pytest.mark.parametrize(
    ("error", "message", "expected"),
    [
        ({"type": "greater_than_equal", "ctx": {"ge": 1.0}}, "too small; send 1 or more", "1 or more"),
        ({"type": "greater_than", "ctx": {"gt": 0.5}}, "too small; send more than 0.5", "more than 0.5"),
        ({"type": "less_than_equal", "ctx": {"le": 1000}}, "too large; send 1000 or less", "1000 or less"),
        ({"type": "less_than", "ctx": {"lt": 2.0}}, "too large; send less than 2", "less than 2"),
        (
            {"type": "too_long", "ctx": {"max_length": 16}},
            "too many; send at most 16 entries",
            "at most 16 entries",
        ),
    ],
    ids=lambda value: value.get("type") if isinstance(value, dict) else None,
)
def test_a_bound_is_named_with_the_direction_of_its_fault(
    error: dict[str, object], message: str, expected: str
):
    fault = _field_error({"loc": ("body", "x"), "msg": "pydantic's"} | error, {"x": 7})
    assert (fault.message, fault.field, fault.expected) == (message, "x", expected)


async def test_the_detail_names_the_first_three_fields(api: Api):
    bodies = [{"artifact": "0" * 64, "format": "onnx"} | dict.fromkeys("abcd"[:n], 1) for n in (1, 3, 4)]
    details = [check_problem(await api.client.post(VERSIONS, json=b), 422)["detail"] for b in bodies]
    assert [d.count("no such field") for d in details] == [1, 3, 3]
