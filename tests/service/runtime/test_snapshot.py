"""The snapshot follows the changes of other processes, and reports a database that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from registry import aliases, db, keys, traffic, versions
from registry.errors import NotFound, NotReady
from registry.traffic import NewTraffic
from service.config import Settings
from service.runtime import snapshot as snapshot_module
from service.runtime.snapshot import Snapshot, SnapshotState
from tests.harness.server import Server, serving
from tests.registry.postgres import Postgres
from tests.service.api import Api, check_problem, running_app
from tests.service.estimators import sign_classifier

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
CHANGE_TIMEOUT_S = 3.0
"""A poll takes 0.1 s, and one second is promised; the rest allows for a machine busy with other tests."""


@pytest.fixture
def engine(home: Path):
    engine = db.connect(Settings(home=home).url)
    yield engine
    engine.dispose()


@pytest.fixture
def snapshot(engine):
    snapshot = Snapshot(engine)
    snapshot.start()
    yield snapshot
    snapshot.stop()


def becomes_true(condition: Callable[[], bool]) -> bool:
    """Whether `condition` becomes true within `CHANGE_TIMEOUT_S`."""
    deadline = time.perf_counter() + CHANGE_TIMEOUT_S
    while time.perf_counter() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_the_snapshot_resolves_names_aliases_and_numbers(snapshot: Snapshot):
    assert snapshot.resolve("flag").number == 1
    assert snapshot.resolve("flag", number=2).number == 2
    for unknown in ({"name": "missing"}, {"name": "flag", "alias": "missing"}, {"name": "flag", "number": 9}):
        with pytest.raises(NotFound):
            snapshot.resolve(**unknown)


def test_an_alias_moved_by_another_connection_is_visible_soon(snapshot: Snapshot, home: Path):
    other = db.connect(Settings(home=home).url)
    with db.sessions(other).begin() as session:
        aliases.promote(session, "flag", "champion", 2, by="another process")
    other.dispose()
    assert becomes_true(lambda: snapshot.resolve("flag").number == 2)


def test_a_split_of_another_connection_is_visible_soon_and_ends_with_a_move(snapshot: Snapshot, home: Path):
    other = db.connect(Settings(home=home).url)
    sessions = db.sessions(other)
    with sessions.begin() as session:
        aliases.promote(session, "flag", "challenger", 2, by="another process")
        traffic.put(session, "flag", "champion", NewTraffic({1: 80, 2: 20}, shadow="challenger"), by="ann")
    assert becomes_true(lambda: ("flag", "champion") in snapshot.state.traffic)
    split = snapshot.state.traffic["flag", "champion"]
    assert (split.own, split.limits, split.numbers, split.shadow) == (1, [800_000, 1_000_000], [1, 2], 2)
    assert sorted(v.number for v in snapshot.split_versions()) == [1, 2]
    with sessions.begin() as session:
        aliases.promote(session, "flag", "challenger", 1, by="another process")
    assert becomes_true(lambda: snapshot.state.traffic["flag", "champion"].shadow == 1)
    with sessions.begin() as session:
        aliases.promote(session, "flag", "champion", 2, by="another process")
    other.dispose()
    assert becomes_true(lambda: not snapshot.state.traffic)


def test_a_process_reads_its_own_writes_at_once(snapshot: Snapshot, engine):
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
async def test_find_refreshes_once_before_it_reports_not_found(engine):
    """The watcher is not started: only `find` refreshes the snapshot."""
    snapshot = Snapshot(engine)
    snapshot.refresh()
    with pytest.raises(NotFound):
        await snapshot.find(partial(snapshot.resolve, "flag", "canary"))
    with db.sessions(engine).begin() as session:
        aliases.promote(session, "flag", "canary", 2, by="another process")
    assert (await snapshot.find(partial(snapshot.resolve, "flag", "canary"))).number == 2


def test_concurrent_refreshes_read_the_database_twice(engine, monkeypatch: pytest.MonkeyPatch):
    snapshot = Snapshot(engine)
    snapshot.refresh()
    reads: list[object] = []
    clock = Mock(wraps=time.monotonic)
    monkeypatch.setattr("service.runtime.snapshot.time.monotonic", clock)
    clock_reads = 30 + 1  # once in each call, and once more in the first to read

    def on_read(connection: object) -> None:
        reads.append(connection)
        assert len(reads) > 1 or becomes_true(lambda: clock.call_count >= clock_reads)

    sqlalchemy.event.listen(engine, "begin", on_read)
    with ThreadPoolExecutor(30) as threads:
        for call in [threads.submit(snapshot.refresh) for _ in range(30)]:
            call.result()
    assert len(reads) == 2


@pytest.mark.anyio
async def test_a_version_that_another_process_has_built_answers_at_once(home: Path):
    async with running_app(Settings(home=home)) as api:
        api.services.snapshot.stop()
        with api.services.sessions.begin() as session:
            versions.edit(session, "flag", 2, archived=True)
        api.services.snapshot.refresh()
        path = "/v1/models/flag/versions/2/predict"
        check_problem(await api.client.post(path, json={"instances": [ROW]}), 409)
        with api.services.sessions.begin() as session:
            versions.edit(session, "flag", 2, archived=False)
        assert (await api.client.post(path, json={"instances": [ROW]})).status_code == 200


def test_listeners_are_called_only_for_changes(snapshot: Snapshot, engine):
    revisions: list[int] = []
    snapshot.on_change.append(lambda: revisions.append(snapshot.state.revision))
    snapshot.refresh()
    assert revisions == []
    with db.sessions(engine).begin() as session:
        keys.create(session, "new", ["predict"], by="me")
    snapshot.refresh()
    assert becomes_true(lambda: len(revisions) == 1)
    assert any(k.name == "new" for k in snapshot.state.keys.values())


def test_a_state_in_use_does_not_change(snapshot: Snapshot, engine):
    """The state is replaced, not modified: the state that a request uses does not change."""
    state = snapshot.state
    with db.sessions(engine).begin() as session:
        aliases.promote(session, "flag", "champion", 2, by="me")
    snapshot.refresh()
    assert state.models["flag"].aliases["champion"] == 1
    assert snapshot.state.models["forest"] is state.models["forest"]  # only the changed model is read again


class Checks:
    """Replaces the stop event of the watcher, which ends after `count` checks."""

    def __init__(self, count: int, before_last: Callable[[], None]) -> None:
        self.remaining, self.before_last = count, before_last

    def wait(self, timeout_s: float) -> bool:
        self.remaining -= 1
        if self.remaining == 0:
            self.before_last()
        return self.remaining < 0


def check(snapshot: Snapshot, count: int, before_last: Callable[[], None] = lambda: None) -> None:
    """Let the watcher check the database `count` times, in this thread."""
    snapshot._stopping = Checks(count, before_last)  # type: ignore[assignment]
    snapshot._watch_connection()


def test_the_age_of_an_unchanged_snapshot_is_the_time_since_its_last_check(engine):
    """Not since its last change: an idle server would become unready."""
    snapshot = Snapshot(engine)
    snapshot.refresh()
    state = snapshot.state

    def grow_old() -> None:
        snapshot._checked_at -= 1000.0

    snapshot.refresh = Mock(wraps=snapshot.refresh)  # type: ignore[method-assign]
    check(snapshot, 3, before_last=grow_old)
    assert snapshot.age_s < 1000.0
    assert snapshot.state is state
    assert snapshot.refresh.call_count == 1  # at the first check
    grow_old()
    assert snapshot.age_s >= 1000.0


def test_the_age_of_a_snapshot_grows_while_its_checks_fail(engine):
    snapshot = Snapshot(engine)
    snapshot.refresh()
    snapshot._checked_at -= 1000.0
    snapshot.refresh = Mock(side_effect=OSError("the disk is gone"))  # type: ignore[method-assign]
    with pytest.raises(OSError, match="the disk is gone"):
        check(snapshot, 3)
    assert snapshot.age_s >= 1000.0


def test_a_refresh_makes_the_snapshot_as_old_as_its_read(engine):
    snapshot = Snapshot(engine)
    snapshot._checked_at -= 1000.0
    snapshot.refresh()
    assert snapshot.age_s < 1000.0
    snapshot._checked_at -= 1000.0
    snapshot.refresh()  # nothing has changed: it was checked nevertheless
    assert snapshot.age_s < 1000.0


def test_a_change_between_two_checks_is_read_by_the_second(engine):
    snapshot = Snapshot(engine)
    snapshot.refresh()

    def promote() -> None:
        with db.sessions(engine).begin() as session:
            aliases.promote(session, "flag", "champion", 2, by="me")

    check(snapshot, 2, before_last=promote)
    assert snapshot.resolve("flag").number == 2


def test_a_refresh_during_another_reads_the_change_that_the_other_missed(engine):
    """A read that is in progress may have begun before the caller's change."""
    snapshot = Snapshot(engine)
    snapshot.refresh()
    read_state, waiting = snapshot_module._reload, []

    def changed_after_the_read(session: Session, old: SnapshotState) -> SnapshotState:
        state = read_state(session, old)
        if not waiting:
            with db.sessions(engine).begin() as other:
                aliases.promote(other, "flag", "champion", 2, by="me")
            waiting.append(executor.submit(snapshot.refresh))
            assert becomes_true(lambda: clock.call_count >= 3)  # it has been called, and waits
        return state

    with ThreadPoolExecutor(1) as executor, pytest.MonkeyPatch.context() as patch:
        clock = Mock(wraps=time.monotonic)
        patch.setattr("service.runtime.snapshot.time.monotonic", clock)
        patch.setattr(snapshot_module, "_reload", changed_after_the_read)
        snapshot.refresh()
        assert snapshot.resolve("flag").number == 1
        waiting[0].result(10)
    assert snapshot.resolve("flag").number == 2


@pytest.mark.anyio
async def test_a_version_that_is_not_ready_is_looked_up_again_before_it_is_refused(engine):
    snapshot = Snapshot(engine)
    with db.sessions(engine).begin() as session:
        versions.edit(session, "flag", 2, archived=True)
    snapshot.refresh()
    with db.sessions(engine).begin() as session:
        versions.edit(session, "flag", 2, archived=False)
    with pytest.raises(NotReady):
        snapshot.resolve("flag", number=2)
    assert (await snapshot.find(partial(snapshot.resolve, "flag", number=2))).number == 2


@pytest.mark.anyio
async def test_what_exists_is_found_without_the_database(engine):
    snapshot = Snapshot(engine)
    snapshot.refresh()
    snapshot.refresh = Mock()  # type: ignore[method-assign]
    assert (await snapshot.find(partial(snapshot.resolve, "flag"))).number == 1
    assert not snapshot.refresh.called


@pytest.fixture(scope="module")
def two_servers(published_home: Path, tmp_path_factory: pytest.TempPathFactory):
    """Two servers on one data directory."""
    import shutil

    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("two") / "home"))
    with serving(home) as first, serving(home) as second:
        yield first, second


def test_a_change_at_one_server_is_served_by_another_soon(two_servers: tuple[Server, Server]):
    first, second = (server.client() for server in two_servers)
    with first, second:
        body = {"instances": [ROW]}
        assert second.post("/v1/models/flag/predict", json=body).json()["model"]["version"] == 1
        assert first.put("/v1/models/flag/aliases/champion", json={"version": 2}).status_code == 200

        def serves_version_2() -> bool:
            answer = second.post("/v1/models/flag/predict", json=body).json()
            return bool(answer["model"]["version"] == 2 and answer["predictions"][0]["label"] == "no")

        assert becomes_true(serves_version_2)


def test_a_key_revoked_at_one_server_is_rejected_by_another_soon(two_servers: tuple[Server, Server]):
    with two_servers[0].client() as first:
        key = first.post("/v1/keys", json={"name": "short", "scopes": ["predict"]}).json()
        with two_servers[1].client(key["key"]) as second:
            assert becomes_true(lambda: second.get("/v1/models").status_code == 200)
            first.delete("/v1/keys/" + key["id"])
            assert becomes_true(lambda: second.get("/v1/models").status_code == 401)


@pytest.mark.anyio
async def test_the_server_is_unready_while_the_database_does_not_answer(postgres: Postgres, tmp_path: Path):
    """Predictions continue from memory. PostgreSQL only: an open SQLite file cannot become unavailable."""
    database = postgres.create()
    settings = Settings(home=tmp_path / "home", database_url=postgres.url(database))
    engine = db.connect(settings.url)
    db.migrate(engine, tmp_path)
    engine.dispose()
    async with running_app(settings) as api:
        await api.publish("flag", sign_classifier(), alias="champion")
        await _await_readiness(api, 200)
        assert (await api.predict("flag", ROW)).status_code == 200  # from here on the model is in memory
        postgres.execute(
            f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
        )
        try:
            assert "does not answer" in (await _await_readiness(api, 503)).json()["checks"]["database"]
            assert (await api.anonymous.get("/livez")).status_code == 200
            assert (await api.predict("flag", ROW)).json()["predictions"][0]["label"] == "yes"
            check_problem(await api.client.get("/v1/models"), 503)
            check_problem(await api.client.post("/v1/keys", json={"name": "a", "scopes": ["predict"]}), 503)
        finally:
            postgres.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        await _await_readiness(api, 200)
        assert (await api.client.get("/v1/models")).status_code == 200
        assert (await api.publish("flag", sign_classifier(swapped=True)))["state"] == "ready"


async def _await_readiness(api: Api, status: int) -> httpx.Response:
    deadline = time.monotonic() + 30
    while (answer := await api.anonymous.get("/readyz")).status_code != status:
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.05)
    return answer
