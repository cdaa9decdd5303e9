"""Predictions under load: joint calls of real models, deadlines, full queues, and clients that disconnect."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.types import Message

from service import telemetry
from service.config import Settings
from service.online import batching
from service.runtime.call_cost import CallCost
from service.runtime.loading import LoadedModel
from tests.harness.load import post_request
from tests.harness.server import Server
from tests.service.api import Api, check_problem, running_app
from tests.service.estimators import KILL_VALUE, SLEEP_OFFSET

pytestmark = pytest.mark.anyio

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
SLOW_S = 0.4


def slow_row(seconds: float = SLOW_S) -> dict[str, float]:
    """A row that the isolated model `sleeper` answers after `seconds`."""
    return ROW | {"x0": SLEEP_OFFSET + seconds}


async def loaded(api: Api, name: str) -> LoadedModel:
    """Return the model, loaded if necessary."""
    assert (await api.predict(name, ROW)).status_code == 200
    return next(m for m in api.services.pool.loaded() if m.name == name)


def count(name: str, model: str) -> float:
    """Return the value of a metric of version 1."""
    telemetry.flush()
    return telemetry.REGISTRY.get_sample_value(name, {"model": model, "version": "1"}) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@asynccontextmanager
async def busy_sleeper(api: Api) -> AsyncIterator[LoadedModel]:
    """The isolated model `sleeper` while it runs a call that takes `SLOW_S`."""
    model = await loaded(api, "sleeper")
    before = count("trivium_joint_call_requests_count", "sleeper")
    slow = asyncio.create_task(api.predict("sleeper", slow_row()))
    await until(lambda: count("trivium_joint_call_requests_count", "sleeper") > before)
    yield model
    assert (await slow).json()["predictions"] == [{"value": SLEEP_OFFSET + SLOW_S}]


def table_request(api: Api, model: str, row: dict[str, float]) -> Any:
    content = f"{','.join(row)}\n{','.join(str(v) for v in row.values())}\n".encode()
    return api.client.post(
        f"/v1/models/{model}/predict", content=content, headers={"Content-Type": "text/csv"}
    )


def tensor_request(api: Api, model: str, row: dict[str, float]) -> Any:
    tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP64", "data": list(row.values())}
    return api.client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})


def scoring_request(api: Api, model: str, row: dict[str, float]) -> Any:
    return api.client.post(f"/v1/models/{model}/invocations", json={"dataframe_records": [row]})


def json_request(api: Api, model: str, row: dict[str, float]) -> Any:
    return api.predict(model, row)


REQUESTS = (json_request, table_request, tensor_request, scoring_request)


@pytest.mark.parametrize("model", ["sleeper", "price", "forest"])
async def test_a_burst_in_all_formats_equals_the_answers_one_by_one(api: Api, model: str):
    rng = random.Random(5)
    rows = [{name: rng.uniform(-3, 3) for name in ROW} for _ in range(10)]
    requests = [(request, row) for row in rows for request in REQUESTS]
    alone = [(await request(api, model, row)) for request, row in requests]
    answering = await loaded(api, model)
    cost = answering.cost
    answering.set_cost(CallCost(0.02, 0.001))  # joined, in threads
    try:
        before = count("trivium_joint_call_requests_count", model)
        burst = await asyncio.gather(*(request(api, model, row) for request, row in requests))
        calls = count("trivium_joint_call_requests_count", model) - before
    finally:
        answering.set_cost(cost)
    assert 0 < calls <= len(requests) / 2
    for one, many in zip(alone, burst, strict=True):
        assert (one.status_code, many.status_code) == (200, 200)
        assert without_id(one) == without_id(many)


def without_id(answer: httpx.Response) -> object:
    if answer.headers["content-type"] != "application/json":
        return answer.content
    return {key: value for key, value in answer.json().items() if key != "id"}


async def test_refused_rows_in_a_burst_are_named_by_their_own_index(api: Api):
    async with busy_sleeper(api):
        calls = [api.predict("sleeper", ROW) for _ in range(3)]
        bad = api.predict("sleeper", ROW, ROW | {"x0": None})
        answers = await asyncio.gather(*calls, bad)
    assert [a.status_code for a in answers] == [200, 200, 200, 422]
    assert check_problem(answers[3], 422)["errors"][0]["instance"] == 1


async def test_a_request_that_ends_the_models_process_fails_none_of_its_neighbours(api: Api):
    async with busy_sleeper(api):
        fatal = asyncio.create_task(api.predict("sleeper", ROW | {"x0": KILL_VALUE}))
        await asyncio.sleep(0)  # it is the first of the joint call
        answers = await asyncio.gather(*(api.predict("sleeper", ROW) for _ in range(3)))
    assert [a.status_code for a in answers] == [200] * 3, answers[0].text
    assert "ended during the call" in check_problem(await fatal, 503)["detail"]


@pytest.mark.parametrize(
    "value", ["0", "0.0", "-1", "x", "", "nan", "inf", "1,2", "1 s", ".5", "1e-999", "0x1"]
)
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(api: Api, value: str):
    headers = {"X-Request-Timeout": value}
    problem = check_problem(await api.predict("flag", ROW, headers=headers), 422)
    assert problem["errors"][0]["field"] == "X-Request-Timeout"
    assert "seconds, a number greater than 0" in problem["errors"][0]["expected"]
    check_problem(await api.client.post("/v2/models/flag/infer", json={}, headers=headers), 400)


@pytest.mark.parametrize("value", ["30", "20.5", "1e9"])
async def test_an_answer_within_the_timeout_is_returned(api: Api, value: str):
    for model in ("flag", "sleeper"):
        answer = await api.predict(model, ROW, headers={"X-Request-Timeout": value})
        assert answer.status_code == 200


async def test_a_running_call_past_the_timeout_is_504_and_goes_on(api: Api):
    model = await loaded(api, "sleeper")
    pid, missed = model.runtime.pid, count("trivium_missed_deadlines_total", "sleeper")  # type: ignore[attr-defined]
    answer = await api.predict("sleeper", slow_row(), headers={"X-Request-Timeout": "0.05"})
    assert "the deadline of the request" in check_problem(answer, 504)["detail"]
    assert (await api.predict("sleeper", ROW)).status_code == 200
    assert model.runtime.pid == pid  # type: ignore[attr-defined]
    assert count("trivium_missed_deadlines_total", "sleeper") == missed + 1


async def test_a_queued_call_past_its_timeout_never_runs(api: Api):
    async with busy_sleeper(api) as model:
        before = count("trivium_joint_call_requests_sum", "sleeper")
        check_problem(await api.predict("sleeper", ROW, headers={"X-Request-Timeout": "0.01"}), 504)
        assert count("trivium_queued_calls", "sleeper") == 0
    assert count("trivium_joint_call_requests_sum", "sleeper") == before
    assert model.joint_rows


async def test_a_timeout_above_the_servers_own_limit_is_cut_to_it(home: Any):
    async with running_app(Settings(home=home, predict_deadline_s=1.0)) as api:
        await loaded(api, "sleeper")
        answer = await api.predict("sleeper", slow_row(30), headers={"X-Request-Timeout": "3600"})
        assert "within 1 s" in check_problem(answer, 504)["detail"]


async def test_a_full_queue_is_503_with_retry_after_and_drains(api: Api):
    async with busy_sleeper(api) as model:
        cost = model.cost
        model.set_cost(CallCost(0.0, 1.0))
        calls = [asyncio.create_task(api.predict("sleeper", ROW)) for _ in range(batching.MIN_QUEUE)]
        await until(lambda: count("trivium_queued_calls", "sleeper") == batching.MIN_QUEUE)
        shed = count("trivium_shed_calls_total", "sleeper")
        refused = await api.predict("sleeper", ROW)
        model.set_cost(cost)
    problem = check_problem(refused, 503)
    assert refused.headers["retry-after"] == "1"
    assert "the model sleeper:1 is overloaded: 4 calls wait for it" in problem["detail"]
    assert count("trivium_shed_calls_total", "sleeper") == shed + 1
    assert {a.status_code for a in await asyncio.gather(*calls)} == {200}
    assert (await api.predict("sleeper", ROW)).status_code == 200


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_client_that_disconnects_leaves_the_queue(api: Api, coding: str):
    body = json.dumps({"instances": [ROW]}).encode()
    body = gzip.compress(body) if coding == "gzip" else body
    left, sent = asyncio.Event(), []

    async def receive() -> Message:
        if not sent:
            sent.append("request")
            return {"type": "http.request", "body": body}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(str(message.get("status")))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/models/sleeper/predict",
        "query_string": b"",
        "headers": [
            (b"authorization", f"Bearer {api.admin}".encode()),
            (b"content-encoding", coding.encode()),
        ],
    }
    async with busy_sleeper(api):
        before = count("trivium_joint_call_requests_sum", "sleeper")
        call = asyncio.ensure_future(api.app(scope, receive, send))
        await until(lambda: count("trivium_queued_calls", "sleeper") == 1)
        left.set()
        await call
        assert count("trivium_queued_calls", "sleeper") == 0
    assert sent == ["request", "400", "None"]
    assert count("trivium_joint_call_requests_sum", "sleeper") == before


def test_a_connection_that_is_closed_leaves_the_queue_of_a_server(server: Server) -> None:
    def request(row: dict[str, float]) -> socket.socket:
        body = json.dumps({"instances": [row]}).encode()
        path, media_type = "/v1/models/sleeper/predict", "application/json"
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(post_request(server.port, path, body, server.key, Content_Type=media_type))
        return connection

    def metric(name: str) -> float:
        text = server.call("GET", "/metrics")[1].decode()
        prefix = f'{name}{{model="sleeper",version="1"}} '
        return next((float(li.split()[-1]) for li in text.splitlines() if li.startswith(prefix)), 0.0)

    def wait(name: str, value: float) -> None:
        deadline = time.monotonic() + 30
        while metric(name) != value:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    with request(ROW) as first:
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")  # the model is loaded
    before = metric("trivium_joint_call_requests_sum")
    with request(slow_row(2.0)) as slow:
        wait("trivium_joint_call_requests_sum", before + 1)
        queued = request(ROW)
        wait("trivium_queued_calls", 1)
        queued.close()
        wait("trivium_queued_calls", 0)
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert metric("trivium_joint_call_requests_sum") == before + 1
