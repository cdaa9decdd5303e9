"""Revision: readers get exactly the changed subjects, in the order of the commits."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import Engine, select

from registry import aliases, db, keys, models, revision, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.tables import ChangeRow
from tests.registry.helpers import build, promote, publish, publish_ready, threads
from tests.registry.interleaving import just_before, on_postgresql, run_behind


def _since(sessions: Sessions, since: int) -> revision.Changes | None:
    with db.reading(sessions) as session:
        return revision.changes_since(session, since)


def _revision(sessions: Sessions) -> int:
    with db.reading(sessions) as session:
        return revision.current(session)


def _record(sessions: Sessions, *subjects: str) -> None:
    with sessions.begin() as session:
        for subject in subjects:
            revision.record_change(session, "model", subject)


def test_changes_since_returns_exactly_the_changed_subjects(sessions: Sessions) -> None:
    assert _since(sessions, 0) == (0, set(), set())
    _record(sessions, "fraud", "churn", "fraud")
    with sessions.begin() as session:
        revision.record_change(session, "key", "k1")
    assert _since(sessions, 0) == (4, {"fraud", "churn"}, {"k1"})
    assert _since(sessions, 2) == (4, {"fraud"}, {"k1"})
    assert _since(sessions, 3) == (4, set(), {"k1"})
    assert _since(sessions, 4) == (4, set(), set())


def test_a_rolled_back_change_is_not_recorded(sessions: Sessions) -> None:
    with sessions() as session:
        revision.record_change(session, "model", "fraud")
        session.rollback()
    _record(sessions, "churn")
    assert _since(sessions, 0) == (1, {"churn"}, set())


def test_every_change_of_models_versions_and_aliases_is_recorded(sessions: Sessions, store: Store) -> None:
    def is_recorded() -> bool:
        nonlocal revision_read
        changes = _since(sessions, revision_read)
        assert changes is not None
        revision_read = changes.revision
        return changes.models == {"fraud"}

    revision_read = 0
    publish(sessions, store)
    assert is_recorded()
    build(sessions)
    assert is_recorded()
    publish_ready(sessions, store)
    assert is_recorded()
    promote(sessions, 1, 2)
    assert is_recorded()
    for call in (
        lambda s: aliases.rollback(s, "fraud", "champion", by="ann"),
        lambda s: versions.edit(s, "fraud", 1, tags={"a": "b"}),
        lambda s: aliases.remove(s, "fraud", "champion", by="ann"),
        lambda s: versions.edit(s, "fraud", 2, archived=True),
        lambda s: versions.remove(s, "fraud", 2),
        lambda s: models.remove(s, "fraud"),
    ):
        with sessions.begin() as session:
            call(session)
        assert is_recorded()


def test_a_reader_that_is_too_far_behind_must_reload(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "MAX_CHANGES", 500)
    _record(sessions, *[f"model-{i}" for i in range(1000)])
    assert _since(sessions, 499) is None
    changes = _since(sessions, 500)
    assert changes is not None
    assert len(changes.models) == 500
    with db.reading(sessions) as session:
        assert len(session.scalars(select(ChangeRow)).all()) == 500


def test_a_reader_ahead_of_the_database_must_reload(sessions: Sessions) -> None:
    """This happens after the database was restored from a backup."""
    _record(sessions, "fraud")
    assert _since(sessions, 7) is None


def test_revisions_are_committed_in_order(sessions: Sessions) -> None:
    """A reader beside many writers never sees a revision whose predecessors are missing."""
    done = threading.Event()

    def write() -> None:
        for i in range(15):
            _record(sessions, f"model-{i}")

    def write_all() -> None:
        try:
            assert threads(*[write] * 4) == [None] * 4
        finally:
            done.set()

    def read() -> int:
        newest, names, reads = 0, set(), 0
        while True:
            is_last = done.is_set()
            changes = _since(sessions, newest)
            assert changes is not None, f"gap after {newest}"
            assert changes.revision >= newest
            newest, names, reads = changes.revision, names | changes.models, reads + 1
            if is_last:
                assert (newest, len(names)) == (60, 15)
                return reads

    outcomes = threads(write_all, read, read)
    assert outcomes[0] is None
    assert all(isinstance(reads, int) for reads in outcomes[1:]), outcomes


def test_heartbeats_and_reads_do_not_change_the_revision(sessions: Sessions, store: Store) -> None:
    from registry import queue

    publish(sessions, store)
    before = _revision(sessions)
    with sessions.begin() as session:
        task = queue.claim(session, ["build"], "builder")
        assert task is not None
        queue.heartbeat(session, task.id, task.fence)
        keys.active_keys(session)
        models.search(session)
        versions.get(session, "fraud", 1)
    assert _revision(sessions) == before


@on_postgresql
def test_a_change_committed_between_the_two_reads_is_left_to_the_next(
    engine: Engine, sessions: Sessions
) -> None:
    """In a transaction without a snapshot: a reader would otherwise have to reload everything."""
    _record(sessions, "first")
    with (
        sessions.begin() as session,
        just_before(engine, "FROM changes", lambda: _record(sessions, "second")),
    ):
        changes = revision.changes_since(session, 0)
    assert changes is not None
    assert (changes.revision, changes.models) == (1, {"first"})
    changes = _since(sessions, 1)
    assert changes is not None
    assert (changes.revision, changes.models) == (2, {"second"})


@on_postgresql
def test_a_revision_waits_for_the_one_before_it(sessions: Sessions) -> None:
    outcome = run_behind(
        sessions,
        lambda session: revision.record_change(session, "model", "first"),
        lambda session: revision.record_change(session, "model", "second"),
    )
    assert outcome == 2


def test_a_new_registry_id_makes_every_reader_load_everything(sessions: Sessions) -> None:
    _record(sessions, "fraud")
    before = _revision(sessions)
    with sessions.begin() as session:
        old, new = revision.registry_id(session), revision.renew_registry_id(session)
        assert old != new == revision.registry_id(session)
    assert _since(sessions, before) is None
    _record(sessions, "fraud")
    assert _since(sessions, before) is None
    assert _since(sessions, before + 1) == (before + 2, {"fraud"}, set())
