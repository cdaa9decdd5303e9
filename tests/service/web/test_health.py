from __future__ import annotations

from pathlib import Path

import pytest

from migrations import HEAD
from registry import db
from registry.errors import TriviumError
from service.config import Settings
from service.prepare import prepare
from service.web import health
from tests.service.api import Api, check_problem, running_app

pytestmark = pytest.mark.anyio


async def test_a_working_server_is_alive_and_ready(api: Api):
    assert (await api.anonymous.get("/livez")).json() == {"status": "alive"}
    for path in ("/readyz", "/healthz"):
        answer = await api.anonymous.get(path)
        assert answer.status_code == 200, answer.text
        assert answer.json()["ready"] is True
        assert {"database", "migrations", "builder"} <= set(answer.json()["checks"])


async def test_metrics_are_prometheus_text(api: Api):
    answer = await api.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        "trivium_requests_total",
        "trivium_request_seconds",
        "trivium_predict_seconds",
        "trivium_builds_total",
        "trivium_loaded_models",
        "trivium_snapshot_age_seconds",
        "trivium_runtime_fallbacks_total",
    ):
        assert f"# TYPE {name.removesuffix('_total')}" in answer.text


async def test_unknown_paths_and_methods_create_no_time_series(api: Api):
    for number in range(5):
        await api.client.get(f"/v1/nothing-{number}")
        await api.anonymous.request("BREW", f"/v1/models/secret-{number}")
    text = (await api.client.get("/metrics")).text
    assert "nothing-" not in text
    assert "secret-" not in text
    assert "BREW" not in text


async def test_a_broken_builder_makes_the_server_unready(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api.services.supervisor.forks, "problem", lambda: "the template dies")
    answer = await api.anonymous.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["builder"] == "the template dies"
    assert (await api.anonymous.get("/livez")).status_code == 200


async def test_a_broken_builder_of_another_process_makes_each_process_unready(api: Api):
    api.services.group.builder_problem = "the template of the leader dies"
    checks = health.run_checks(api.services)  # before the event loop updates the problem
    api.services.group.builder_problem = None
    assert checks["builder"] == "the template of the leader dies"


def test_a_database_at_another_revision_is_rejected(tmp_path: Path):
    settings = Settings(home=tmp_path / "home")
    prepare(settings)
    engine = db.connect(settings.url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(TriviumError, match=f"this version needs {HEAD}"):
        db.require_current(engine)
    engine.dispose()


async def test_a_missing_or_full_data_directory_makes_the_server_unready(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_app(Settings(home=home)) as api:

        async def data_check() -> tuple[int, str]:
            answer = await api.anonymous.get("/readyz")
            return answer.status_code, answer.json()["checks"]["data"]

        assert (await data_check())[1] == "ok"
        incoming = api.services.store.incoming
        incoming.rename(incoming.with_name("moved"))
        assert await data_check() == (503, "the data directory cannot be used: No such file or directory")
        incoming.with_name("moved").rename(incoming)
        monkeypatch.setattr(health, "MIN_FREE_BYTES", 1 << 60)
        assert await data_check() == (503, "the disk of the data directory is full")

        def raise_disk_full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(type(api.services.store), "writer", raise_disk_full)
        answer = await api.client.put(f"/v1/artifacts/{'0' * 64}", content=b"x")
        assert "No space left on device" in check_problem(answer, 507)["detail"]
