"""The application in this process over ASGI, and the calls that most tests make."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Message

from service.app import App, create_app
from service.config import Settings
from service.prepare import prepare
from service.web.services import Services
from tests.harness.models import pickle_model
from tests.service.estimators import FittedModel
from tests.service.shared_template import SharedTemplate

PROBLEM = "application/problem+json"
BUILD_S = 60.0
LIFESPAN_S = 120.0


class Api:
    """`client` sends the admin key; `anonymous` sends no key."""

    def __init__(self, settings: Settings, app: App, fastapi: FastAPI) -> None:
        self.settings = settings
        self.app = app.asgi
        self.lane = app.lane
        self.fastapi = fastapi
        self.services: Services = app.services
        self.grpc = app.grpc
        self.admin = settings.admin_key_file.read_text().strip()
        self.anonymous = self._client()
        self.client = self.with_key(self.admin)

    def with_key(self, key: str) -> httpx.AsyncClient:
        return self._client(headers={"Authorization": f"Bearer {key}"})

    def _client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://trivium.test", timeout=60, **options)

    async def key(self, *scopes: str, models: list[str] | None = None, **options: Any) -> str:
        body = {"name": "test", "scopes": list(scopes), "models": models, **options}
        answer = await self.client.post("/v1/keys", json=body)
        assert answer.status_code == 201, answer.text
        secret: str = answer.json()["key"]
        return secret

    async def upload(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        answer = await self.client.put(f"/v1/artifacts/{digest}", content=content)
        assert answer.status_code in (200, 201), answer.text
        return digest

    async def publish(self, name: str, fitted: FittedModel, **fields: Any) -> dict[str, Any]:
        """Publish and wait for the build; return the version's record."""
        return await self.wait_for_build(await self.start_build(name, fitted, **fields))

    async def start_build(self, name: str, fitted: FittedModel, **fields: Any) -> str:
        """Publish; return the path of the version's record."""
        answer = await self.client.post(
            f"/v1/models/{name}/versions", json=await self.publication(fitted) | fields
        )
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    async def publication(self, fitted: FittedModel) -> dict[str, Any]:
        """Upload the artifacts; return the body that publishes them."""
        example = await self.upload(fitted.frame.to_csv(index=False).encode())
        return {
            "artifact": await self.upload(pickle_model(fitted.model)),
            "format": "sklearn-joblib",
            "example": {"artifact": example, "media_type": "text/csv"},
        }

    async def wait_for_build(self, location: str) -> dict[str, Any]:
        """Wait for the build of the record at `location`, and return the record."""
        deadline, pause = time.monotonic() + BUILD_S, 0.02
        while (record := (await self.client.get(location)).json())["state"] == "building":
            assert time.monotonic() < deadline, record
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, 0.2)  # many builds at once must not wait for their own readers
        finished: dict[str, Any] = record
        return finished

    async def promote(self, name: str, version: int, alias: str = "champion") -> httpx.Response:
        answer = await self.client.put(f"/v1/models/{name}/aliases/{alias}", json={"version": version})
        assert answer.status_code == 200, answer.text
        return answer

    async def predict(self, name: str, *instances: dict[str, Any], **options: Any) -> httpx.Response:
        return await self.client.post(
            f"/v1/models/{name}/predict", json={"instances": list(instances)}, **options
        )


def check_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check that `answer` is a well-formed problem document of `status`, and return it."""
    if answer.url.path.startswith("/v2"):
        return {"status": status, "detail": check_v2_error(answer, status), "errors": []}
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    if answer.request.method == "HEAD":  # a HEAD response comes without a body
        return {"status": status, "detail": "", "errors": []}
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "instance", "request_id"} <= set(problem)
    assert set(problem) <= {"type", "title", "status", "detail", "instance", "request_id", "errors"}
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    for fault in problem.get("errors", ()):
        assert set(fault) == {"instance", "field", "expected", "message"}
        assert fault["message"]
    return problem


def check_v2_error(answer: httpx.Response, status: int) -> str:
    """Check that `answer` is an error of the Open Inference Protocol, and return its text."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    assert body["error"]
    text: str = body["error"]
    return text


@asynccontextmanager
async def running_app(settings: Settings) -> AsyncIterator[Api]:
    """The application between its startup and its shutdown."""
    prepare(settings)
    app = create_app(settings, SharedTemplate())
    async with lifespan(app.asgi):
        api = Api(settings, app, await app.management.get())
        async with api.client, api.anonymous:
            yield api


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Run the application's startup and shutdown, which httpx does not."""
    receive_queue: asyncio.Queue[Message] = asyncio.Queue()
    send_queue: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive_queue.get, send_queue.put)
    )
    await receive_queue.put({"type": "lifespan.startup"})
    started = await _next_message(send_queue, task)
    assert started["type"] == "lifespan.startup.complete", started
    try:
        yield
    finally:
        await receive_queue.put({"type": "lifespan.shutdown"})
        stopped = await _next_message(send_queue, task)
        await task
        assert stopped["type"] == "lifespan.shutdown.complete", stopped


async def _next_message(send_queue: asyncio.Queue[Message], task: asyncio.Task[None]) -> Message:
    """Return the application's next message. Raises what the application raises if it ends instead."""
    receiving = asyncio.create_task(send_queue.get())
    await asyncio.wait({receiving, task}, timeout=LIFESPAN_S, return_when=asyncio.FIRST_COMPLETED)
    if receiving.done():
        return receiving.result()
    receiving.cancel()
    tasks = str(asyncio.all_tasks())  # before they are cancelled
    task.cancel()
    await asyncio.wait({task}, timeout=LIFESPAN_S)
    if task.done() and not task.cancelled():
        await task
    # Its cancellation must not propagate: it would end the task that all tests of this process run in.
    raise AssertionError(f"the application sent no message, or none within {LIFESPAN_S:g} s: {tasks}")
