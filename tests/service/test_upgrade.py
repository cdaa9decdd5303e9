"""A server that starts with other library versions: what it measures again, and what serves afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from registry import db, versions
from registry.artifacts import Store
from registry.tables import ExportRow, VersionRow
from service.config import Settings
from tests.harness.models import pickle_model
from tests.service.api import BUILD_S, Api, check_problem, running_app
from tests.service.builds.misbehaving_models import CrashesOnLoad

pytestmark = pytest.mark.anyio

ROW = {"x0": 1.0, "x1": 0.0, "x2": 0.0}
OLDER = {"onnxruntime": "1.26.0"}


def edit(home: Path, *changes: Callable[[Session], object]) -> None:
    """Change the database of a server that does not run."""
    engine = db.connect(Settings(home=home).url)
    with db.sessions(engine).begin() as session:
        for change in changes:
            change(session)
    engine.dispose()


def measured_with_older_libraries(session: Session, model: str = "flag", number: int = 1) -> VersionRow:
    row = versions.get(session, model, number)
    row.libraries = versions.libraries_text(json.loads(row.libraries or "{}") | OLDER)
    return row


def another_runtime(session: Session) -> None:
    """The graph of version 2, which answers the opposite: as an upgraded runtime that answers differently."""
    measured_with_older_libraries(session).servable = versions.get(session, "flag", 2).servable


async def checked(api: Api, model: str = "flag", number: int = 1) -> dict[str, Any]:
    """Wait for the check of a version, and return its record."""
    deadline = time.monotonic() + BUILD_S
    while True:
        record: dict[str, Any] = (await api.client.get(f"/v1/models/{model}/versions/{number}")).json()
        checks = record["verification"]
        if checks["state"] != "pending" and checks["figures"]:
            return record
        assert time.monotonic() < deadline, record
        await asyncio.sleep(0.05)


async def predicted(api: Api, expected: str | int) -> httpx.Response:
    """Wait until the server has read the check's result: the answer has this label, or this status."""
    deadline = time.monotonic() + BUILD_S
    while True:
        answer = await api.predict("flag", ROW)
        found = answer.json()["predictions"][0]["label"] if answer.status_code == 200 else answer.status_code
        if found == expected:
            return answer
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.05)


async def test_a_runtime_that_still_agrees_serves_on(home: Path) -> None:
    edit(home, measured_with_older_libraries)
    async with running_app(Settings(home=home)) as api:
        record = await checked(api)
        assert record["verification"]["state"] == "agreed"
        assert record["verification"]["figures"]["onnx"]["label_mismatches"] == 0
        assert (await api.predict("flag", ROW)).json()["predictions"][0]["label"] == "yes"


async def test_a_runtime_that_answers_differently_is_replaced_by_the_estimator(home: Path) -> None:
    edit(home, another_runtime)
    async with running_app(Settings(home=home)) as api:
        record = await checked(api)
        assert (record["verification"]["state"], record["verification"]["fallback"]) == (
            "differs",
            "isolated",
        )
        assert record["verification"]["reason"].startswith("onnx: ")
        await predicted(api, "yes")
        metrics = (await api.client.get("/metrics")).text
        assert 'trivium_differing_version{fallback="isolated",model="flag",version="1"} 1.0' in metrics
        accepted = await api.client.post("/v1/models/flag/versions/1/verify", json={"accept": True})
        assert (accepted.status_code, accepted.headers["location"]) == (202, "/v1/models/flag/versions/1")
        record = await checked(api)
        assert (record["verification"]["state"], record["verification"]["fallback"]) == ("agreed", None)
        assert record["verification"]["accepted"]["by"] == "admin"
        await predicted(api, "no")
        assert 'model="flag",version="1"} 0.0' in (await api.client.get("/metrics")).text


async def test_a_version_that_nothing_answers_as_measured_is_refused_with_the_remedy(home: Path) -> None:
    def other_answers(session: Session) -> None:
        measured_with_older_libraries(session).measured = versions.get(session, "flag", 2).measured

    edit(home, other_answers)
    async with running_app(Settings(home=home)) as api:
        record = await checked(api)
        assert (record["verification"]["state"], record["verification"]["fallback"]) == ("differs", "none")
        problem = check_problem(await predicted(api, 503), 503)
        assert "trivium verify flag:1 --accept" in problem["detail"]
        assert (await api.client.put("/v1/models/flag/aliases/other", json={"version": 1})).status_code == 503


async def test_a_version_whose_stored_rows_cannot_be_read_is_named_and_served_as_before(home: Path) -> None:
    store = Store(Settings(home=home).blobs)

    def unreadable_rows(session: Session) -> None:
        measured_with_older_libraries(session).measured = store.put([b"rows of another release"]).sha256

    edit(home, unreadable_rows)
    async with running_app(Settings(home=home)) as api:
        deadline = time.monotonic() + BUILD_S
        while (record := (await api.client.get("/v1/models/flag/versions/1")).json()["verification"])[
            "state"
        ] != "differs":
            assert time.monotonic() < deadline, record
            await asyncio.sleep(0.05)
        assert record["fallback"] is None
        assert record["reason"].startswith("the measured rows cannot be read")
        await predicted(api, "yes")


async def test_a_runtime_that_crashes_differs(home: Path) -> None:
    store = Store(Settings(home=home).blobs)

    def crashing_estimator(session: Session) -> None:
        row = measured_with_older_libraries(session)
        row.runtime, row.servable = "isolated", None
        row.artifact = store.put([pickle_model(CrashesOnLoad())]).sha256

    edit(home, crashing_estimator)
    async with running_app(Settings(home=home)) as api:
        checks = (await checked(api))["verification"]
        assert (checks["state"], checks["fallback"]) == ("differs", "none")
        assert checks["reason"].startswith("isolated: the check's process crashed with SIG")


async def test_a_table_of_nodes_that_does_not_load_is_replaced_in_batch_jobs_alone(home: Path) -> None:
    def another_table(session: Session) -> None:
        row = measured_with_older_libraries(session, "forest")
        row.forest = row.servable

    edit(home, another_table)
    async with running_app(Settings(home=home)) as api:
        checks = (await checked(api, "forest"))["verification"]
        assert (checks["state"], checks["fallback"]) == ("differs", "online")
        assert checks["figures"]["onnx"]["label_mismatches"] == 0
        assert checks["reason"].startswith("forest: ")


async def test_a_version_that_is_not_in_use_is_measured_when_it_is_loaded(home: Path) -> None:
    edit(home, lambda session: measured_with_older_libraries(session, number=2))
    async with running_app(Settings(home=home)) as api:
        before = (await api.client.get("/v1/models/flag/versions/2")).json()["verification"]
        assert (before["state"], before["figures"]) == ("agreed", {})
        answer = await api.client.post("/v1/models/flag/versions/2/predict", json={"instances": [ROW]})
        assert answer.status_code == 200
        assert (await checked(api, number=2))["verification"]["libraries"]["onnxruntime"] != "1.26.0"


async def test_an_export_that_litert_answers_differently_is_withdrawn_from_devices(home: Path) -> None:
    settings = Settings(home=home)
    async with running_app(settings) as api:
        urls = [f"/v1/models/flag/versions/{number}/exports" for number in (1, 2)]
        answers = [await api.client.post(url, json={"format": "tflite"}) for url in urls]
        exports = [await api.wait_for_build(a.headers["location"]) for a in answers]
        assert [e["state"] for e in exports] == ["ready", "ready"]
        assert (await api.client.get("/v1/edge/flag")).status_code == 200

    def another_file(session: Session) -> None:
        first, second = (session.get_one(ExportRow, e["id"]) for e in exports)
        first.blob = second.blob
        first.libraries = versions.libraries_text({"ai-edge-litert": "2.0.0"})

    edit(home, another_file)
    async with running_app(settings) as api:
        record = await checked(api)
        assert (record["verification"]["state"], record["verification"]["fallback"]) == ("differs", None)
        assert f"export {exports[0]['id']}: LiteRT here no longer gives" in record["verification"]["reason"]
        export = (await api.client.get(answers[0].headers["location"])).json()
        assert (export["state"], export["report"]["reason"]) == (
            "rejected",
            record["verification"]["reason"].partition(": ")[2],
        )
        await predicted(api, "yes")
        check_problem(await api.client.get("/v1/edge/flag"), 404)
