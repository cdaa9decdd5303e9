"""Models: listed by name, searched, deleted with everything that is theirs."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from sqlalchemy import Engine, event, select

from registry import aliases, db, models, queue
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import InUse, Invalid, NotFound, StaleTask
from registry.tables import AliasEventRow, AliasRow, ModelRow, TagRow, TaskRow, VersionRow
from tests.registry.helpers import build, promote, publish, publish_ready, threads


def _names(sessions: Sessions, **query: object) -> list[str]:
    with db.reading(sessions) as session:
        return [s.model.name for s in models.search(session, **query).items]  # type: ignore[arg-type]


def test_a_summary_counts_versions_and_shows_aliases(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1)
    promote(sessions, 3, alias="challenger")
    publish(sessions, store, "churn")
    with db.reading(sessions) as session:
        found = models.summary(session, "fraud")
        assert (found.versions, found.latest, found.aliases) == (3, 3, {"challenger": 3, "champion": 1})
        assert [s.versions for s in models.search(session).items] == [1, 3]
        with pytest.raises(NotFound, match="there is no model 'spam'"):
            models.summary(session, "spam")


def test_models_are_listed_by_the_bytes_of_their_names_on_every_database(
    sessions: Sessions, store: Store
) -> None:
    names = ["a-b", "a.b", "a1", "a_b", "ab", "a-", "0", "a"]
    for name in names:
        publish(sessions, store, name)
    assert _names(sessions) == sorted(names)


def test_names_sort_by_bytes_also_where_the_database_would_not(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            collation = connection.exec_driver_sql(
                "SELECT collation_name FROM information_schema.columns"
                " WHERE table_name = 'models' AND column_name = 'name'"
            ).scalar()
        assert collation == "C"


def test_search_takes_the_text_literally(sessions: Sessions, store: Store) -> None:
    for name in ("fraud", "fraud_eu", "fraud.eu", "churn"):
        publish(sessions, store, name)
    assert _names(sessions, q="FRAUD") == ["fraud", "fraud.eu", "fraud_eu"]
    assert _names(sessions, q="_") == ["fraud_eu"]
    assert _names(sessions, q="%") == []
    assert _names(sessions, q="") == ["churn", "fraud", "fraud.eu", "fraud_eu"]


def test_search_by_tags_wants_one_version_with_all_of_them(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, tags={"team": "risk"})
    publish(sessions, store, tags={"stage": "live"})
    publish(sessions, store, "churn", tags={"team": "risk", "stage": "live"})
    assert _names(sessions, tags=[("team", "risk")]) == ["churn", "fraud"]
    assert _names(sessions, tags=[("team", "risk"), ("stage", "live")]) == ["churn"]
    assert _names(sessions, q="fr", tags=[("team", "risk")]) == ["fraud"]


def test_pages_of_models_stay_right_while_models_come_and_go(sessions: Sessions, store: Store) -> None:
    for i in range(10, 20):
        publish(sessions, store, f"model-{i}")
    seen: list[str] = []
    token = None
    while True:
        with db.reading(sessions) as session:
            page = models.search(session, page_size=3, page_token=token)
            seen += [s.model.name for s in page.items]
        publish(sessions, store, f"model-{len(seen):02}-early")  # before what was seen: not shown
        if len(seen) == 3:
            publish(sessions, store, "model-15-new")  # after it: shown
            with sessions.begin() as session:
                models.remove(session, "model-12")  # the page's own last one
        if (token := page.next_token) is None:
            break
    assert seen == [f"model-{i}" for i in range(10, 16)] + ["model-15-new"] + [
        f"model-{i}" for i in range(16, 20)
    ]


def test_one_name_published_for_the_first_time_by_many_is_one_model(sessions: Sessions, store: Store) -> None:
    numbers = threads(*[lambda: publish(sessions, store, "new")] * 6)
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]  # type: ignore[type-var]
    assert _names(sessions) == ["new"]


def test_a_bad_name_makes_no_model(sessions: Sessions) -> None:
    with pytest.raises(Invalid), sessions.begin() as session:
        models.lock_or_create(session, "Not A Name", "ann")
    assert _names(sessions) == []


def test_a_model_with_an_alias_is_not_deleted(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1)
    promote(sessions, 2, alias="challenger")
    with pytest.raises(InUse, match="still has the alias challenger, champion"), sessions.begin() as session:
        models.remove(session, "fraud")
    assert _names(sessions) == ["fraud"]


def test_a_deleted_model_takes_versions_history_tags_and_builds_with_it(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=3, tags={"team": "risk"})
    publish_ready(sessions, store, "churn")
    promote(sessions, 1, 2, 3, 1)
    promote(sessions, 1, model="churn")
    publish(sessions, store)  # its build waits
    with sessions.begin() as session:
        aliases.rollback(session, "fraud", "champion", by="ann")
        aliases.remove(session, "fraud", "champion", by="ann")
        models.remove(session, "fraud")
    with db.reading(sessions) as session:
        assert session.scalars(select(ModelRow.name)).all() == ["churn"]
        assert len(session.scalars(select(VersionRow)).all()) == 1
        assert session.scalars(select(TagRow)).all() == []
        assert len(session.scalars(select(AliasRow)).all()) == 1
        assert len(session.scalars(select(AliasEventRow)).all()) == 1
        assert queue.depth(session, ["build"]) == 0
    with pytest.raises(NotFound), sessions.begin() as session:
        models.remove(session, "fraud")
    assert publish(sessions, store) == 1


def test_models_are_deleted_and_published_at_the_same_moment_without_a_deadlock(
    sessions: Sessions, store: Store
) -> None:
    def delete() -> None:
        for _ in range(15):
            # NotFound: the other was first. InUse: published while it waited
            with suppress(NotFound, InUse), sessions.begin() as session:
                models.remove(session, "fraud")

    def publish_and_build() -> None:
        for _ in range(15):
            publish(sessions, store)
            with suppress(NotFound, StaleTask):  # deleted while it was built
                build(sessions)

    publish(sessions, store)
    assert threads(delete, delete, publish_and_build, publish_and_build) == [None] * 4
    with db.reading(sessions) as session:
        ids = {str(i) for i in session.scalars(select(VersionRow.id))}
        waiting = session.scalars(select(TaskRow.subject).where(TaskRow.state.in_(("queued", "running"))))
        assert set(waiting) <= ids  # no build of what is gone


def test_a_publisher_that_waited_for_a_delete_starts_the_model_anew(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    publish(sessions, store)
    waiting = threading.Event()

    def watch(_connection: object, _cursor: object, said: str, *_: object) -> None:
        if threading.current_thread() is publisher and ("FOR UPDATE" in said or said == "BEGIN IMMEDIATE"):
            waiting.set()

    event.listen(engine, "before_cursor_execute", watch)
    numbers: list[int] = []
    publisher = threading.Thread(target=lambda: numbers.append(publish(sessions, store)))
    with sessions.begin() as session:
        models.remove(session, "fraud")
        publisher.start()
        assert waiting.wait(10)
    publisher.join()
    assert numbers == [1]
