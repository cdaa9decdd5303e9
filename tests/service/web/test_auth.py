"""Access control of every route. The routes come from the application, so new ones are tested, too."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Message

from registry.vocabulary import SCOPES
from service.online.call_formats import DOORS
from service.web.auth import check_public
from service.web.deps import check_guarded, guard_of, require_scope
from service.web.docs_page import docs_routes
from service.web.health import health_routes
from tests.service.api import Api, check_problem, check_v2_error

pytestmark = pytest.mark.anyio

PUBLIC = {"/livez", "/readyz", "/healthz", "/docs", "/v1/models/{name}/docs", "/static/{path:path}"}
"""All paths that are served without a key, as in the API specification."""

SCOPES_BY_CALL = {
    "PUT /v1/artifacts/{sha256}": "publish batch",
    "GET /v1/models": "any",
    "GET /v1/models/{name}": "any",
    "DELETE /v1/models/{name}": "admin",
    "POST /v1/models/{name}/versions": "publish",
    "GET /v1/models/{name}/versions": "any",
    "GET /v1/models/{name}/versions/{version}": "any",
    "PATCH /v1/models/{name}/versions/{version}": "publish",
    "DELETE /v1/models/{name}/versions/{version}": "admin",
    "GET /v1/models/{name}/versions/{version}/artifact": "publish",
    "POST /v1/models/{name}/versions/{version}/verify": "publish",
    "PUT /v1/models/{name}/aliases/{alias}": "promote",
    "DELETE /v1/models/{name}/aliases/{alias}": "promote",
    "POST /v1/models/{name}/aliases/{alias}/rollback": "promote",
    "GET /v1/models/{name}/aliases/{alias}/history": "any",
    "PUT /v1/models/{name}/aliases/{alias}/traffic": "promote",
    "GET /v1/models/{name}/aliases/{alias}/traffic": "promote",
    "DELETE /v1/models/{name}/aliases/{alias}/traffic": "promote",
    "POST /v1/models/{name}/versions/{version}/exports": "publish",
    "GET /v1/models/{name}/versions/{version}/exports": "any",
    "GET /v1/models/{name}/versions/{version}/exports/{export_id}": "any",
    "GET /v1/edge/{name}": "edge",
    "HEAD /v1/edge/{name}": "edge",
    "GET /v1/edge/{name}/latest.tflite": "edge",
    "HEAD /v1/edge/{name}/latest.tflite": "edge",
    "GET /v1/blobs/{sha256}": "edge",
    "HEAD /v1/blobs/{sha256}": "edge",
    "GET /v1/models/{name}/prediction-log": "any",
    "PUT /v1/models/{name}/prediction-log": "admin",
    "DELETE /v1/models/{name}/prediction-log": "admin",
    "GET /v1/models/{name}/predictions": "predict",
    "POST /v1/feedback": "predict",
    "POST /v1/edge/{name}/reports": "edge",
    "GET /v1/edge/{name}/reports": "any",
    "GET /tuf/metadata/{file}": "edge",
    "GET /tuf/targets/{name}/{alias}/{file}": "edge",
    "POST /v1/jobs": "batch",
    "GET /v1/jobs": "batch",
    "GET /v1/jobs/{job_id}": "batch",
    "POST /v1/jobs/{job_id}/cancel": "batch",
    "POST /v1/jobs/{job_id}/resume": "batch",
    "GET /v1/jobs/{job_id}/events": "batch",
    "GET /v1/jobs/{job_id}/output": "batch",
    "HEAD /v1/jobs/{job_id}/output": "batch",
    "GET /v1/jobs/{job_id}/errors": "batch",
    "HEAD /v1/jobs/{job_id}/errors": "batch",
    "GET /v1/jobs/{job_id}/partitions/{number}/output": "batch",
    "HEAD /v1/jobs/{job_id}/partitions/{number}/output": "batch",
    "GET /openapi.json": "any",
    "GET /v1/models/{name}/openapi.json": "any",
    "POST /v1/schedules": "batch",
    "GET /v1/schedules": "batch",
    "GET /v1/schedules/{schedule}": "batch",
    "PATCH /v1/schedules/{schedule}": "batch",
    "DELETE /v1/schedules/{schedule}": "batch",
    "POST /v1/schedules/{schedule}/run": "batch",
    "GET /v1/schedules/{schedule}/runs": "batch",
    "POST /v1/keys": "admin",
    "GET /v1/keys": "admin",
    "DELETE /v1/keys/{id}": "admin",
    "POST /v1/keys/{id}/rotate": "admin",
    "GET /metrics": "any",
    "POST /v1/models/{name}/predict": "predict",
    "POST /v1/models/{name}/versions/{version}/predict": "predict",
    "POST /v1/models/{name}/invocations": "predict",
    "POST /v1/models/{name}/versions/{version}/invocations": "predict",
    "GET /v2": "any",
    "GET /v2/": "any",
    "GET /v2/health/live": "any",
    "GET /v2/health/ready": "any",
    "GET /v2/models/{name}": "any",
    "GET /v2/models/{name}/versions/{version}": "any",
    "GET /v2/models/{name}/ready": "any",
    "GET /v2/models/{name}/versions/{version}/ready": "any",
    "POST /v2/models/{name}/infer": "predict",
    "POST /v2/models/{name}/versions/{version}/infer": "predict",
}
"""Every guarded route and its scopes. A new route needs a line here, from the API specification."""

FILLED = defaultdict(lambda: "1") | {
    "name": "flag",
    "version": "1",
    "alias": "champion",
    "id": "0",
    "sha256": "0" * 64,
    "path": "docs.js",
}


def fill(template: str) -> str:
    return template.replace(":path", "").format_map(FILLED)


def detail_contains(problem: dict[str, Any], text: str) -> bool:
    """A response to HEAD has no detail."""
    return text in problem["detail"] or not problem["detail"]


class GuardedRoute(NamedTuple):
    method: str
    template: str
    scopes: frozenset[str]

    @property
    def path(self) -> str:
        return fill(self.template)

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


@pytest.fixture(scope="module")
def calls(api: Api) -> list[GuardedRoute]:
    """Every route that requires a key: those of FastAPI, and predictions."""
    routes = [(r, guard_of(r)) for r in api.fastapi.router.routes]
    guarded_routes = [
        GuardedRoute(method, route.path, frozenset(guard.scopes))
        for route, guard in routes
        if guard is not None
        for method in sorted(route.methods)
    ]
    doors = [GuardedRoute("POST", door.route, frozenset({"predict"})) for door in DOORS.values()]
    return guarded_routes + doors


def test_exactly_the_public_routes_have_no_guard(api: Api):
    assert {r.path for r in [*health_routes(api.services), *docs_routes()]} == PUBLIC
    assert [r.path for r in api.fastapi.router.routes if guard_of(r) is None] == []


def test_every_route_requires_the_scope_of_the_api_specification(calls: list[GuardedRoute]):
    assert {str(c): " ".join(sorted(c.scopes, reverse=True)) for c in calls} == SCOPES_BY_CALL


async def test_every_guarded_route_is_401_without_a_key(api: Api, calls: list[GuardedRoute]):
    for call in calls:
        problem = check_problem(await api.anonymous.request(call.method, call.path), 401)
        assert detail_contains(problem, "Authorization: Bearer"), str(call)


async def test_a_key_without_the_scope_is_denied(api: Api, calls: list[GuardedRoute]):
    for scope in (s for s in SCOPES if s != "admin"):
        async with api.with_key(await api.key(scope)) as client:
            for call in calls:
                if not call.scopes & {scope, "any"}:
                    problem = check_problem(await client.request(call.method, call.path), 403)
                    assert detail_contains(problem, "lacks the scope"), f"{scope}: {call}"


async def test_a_key_for_another_model_is_denied(api: Api, calls: list[GuardedRoute]):
    secret = await api.key(*(s for s in SCOPES), models=["another"])
    async with api.with_key(secret) as client:
        for call in (c for c in calls if "{name}" in c.template):
            problem = check_problem(await client.request(call.method, call.path), 403)
            assert detail_contains(problem, "not for the model flag"), str(call)


async def test_a_limited_admin_key_is_denied_registry_wide_routes(api: Api, calls: list[GuardedRoute]):
    async with api.with_key(await api.key("admin", models=["flag"])) as client:
        registry_wide = [c for c in calls if "admin" in c.scopes and "{name}" not in c.template]
        assert registry_wide
        for call in registry_wide:
            check_problem(await client.request(call.method, call.path), 403)


async def test_a_limited_key_sees_only_its_models_in_lists(api: Api):
    async with api.with_key(await api.key("predict", models=["flag", "mixed"])) as client:
        pages = [(await client.get("/v1/models", params={"page_size": 1})).json()]
        token = pages[0]["next_page_token"]
        pages.append((await client.get("/v1/models", params={"page_size": 1, "page_token": token})).json())
        assert [m["name"] for page in pages for m in page["items"]] == ["flag", "mixed"]
        assert pages[1]["next_page_token"] is None
        document = (await client.get("/openapi.json")).text
    assert "predict.flag" in document
    assert "forest" not in document


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer trv_",
        "Bearer trv__",
        "Bearer trv_x_y",
        "Bearer  \u00e9\u00ff",
        "Bearer " + "x" * 5000,
        "Basic {key}",
        "{key}",
        "Bearer {key}x",
        "Bearer {cut}",
        "Bearer {id_only}",
        "Bearer {upper}",
    ],
)
async def test_an_invalid_key_is_401(api: Api, authorization: str):
    key = api.admin
    text = authorization.format(key=key, cut=key[:-1], id_only=key[: key.rindex("_") + 1], upper=key.upper())
    headers = [(b"authorization", text.encode("latin-1"))]
    answer = await api.anonymous.get("/v1/models", headers=headers)
    check_problem(answer, 401)
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_last_of_two_authorization_headers_counts(api: Api):
    valid_header, invalid_header = (
        (b"authorization", f"Bearer {api.admin}".encode()),
        (b"authorization", b"Bearer trv_x_y"),
    )
    check_problem(await api.anonymous.get("/v1/models", headers=[valid_header, invalid_header]), 401)


async def test_a_revoked_rotated_or_expired_key_is_401(api: Api):
    created = (await api.client.post("/v1/keys", json={"name": "a", "scopes": ["predict"]})).json()
    async with api.with_key(created["key"]) as client:
        assert (await client.get("/v1/models")).status_code == 200
        renewed = (await api.client.post(f"/v1/keys/{created['id']}/rotate")).json()
        check_problem(await client.get("/v1/models"), 401)
    async with api.with_key(renewed["key"]) as client:
        assert (await client.get("/v1/models")).status_code == 200
        revoked = await api.client.delete(f"/v1/keys/{created['id']}")
        assert revoked.json()["revoked_at"] is not None
        check_problem(await client.get("/v1/models"), 401)
    check_problem(await api.client.post(f"/v1/keys/{created['id']}/rotate"), 404)
    async with api.with_key(await api.key("predict", expires_in=1e-6)) as client:
        check_problem(await client.get("/v1/models"), 401)


BYPASS_PATHS = [
    "/v1/models/",
    "//v1/models",
    "/v1//models",
    "/v1/models//flag",
    "/./v1/models",
    "/docs/../v1/models",
    "/static/../v1/models",
    "/static/..%2fv1/models",
    "/static/%2e%2e/v1/models",
    "/static/../../registry.db",
    "/static/..%5c..%5cregistry.db",
    "/static/%00",
    "/v1/models/flag%2Fversions/1/docs/../../..",
    "/v1/models/flag/docs/",
    "/v1/models/flag/versions/docs",
    "/V1/MODELS",
    "/v1/models%0a",
    "/v1/models;/docs",
    "/v1/models?/docs",
    "/v1/models%3f/docs",
    "/v1/models/flag%2Fpredict",
    "/v1/models/flag/predict/",
    "/v1/models/../models/flag/predict",
    "/livez/../v1/models",
    "/livez/",
    "/metrics/../livez",
    "/docs/",
    "/openapi.json/docs",
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "CONNECT", "TRACE", "PROPFIND"])
async def test_no_spelling_of_a_path_bypasses_the_guard(api: Api, method: str):
    """Without a key: 401, or a public response. The path goes to the application unchanged, because an HTTP
    client would normalize it."""
    for path in BYPASS_PATHS:
        status, body = await _raw(api, method, path)
        assert status in (401, 404, 405), f"{method} {path}"
        assert b"flag" not in body.replace(path.encode(), b"").replace(_decoded(path).encode(), b"")


async def test_other_methods_of_public_paths_require_a_key(api: Api):
    for path in sorted(PUBLIC):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            check_problem(await api.anonymous.request(method, fill(path)), 401)


async def test_public_paths_are_served_to_get_and_head(api: Api):
    for path in sorted(PUBLIC):
        filled = fill(path)
        assert (await api.anonymous.get(filled)).status_code == 200
        assert (await api.anonymous.head(filled)).status_code == 200


async def test_the_docs_shell_is_the_same_for_any_name(api: Api):
    pages = {(await api.anonymous.get(f"/v1/models/{n}/docs")).text for n in ("flag", "missing", "%00")}
    assert len(pages) == 1


async def test_websockets_are_closed(api: Api):
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        messages.append(message)

    await api.app({"type": "websocket", "path": "/livez", "headers": []}, receive, send)
    assert messages == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    "route",
    [
        APIRoute("/v1/open", lambda: None),
        Route("/v1/open", lambda request: None),
        Mount("/v1/open", routes=[]),
        APIRoute("/static/secret", lambda: None, dependencies=[require_scope("admin")]),
    ],
    ids=["no scope", "not a FastAPI route", "mount", "public and guarded"],
)
def test_an_application_with_an_unguarded_route_is_rejected(route: BaseRoute):
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, routes=[route])
    with pytest.raises(RuntimeError, match="must require a scope"):
        check_guarded(app)


def test_a_route_outside_fastapi_that_is_not_public_is_rejected():
    with pytest.raises(RuntimeError, match="not public"):
        check_public([*docs_routes(), Route("/v1/secrets", docs_routes)])


def test_a_route_that_accepts_unknown_query_parameters_is_rejected():
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/v1/lenient", dependencies=[require_scope("any")])
    def lenient(size: int = 1) -> None: ...

    with pytest.raises(RuntimeError, match="query model"):
        check_guarded(app)


async def test_every_guarded_route_rejects_unknown_query_parameters(api: Api, calls: list[GuardedRoute]):
    for call in calls:
        content = b"{}" if call.method in ("POST", "PUT", "PATCH") else None
        answer = await api.client.request(
            call.method,
            f"{call.path}?nonsense=1",
            content=content,
            headers={"Content-Type": "application/json"},
        )
        if call.path.startswith("/v2"):
            assert "nonsense" in check_v2_error(answer, 400), str(call)
            continue
        problem = check_problem(answer, 422)
        assert call.method == "HEAD" or "nonsense" in {e["field"] for e in problem["errors"]}, str(call)


async def _raw(api: Api, method: str, path: str) -> tuple[int, bytes]:
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    target, _, query = path.partition("?")
    await api.app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": _decoded(target),
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"trivium.test")],
            "server": ("trivium.test", 80),
            "client": ("127.0.0.1", 1),
            "state": {},
        },
        receive,
        send,
    )
    return messages[0]["status"], b"".join(m.get("body", b"") for m in messages[1:])


def _decoded(path: str) -> str:
    return unquote(path)  # as a server does
