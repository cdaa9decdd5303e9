"""Models: summaries, search, pages, deletion."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.orm import Session

from registry import aliases, db, models, queue
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import InUse, Invalid, NotFound, StaleTask
from registry.jobs import jobs
from registry.jobs.jobs import NewJob
from registry.tables import AliasEventRow, AliasRow, ModelRow, TagRow, TaskRow, VersionRow
from registry.vocabulary import SCORE
from tests.registry.helpers import build, promote, publish, publish_ready, threads
from tests.registry.interleaving import interleaved, just_before, on_postgresql, run_behind


def _names(sessions: Sessions, **filters: object) -> list[str]:
    with db.reading(sessions) as session:
        return [s.model.name for s in models.search(session, **filters).items]  # type: ignore[arg-type]


def test_a_summary_has_the_number_of_versions_and_the_aliases(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1)
    promote(sessions, 3, alias="challenger")
    publish(sessions, store, "churn")
    with db.reading(sessions) as session:
        summary = models.summary(session, "fraud")
        assert (summary.versions, summary.latest, summary.aliases) == (3, 3, {"challenger": 3, "champion": 1})
        assert [(s.versions, s.latest) for s in models.search(session).items] == [(1, 1), (3, 3)]
        with pytest.raises(NotFound, match="there is no model 'spam'"):
            models.summary(session, "spam")


def test_models_are_sorted_by_the_bytes_of_their_names(sessions: Sessions, store: Store) -> None:
    names = ["a-b", "a.b", "a1", "a_b", "ab", "a-", "0", "a"]
    for name in names:
        publish(sessions, store, name)
    assert _names(sessions) == sorted(names)


def test_names_have_a_byte_collation_in_postgresql(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            collation = connection.exec_driver_sql(
                "SELECT collation_name FROM information_schema.columns"
                " WHERE table_name = 'models' AND column_name = 'name'"
            ).scalar()
        assert collation == "C"


def test_search_has_no_wildcards_and_ignores_case(sessions: Sessions, store: Store) -> None:
    for name in ("fraud", "fraud_eu", "fraud.eu", "churn"):
        publish(sessions, store, name)
    assert _names(sessions, q="FRAUD") == ["fraud", "fraud.eu", "fraud_eu"]
    assert _names(sessions, q="_") == ["fraud_eu"]
    assert _names(sessions, q="%") == []
    assert _names(sessions, q="") == ["churn", "fraud", "fraud.eu", "fraud_eu"]


def test_search_by_tags_requires_all_tags_on_one_version(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, tags={"team": "risk"})
    publish(sessions, store, tags={"stage": "live"})
    publish(sessions, store, "churn", tags={"team": "risk", "stage": "live"})
    assert _names(sessions, tags=[("team", "risk")]) == ["churn", "fraud"]
    assert _names(sessions, tags=[("team", "risk"), ("stage", "live")]) == ["churn"]
    assert _names(sessions, q="fr", tags=[("team", "risk")]) == ["fraud"]


def test_pages_of_models_stay_correct_while_models_are_added_and_deleted(
    sessions: Sessions, store: Store
) -> None:
    for i in range(10, 20):
        publish(sessions, store, f"model-{i}")
    listed: list[str] = []
    token = None
    while True:
        with db.reading(sessions) as session:
            page = models.search(session, page_size=3, page_token=token)
            listed += [s.model.name for s in page.items]
        publish(sessions, store, f"model-{len(listed):02}-early")  # sorts before the current page: not listed
        if len(listed) == 3:
            publish(sessions, store, "model-15-new")  # sorts after it: listed
            with sessions.begin() as session:
                models.remove(session, "model-12")  # the last item of the page
        if (token := page.next_token) is None:
            break
    assert listed == [f"model-{i}" for i in range(10, 16)] + ["model-15-new"] + [
        f"model-{i}" for i in range(16, 20)
    ]


def test_concurrent_first_publishes_of_a_name_create_one_model(sessions: Sessions, store: Store) -> None:
    numbers = threads(*[lambda: publish(sessions, store, "new")] * 6)
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]  # type: ignore[type-var]
    assert _names(sessions) == ["new"]


def test_an_invalid_name_creates_no_model(sessions: Sessions) -> None:
    with pytest.raises(Invalid), sessions.begin() as session:
        models.lock_or_create(session, "Not A Name", "ann")
    assert _names(sessions) == []


def test_a_model_with_an_alias_cannot_be_deleted(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1)
    promote(sessions, 2, alias="challenger")
    with pytest.raises(InUse, match="still has the alias challenger, champion"), sessions.begin() as session:
        models.remove(session, "fraud")
    assert _names(sessions) == ["fraud"]


def test_deleting_a_model_deletes_its_versions_history_tags_and_builds(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=3, tags={"team": "risk"})
    publish_ready(sessions, store, "churn")
    promote(sessions, 1, 2, 3, 1)
    promote(sessions, 1, model="churn")
    publish(sessions, store)  # its build is queued
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


def test_concurrent_deletes_and_publishes_of_a_model_do_not_deadlock(
    sessions: Sessions, store: Store
) -> None:
    def delete() -> None:
        for _ in range(15):
            # NotFound: the other thread deleted it. InUse: it was published while this thread waited
            with suppress(NotFound, InUse), sessions.begin() as session:
                models.remove(session, "fraud")

    def publish_and_build() -> None:
        for _ in range(15):
            publish(sessions, store)
            with suppress(NotFound, StaleTask):  # deleted during its build
                build(sessions)

    publish(sessions, store)
    assert threads(delete, delete, publish_and_build, publish_and_build) == [None] * 4
    with db.reading(sessions) as session:
        ids = {str(i) for i in session.scalars(select(VersionRow.id))}
        open_builds = session.scalars(select(TaskRow.subject).where(TaskRow.state.in_(("queued", "running"))))
        assert set(open_builds) <= ids  # builds of deleted versions are cancelled


def test_a_publish_that_waited_for_a_delete_creates_the_model_again(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    publish(sessions, store)
    waiting = threading.Event()

    def watch(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        if threading.current_thread() is publisher and ("FOR UPDATE" in sql or sql == "BEGIN IMMEDIATE"):
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


def _remove(session: Session) -> None:
    models.remove(session, "fraud")


@on_postgresql
def test_a_model_that_gets_an_alias_at_the_same_time_is_not_deleted(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    outcome = run_behind(
        sessions, lambda session: aliases.promote(session, "fraud", "champion", 1, by="ann"), _remove
    )
    assert isinstance(outcome, InUse)
    assert _names(sessions) == ["fraud"]


@on_postgresql
def test_a_model_whose_job_is_accepted_at_the_same_time_is_not_deleted(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)

    def accept(session: Session) -> None:
        models.lock(session, "fraud")
        version = session.scalars(select(VersionRow)).one()
        jobs.create(session, NewJob(kind=SCORE, spec={}, model="fraud", version=version), by="ann")

    outcome = run_behind(sessions, accept, _remove)
    assert isinstance(outcome, InUse)
    assert "while job 1 needs it" in str(outcome)


@on_postgresql
def test_a_model_that_gets_a_version_before_the_lock_is_not_deleted(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    with (
        just_before(engine, "FOR UPDATE", lambda: publish(sessions, store)),
        pytest.raises(InUse, match="was published at the same time"),
        sessions.begin() as session,
    ):
        _remove(session)
    with db.reading(sessions) as session:
        assert queue.depth(session, ["build"]) == 1


@on_postgresql
def test_a_model_deleted_twice_at_the_same_time_is_not_found(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    assert isinstance(run_behind(sessions, _remove, _remove), NotFound)


@on_postgresql
def test_a_locked_model_is_as_the_transaction_before_it_left_it(sessions: Sessions, store: Store) -> None:
    """Its last number would be given to two versions."""
    publish(sessions, store)
    with sessions.begin() as session:
        model = models.get(session, "fraud")
        publish(sessions, store)
        assert model.last_number == 1
        assert models.lock(session, "fraud").last_number == 2


@on_postgresql
def test_a_model_that_another_transaction_creates_and_deletes_is_created_again(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    """The insertion fails, and then the model to lock is gone."""

    def remove() -> None:
        with sessions.begin() as session:
            _remove(session)

    steps = (("INSERT INTO models", lambda: publish(sessions, store)), ("FOR UPDATE", remove))
    with interleaved(engine, *steps), sessions.begin() as session:
        assert models.lock_or_create(session, "fraud", "ann").last_number == 0
    assert _names(sessions) == ["fraud"]
