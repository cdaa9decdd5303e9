"""A server that starts with other library versions: what it measures again, and what serves afterwards."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from registry import db, versions
from registry.tables import VersionRow
from service.config import Settings
from tests.service.api import BUILD_S, Api, check_problem, running_app

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
        assert (record["verification"]["state"], record["verification"]["fallback"]) == ("differs", "isolated")
        assert record["verification"]["figures"]["onnx"]["label_mismatches"] > 0
        answer = await api.predict("flag", ROW)
        assert answer.json()["predictions"][0]["label"] == "yes"
        metrics = (await api.client.get("/metrics")).text
        assert 'runtime="isolated"' in metrics
