"""Predict calls of aliases with traffic: splits, canaries that go back, and shadows."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from registry import traffic
from registry.traffic import NewTraffic
from service.online import predictor, shadow
from service.online.canary import MIN_CALLS, Canaries
from service.online.predictor import Predictor
from service.online.traffic_split import select_version
from service.runtime.pool import Pool
from tests.service.api import Api, check_problem
from tests.service.model_rows import copy_version
from tests.service.online.grpc_calls import connect, infer_request, matrix

pytestmark = pytest.mark.anyio
ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
WAIT_S = 20.0


@pytest.fixture
async def model(api: Api, unique_name: str) -> str:
    """A model with two versions of opposite answers: 1, the champion, predicts `yes` for `ROW`."""
    for number in (1, 2):
        copy_version(api.settings.home, "flag", unique_name, number=number)
    await api.promote(unique_name, 1)
    return unique_name


async def add_version(api: Api, model: str, source: str, **changes: Any) -> int:
    copy_version(api.settings.home, source, model, **changes)
    await asyncio.to_thread(api.services.snapshot.refresh)
    return max(api.services.snapshot.state.models[model].versions)


async def put(api: Api, model: str, **body: Any) -> dict[str, Any]:
    answer = await api.client.put(f"/v1/models/{model}/aliases/champion/traffic", json=body)
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


async def get(api: Api, model: str) -> dict[str, Any]:
    record: dict[str, Any] = (await api.client.get(f"/v1/models/{model}/aliases/champion/traffic")).json()
    return record


def version_of(answer: httpx.Response) -> int:
    """The version that answered, which the label confirms."""
    assert answer.status_code == 200, answer.text
    label = answer.json()["predictions"][0]["label"]
    return {"yes": 1, "no": 2}[label]


async def test_calls_are_split_by_weight(api: Api, model: str) -> None:
    await put(api, model, weights={"1": 60, "2": 40})
    answers = [await api.predict(model, ROW) for _ in range(200)]
    numbers = [version_of(answer) for answer in answers]
    assert 40 < numbers.count(2) < 120  # 80 expected; outside with a probability below 1e-8
    assert [int(answer.headers["x-model-version"]) for answer in answers] == numbers
    await put(api, model, weights={"1": 0, "2": 100})
    assert {version_of(await api.predict(model, ROW)) for _ in range(5)} == {2}
    await api.client.delete(f"/v1/models/{model}/aliases/champion/traffic")
    assert {version_of(await api.predict(model, ROW)) for _ in range(5)} == {1}


async def test_a_value_of_the_sticky_header_gets_one_version_at_every_door(api: Api, model: str) -> None:
    assert api.grpc is not None
    await put(api, model, weights={"1": 50, "2": 50}, sticky_header="X-User")
    split = api.services.snapshot.state.traffic[model, "champion"]
    tensor = {"name": "input", "shape": [1, 3], "datatype": "FP64", "data": list(ROW.values())}
    doors: dict[str, dict[str, Any]] = {
        f"/v1/models/{model}/predict": {"instances": [ROW]},
        f"/v1/models/{model}/predict?alias=champion": {"instances": [ROW]},
        f"/v1/models/{model}/invocations": {"instances": [ROW]},
        f"/v2/models/{model}/infer": {"inputs": [tensor]},
    }
    users: dict[int, str] = {}  # one of each version
    for user in map(str, range(1000)):
        number, is_random = select_version(split, {b"x-user": user.encode()})
        assert not is_random
        users[number] = user
    assert sorted(users) == [1, 2]
    for number, user in users.items():
        for path, body in doors.items():
            answer = await api.client.post(path, json=body, headers={"X-User": user})
            assert answer.headers["x-model-version"] == str(number), answer.text
        async with connect(api.grpc.port, api.admin) as client:
            message = infer_request(model, matrix([list(ROW.values())]))
            reply = await client.call("ModelInfer", message, metadata=[("x-user", user)])
            assert reply.message.model_version == str(number)


async def test_a_call_by_number_is_never_split(api: Api, model: str) -> None:
    await put(api, model, weights={"1": 0, "2": 100})
    paths = [f"/v1/models/{model}/versions/1/predict", f"/v1/models/{model}/versions/1/invocations"]
    for path in paths:
        answer = await api.client.post(path, json={"instances": [ROW]})
        assert answer.headers["x-model-version"] == "1", answer.text


async def becomes_withdrawn(api: Api, model: str) -> dict[str, Any]:
    """The traffic, once version 2 has no weight. Versions are withdrawn in a thread."""
    deadline = time.monotonic() + WAIT_S
    while (record := await get(api, model))["weights"]["2"]:
        assert time.monotonic() < deadline, record
        await asyncio.sleep(0.01)
    return record


async def test_a_canary_that_refuses_what_the_version_accepts_goes_back(api: Api, unique_name: str) -> None:
    copy_version(api.settings.home, "flag", unique_name)
    await add_version(api, unique_name, "mixed")
    await api.promote(unique_name, 1)
    await put(api, unique_name, weights={"1": 0, "2": 100}, bounds={"error_rate": 0.02})
    for _ in range(MIN_CALLS):  # both versions refuse these
        check_problem(await api.predict(unique_name, {"x0": "a word"}), 422)
    for _ in range(MIN_CALLS - 1):
        check_problem(await api.predict(unique_name, ROW), 422)
    assert (await get(api, unique_name))["weights"] == {"1": 0, "2": 100}
    check_problem(await api.predict(unique_name, ROW), 422)
    record = await becomes_withdrawn(api, unique_name)
    assert (record["weights"], record["by"]) == ({"1": 100, "2": 0}, "trivium")
    assert "version 2 failed 20 of 20 calls (100.0%, the bound is 0.02): Invalid: " in record["reason"]
    assert (await api.predict(unique_name, ROW)).status_code == 200
    history = (await api.client.get(f"/v1/models/{unique_name}/aliases/champion/history")).json()["items"]
    assert (history[0]["by"], history[0]["reason"]) == ("trivium", record["reason"])
    metric = f'trivium_withdrawn_canaries_total{{alias="champion",bound="error_rate",model="{unique_name}"'
    assert metric in (await api.client.get("/metrics")).text


async def test_a_canary_that_cannot_be_loaded_goes_back(api: Api, model: str) -> None:
    number = await add_version(api, model, "flag", servable="0" * 64, number=1)
    assert number == 3
    problem = await api.client.put(
        f"/v1/models/{model}/aliases/champion/traffic", json={"weights": {"1": 90, "3": 10}}
    )
    assert "0" * 64 in check_problem(problem, 404)["detail"]
    with api.services.sessions.begin() as session:  # its file is lost after it was put into the split
        traffic.put(session, model, "champion", NewTraffic({1: 0, 2: 0, 3: 100}, error_rate=0.5), by="ann")
    await asyncio.to_thread(api.services.snapshot.refresh)
    statuses = [(await api.predict(model, ROW)).status_code for _ in range(MIN_CALLS)]
    assert set(statuses) == {404}
    deadline = time.monotonic() + WAIT_S
    while (await get(api, model))["weights"]["3"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert version_of(await api.predict(model, ROW)) == 1


async def test_a_canary_that_is_too_slow_goes_back(api: Api, unique_name: str) -> None:
    copy_version(api.settings.home, "price", unique_name)
    await add_version(api, unique_name, "sleeper")
    await api.promote(unique_name, 1)
    await put(api, unique_name, weights={"1": 0, "2": 100}, bounds={"p99_ms": 5})
    slow = ROW | {"x0": 1000.006}
    await asyncio.gather(*(api.predict(unique_name, slow) for _ in range(MIN_CALLS)))
    record = await becomes_withdrawn(api, unique_name)
    assert "20 of 20 calls of version 2 took longer than 5 ms" in record["reason"]


async def test_the_load_of_a_canary_is_not_its_latency(
    api: Api, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that starts loads the versions while it answers: that must not end the split of all."""
    clock, seconds, load = Clock(), [], Predictor._load

    async def load_slowly(*args: Any) -> Any:
        entry = await load(*args)
        clock.passed_s += 1000
        return entry

    def record(_self: object, _split: object, _number: int, latency_s: float, _failure: object) -> None:
        seconds.append(latency_s)

    await put(api, model, weights={"1": 0, "2": 100}, bounds={"p99_ms": 5000})
    monkeypatch.setattr(predictor, "time", clock)
    monkeypatch.setattr(Predictor, "_load", load_slowly)
    monkeypatch.setattr(Pool, "acquire_loaded", lambda *_: None)
    monkeypatch.setattr(Canaries, "record", record)
    assert version_of(await api.predict(model, ROW)) == 2
    assert len(seconds) == 1
    assert seconds[0] < 1000


class Clock:
    """The time of a process, in which more time can pass."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.passed_s

    monotonic = staticmethod(time.monotonic)


async def shadow_report(api: Api, model: str, rows: int) -> dict[str, Any]:
    """The only entry of the report, once it has this many rows."""
    deadline = time.monotonic() + WAIT_S
    while True:
        report = (await get(api, model))["shadow_report"]
        if report and sum(report[0][count] for count in ("rows", "failed", "shed")) >= rows:
            (entry,) = report
            return dict(entry)
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.02)


@pytest.fixture
def prompt_shadows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "FLUSH_S", 0.01)
    monkeypatch.setattr(shadow, "MAX_PAUSE_S", 0.01)


@pytest.mark.usefixtures("prompt_shadows")
async def test_a_shadow_is_compared_with_the_version_that_answered(api: Api, model: str) -> None:
    await add_version(api, model, "flag", number=1)
    await api.promote(model, 2, alias="challenger")
    for reference, agreement in (("challenger", 0.0), (3, 1.0)):
        await put(api, model, shadow=reference)
        number = 2 if reference == "challenger" else 3
        await api.services.pool.get(api.services.snapshot.resolve(model, number=number).id)
        for _ in range(5):
            assert version_of(await api.predict(model, ROW, ROW | {"x0": 3.0})) == 1
        report = await shadow_report(api, model, rows=10)
        assert (report["version"], report["shadow_version"], report["rows"]) == (1, number, 10)
        assert (report["agreement"], report["failed"], report["last_error"]) == (agreement, 0, None)
        assert report["latency_ms"]["calls"] == 5
        assert report["shadow_latency_ms"]["p50"] > 0
        assert (report["largest_difference"] > 0.1) == (agreement == 0.0)


@pytest.mark.usefixtures("prompt_shadows")
async def test_a_shadow_answers_calls_of_every_protocol(api: Api, model: str) -> None:
    assert api.grpc is not None
    await put(api, model, shadow=2)
    await api.services.pool.get(api.services.snapshot.resolve(model, number=2).id)
    tensor = {"name": "input", "shape": [1, 3], "datatype": "FP64", "data": list(ROW.values())}
    assert (await api.client.post(f"/v2/models/{model}/infer", json={"inputs": [tensor]})).status_code == 200
    async with connect(api.grpc.port, api.admin) as client:
        reply = await client.call("ModelInfer", infer_request(model, matrix([list(ROW.values())])))
        assert reply.message is not None, reply.text
    report = await shadow_report(api, model, rows=2)
    assert (report["rows"], report["failed"], report["agreement"]) == (2, 0, 0.0)


@pytest.mark.usefixtures("prompt_shadows")
async def test_a_shadow_that_refuses_the_input_does_not_touch_the_caller(api: Api, model: str) -> None:
    number = await add_version(api, model, "mixed")
    await put(api, model, shadow=number)
    await api.services.pool.get(api.services.snapshot.resolve(model, number=number).id)
    for _ in range(3):
        assert version_of(await api.predict(model, ROW)) == 1
    report = await shadow_report(api, model, rows=3)
    assert (report["rows"], report["failed"], report["agreement"]) == (0, 3, None)
    assert "Invalid: " in report["last_error"]


@pytest.mark.usefixtures("prompt_shadows")
async def test_a_shadow_that_cannot_be_loaded_does_not_touch_the_caller(api: Api, model: str) -> None:
    number = await add_version(api, model, "flag", servable="1" * 64, number=1)
    await put(api, model, shadow=number)
    deadline = time.monotonic() + WAIT_S
    while True:
        assert version_of(await api.predict(model, ROW)) == 1
        report = (await get(api, model))["shadow_report"]
        if report and report[0]["failed"]:
            break
        assert time.monotonic() < deadline
    assert report[0]["rows"] == 0
    assert "1" * 64 in report[0]["last_error"]
