"""The revision: readers learn exactly what changed, in the order in which it was committed."""

from __future__ import annotations

import threading

import pytest
from sqlalchemy import select

from registry import aliases, db, keys, models, revision, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.tables import ChangeRow
from tests.registry.helpers import build, promote, publish, publish_ready, threads


def _since(sessions: Sessions, known: int) -> revision.Changes | None:
    with db.reading(sessions) as session:
        return revision.changes_since(session, known)


def _revision(sessions: Sessions) -> int:
    with db.reading(sessions) as session:
        return revision.current(session)


def _note(sessions: Sessions, *subjects: str) -> None:
    with sessions.begin() as session:
        for subject in subjects:
            revision.record_change(session, "model", subject)


def test_since_names_what_changed_and_nothing_else(sessions: Sessions) -> None:
    assert _since(sessions, 0) == (0, set(), set())
    _note(sessions, "fraud", "churn", "fraud")
    with sessions.begin() as session:
        revision.record_change(session, "key", "k1")
    assert _since(sessions, 0) == (4, {"fraud", "churn"}, {"k1"})
    assert _since(sessions, 2) == (4, {"fraud"}, {"k1"})
    assert _since(sessions, 3) == (4, set(), {"k1"})
    assert _since(sessions, 4) == (4, set(), set())


def test_a_change_that_was_rolled_back_never_was(sessions: Sessions) -> None:
    with sessions() as session:
        revision.record_change(session, "model", "fraud")
        session.rollback()
    _note(sessions, "churn")
    assert _since(sessions, 0) == (1, {"churn"}, set())


def test_everything_that_readers_hold_is_noted(sessions: Sessions, store: Store) -> None:
    def noted() -> bool:
        nonlocal known
        found = _since(sessions, known)
        assert found is not None
        known = found.revision
        return found.models == {"fraud"}

    known = 0
    publish(sessions, store)
    assert noted()
    build(sessions)
    assert noted()
    publish_ready(sessions, store)
    assert noted()
    promote(sessions, 1, 2)
    assert noted()
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
        assert noted()


def test_a_reader_too_far_behind_is_told_to_reload(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revision, "MAX_CHANGES", 500)
    _note(sessions, *[f"model-{i}" for i in range(1000)])
    assert _since(sessions, 499) is None
    found = _since(sessions, 500)
    assert found is not None
    assert len(found.models) == 500
    with db.reading(sessions) as session:
        assert len(session.scalars(select(ChangeRow)).all()) == 500


def test_a_reader_that_knows_more_than_the_database_is_told_to_reload(sessions: Sessions) -> None:
    """The database was restored from a backup."""
    _note(sessions, "fraud")
    assert _since(sessions, 7) is None


def test_revisions_are_committed_in_their_order(sessions: Sessions) -> None:
    """A reader beside many writers never sees a revision whose predecessors are missing."""
    done = threading.Event()

    def write() -> None:
        for i in range(15):
            _note(sessions, f"model-{i}")

    def write_all() -> None:
        try:
            assert threads(*[write] * 4) == [None] * 4
        finally:
            done.set()

    def read() -> int:
        known, names, looks = 0, set(), 0
        while True:
            last = done.is_set()
            found = _since(sessions, known)
            assert found is not None, f"gap after {known}"
            assert found.revision >= known
            known, names, looks = found.revision, names | found.models, looks + 1
            if last:
                assert (known, len(names)) == (60, 15)
                return looks

    outcomes = threads(write_all, read, read)
    assert outcomes[0] is None
    assert all(isinstance(looks, int) for looks in outcomes[1:]), outcomes


def test_progress_and_reads_leave_the_revision_alone(sessions: Sessions, store: Store) -> None:
    from registry import queue

    publish(sessions, store)
    known = _revision(sessions)
    with sessions.begin() as session:
        task = queue.claim(session, ["build"], "builder")
        assert task is not None
        queue.heartbeat(session, task.id, task.fence)
        keys.active_keys(session)
        models.search(session)
        versions.get(session, "fraud", 1)
    assert _revision(sessions) == known
