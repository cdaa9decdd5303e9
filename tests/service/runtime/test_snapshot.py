"""The registry in memory follows what other processes do, and says so when it cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
import sqlalchemy

from registry import aliases, db, keys, versions
from registry.errors import NotFound, NotReady
from service.config import Settings
from service.runtime.snapshot import Snapshot
from tests.harness.server import Server, serving
from tests.registry.conftest import Postgres
from tests.service.api import Api, refused, running
from tests.service.estimators import yes_or_no

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
SOON_S = 3.0
"""It takes 0.1 s to look, and a second is promised; the rest is for a machine busy with other tests."""


@pytest.fixture
def engine(home: Path):
    made = db.connect(Settings(home=home).url)
    yield made
    made.dispose()


@pytest.fixture
def snapshot(engine):
    made = Snapshot(engine)
    made.start()
    yield made
    made.stop()


def soon(found: Callable[[], bool]) -> bool:
    """Whether `found` becomes true soon."""
    until = time.perf_counter() + SOON_S
    while time.perf_counter() < until:
        if found():
            return True
        time.sleep(0.01)
    return False


def test_it_resolves_names_aliases_and_numbers(snapshot: Snapshot):
    assert snapshot.resolve("flag").number == 1
    assert snapshot.resolve("flag", number=2).number == 2
    for wrong in ({"name": "nobody"}, {"name": "flag", "alias": "nobody"}, {"name": "flag", "number": 9}):
        with pytest.raises(NotFound):
            snapshot.resolve(**wrong)


def test_an_alias_moved_through_another_engine_is_seen_soon(snapshot: Snapshot, home: Path):
    other = db.connect(Settings(home=home).url)
    with db.sessions(other).begin() as session:
        aliases.promote(session, "flag", "champion", 2, by="somebody else")
    other.dispose()
    assert soon(lambda: snapshot.resolve("flag").number == 2)


def test_its_own_process_reads_its_writes_at_once(snapshot: Snapshot, engine):
    with db.sessions(engine).begin() as session:
        aliases.promote(session, "flag", "champion", 2, by="me")
    snapshot.refresh()
    assert snapshot.resolve("flag").number == 2


def test_a_version_that_is_not_ready_does_not_answer(snapshot: Snapshot, engine):
    with db.sessions(engine).begin() as session:
        versions.edit(session, "flag", 2, archived=True)
    snapshot.refresh()
    with pytest.raises(NotReady, match="archived"):
        snapshot.resolve("flag", number=2)


@pytest.mark.anyio
async def test_what_is_not_found_is_looked_for_once_more(engine):
    """Nothing watches here: what `find` sees it has looked up itself."""
    snapshot = Snapshot(engine)
    snapshot.refresh()
    with pytest.raises(NotFound):
        await snapshot.find(partial(snapshot.resolve, "flag", "canary"))
    with db.sessions(engine).begin() as session:
        aliases.promote(session, "flag", "canary", 2, by="somebody else")
    assert (await snapshot.find(partial(snapshot.resolve, "flag", "canary"))).number == 2


def test_a_crowd_that_waits_for_one_look_has_one_more_between_them(engine, monkeypatch: pytest.MonkeyPatch):
    snapshot = Snapshot(engine)
    snapshot.refresh()
    looks: list[object] = []
    clock = Mock(wraps=time.monotonic)
    monkeypatch.setattr("service.runtime.snapshot.time.monotonic", clock)
    everybody = 30 + 1  # each has noted when it asked, and the first one when it began

    def look(connection: object) -> None:
        looks.append(connection)
        assert len(looks) > 1 or soon(lambda: clock.call_count >= everybody)

    sqlalchemy.event.listen(engine, "begin", look)
    with ThreadPoolExecutor(30) as threads:
        for done in [threads.submit(snapshot.refresh) for _ in range(30)]:
            done.result()
    assert len(looks) == 2


@pytest.mark.anyio
async def test_a_version_that_another_process_has_built_answers_at_once(home: Path):
    async with running(Settings(home=home)) as api:
        api.services.snapshot.stop()
        with api.services.sessions.begin() as session:
            versions.edit(session, "flag", 2, archived=True)
        api.services.snapshot.refresh()
        again = "/v1/models/flag/versions/2/predict"
        refused(await api.client.post(again, json={"instances": [ROW]}), 409)
        with api.services.sessions.begin() as session:
            versions.edit(session, "flag", 2, archived=False)
        assert (await api.client.post(again, json={"instances": [ROW]})).status_code == 200


def test_listeners_hear_of_changes_only(snapshot: Snapshot, engine):
    heard: list[int] = []
    snapshot.on_change.append(lambda: heard.append(snapshot.state.revision))
    snapshot.refresh()
    assert heard == []
    with db.sessions(engine).begin() as session:
        keys.create(session, "new", ["predict"], by="me")
    snapshot.refresh()
    assert soon(lambda: len(heard) == 1)
    assert any(k.name == "new" for k in snapshot.state.keys.values())


def test_a_reader_sees_one_whole_state(snapshot: Snapshot, engine):
    """The state is replaced, not altered: what a request holds stays as it was."""
    held = snapshot.state
    with db.sessions(engine).begin() as session:
        aliases.promote(session, "flag", "champion", 2, by="me")
    snapshot.refresh()
    assert held.models["flag"].aliases["champion"] == 1
    assert snapshot.state.models["forest"] is held.models["forest"]  # only what changed is read again


@pytest.fixture(scope="module")
def two(published_home: Path, tmp_path_factory: pytest.TempPathFactory):
    """One data directory, two servers."""
    import shutil

    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("two") / "home"))
    with serving(home) as first, serving(home) as second:
        yield first, second


def test_what_one_server_changes_another_serves_soon(two: tuple[Server, Server]):
    first, second = (server.client() for server in two)
    with first, second:
        body = {"instances": [ROW]}
        assert second.post("/v1/models/flag/predict", json=body).json()["model"]["version"] == 1
        assert first.put("/v1/models/flag/aliases/champion", json={"version": 2}).status_code == 200

        def follows() -> bool:
            answer = second.post("/v1/models/flag/predict", json=body).json()
            return bool(answer["model"]["version"] == 2 and answer["predictions"][0]["label"] == "no")

        assert soon(follows)


def test_a_key_revoked_at_one_server_is_refused_by_another_soon(two: tuple[Server, Server]):
    with two[0].client() as first:
        made = first.post("/v1/keys", json={"name": "short", "scopes": ["predict"]}).json()
        with two[1].client(made["key"]) as second:
            assert soon(lambda: second.get("/v1/models").status_code == 200)
            first.delete(f"/v1/keys/{made['id']}")
            assert soon(lambda: second.get("/v1/models").status_code == 401)


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    started = Postgres(tmp_path_factory.mktemp("pg") / "data")
    yield started
    started.stop()


@pytest.mark.anyio
async def test_a_database_that_goes_away_makes_it_unready_and_its_return_ready(
    postgres: Postgres, tmp_path: Path
):
    """It answers all along from what it has in memory. SQLite's file cannot go away while it is open."""
    database = postgres.create()
    settings = Settings(home=tmp_path / "home", database_url=postgres.url(database))
    engine = db.connect(settings.url)
    db.migrate(engine, tmp_path)
    engine.dispose()
    async with running(settings) as api:
        await api.publish("flag", yes_or_no(), alias="champion")
        await _becomes(api, 200)
        postgres.execute(
            f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
        )
        try:
            assert "does not answer" in (await _becomes(api, 503)).json()["checks"]["database"]
            assert (await api.anonymous.get("/livez")).status_code == 200
            assert (await api.predict("flag", ROW)).json()["predictions"][0]["label"] == "yes"
            refused(await api.client.get("/v1/models"), 503)
            refused(await api.client.post("/v1/keys", json={"name": "a", "scopes": ["predict"]}), 503)
        finally:
            postgres.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        await _becomes(api, 200)
        assert (await api.client.get("/v1/models")).status_code == 200
        assert (await api.publish("flag", yes_or_no(swapped=True)))["state"] == "ready"


async def _becomes(api: Api, status: int) -> httpx.Response:
    until = time.monotonic() + 30
    while (found := await api.anonymous.get("/readyz")).status_code != status:
        assert time.monotonic() < until, found.text
        await asyncio.sleep(0.05)
    return found
