"""Versions: publish, build, search, archive, delete."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from registry import aliases, db, models, queue, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.db import Sessions
from registry.errors import InUse, Invalid, NotFound, NotReady
from registry.jobs import jobs
from registry.tables import ModelRow, TagRow, TaskRow, VersionRow
from registry.versions import NewVersion
from registry.vocabulary import BUILD_TASK, SCORE, TRAIN
from tests.registry import child_actions
from tests.registry.helpers import (
    FORKS,
    READY,
    SIGNATURE,
    build,
    champion,
    processes,
    promote,
    publish,
    publish_ready,
    run_until_killed,
    threads,
)
from tests.registry.interleaving import just_before, on_postgresql, run_behind

PUBLISHER_LINEAGE = {
    "made_by": {"python": {"version": "3.12.1", "said_by": "publisher"}},
    "published_from": {"python": "3.11.7"},
}


def _edit(sessions: Sessions, number: int, **changes: object) -> None:
    with sessions.begin() as session:
        versions.edit(session, "fraud", number, **changes)  # type: ignore[arg-type]


def _remove(sessions: Sessions, number: int) -> None:
    with sessions.begin() as session:
        versions.remove(session, "fraud", number)


def _search(sessions: Sessions, **filters: object) -> list[int]:
    with db.reading(sessions) as session:
        page = versions.search(session, "fraud", **filters)  # type: ignore[arg-type]
        return [v.number for v in page.items]


def test_a_published_version_stores_all_statements_of_its_publisher(sessions: Sessions, store: Store) -> None:
    blob, example = store.put([b"model"]), store.put([b"a,b\n1,2\n"])
    new = NewVersion(
        model="fraud",
        artifact=blob.sha256,
        format="onnx",
        example={"artifact": example.sha256, "media_type": "text/csv"},
        target="b",
        signature={"task": "regression"},
        metrics={"auc": 0.9},
        tags={"team": "risk", "größe": "klein"},
        description="Das erste",
        made_by={"python": "3.12.1"},
        published_from={"python": "3.11.7"},
    )
    with sessions.begin() as session:
        versions.publish(session, store, new, by="ann")
    with db.reading(sessions) as session:
        version = versions.get(session, "fraud", 1)
        assert (version.state, version.model.name, version.created_by) == ("building", "fraud", "ann")
        assert {t.key: t.value for t in version.tags} == new.tags
        assert (version.metrics, version.description) == ({"auc": 0.9}, "Das erste")
        assert version.created_at.utcoffset() is not None
        assert (version.artifact, version.format, version.example, version.target) == (
            blob.sha256,
            "onnx",
            new.example,
            "b",
        )
        assert (version.publisher_signature, version.lineage) == ({"task": "regression"}, PUBLISHER_LINEAGE)
        with pytest.raises(NotReady, match="building"):
            versions.signature_of(version)


def test_a_finished_build_makes_the_version_ready_with_its_results(sessions: Sessions, store: Store) -> None:
    number = publish(sessions, store, metrics={"auc": 0.9})
    build(
        sessions,
        BuildResult(
            state="ready",
            report={"rows": 3},
            signature=SIGNATURE,
            runtime="onnx",
            metrics={"auc": 0.1, "f1": 0.8},
            lineage={"numpy": "2"},
        ),
    )
    with db.reading(sessions) as session:
        version = versions.get(session, "fraud", number)
        assert (version.state, version.runtime, version.lineage) == ("ready", "onnx", {"numpy": "2"})
        assert version.metrics == {"auc": 0.9, "f1": 0.8}  # the publisher's metric takes precedence
        assert versions.signature_of(version) == SIGNATURE
        assert version.built_at is not None


def test_the_publishers_lineage_stays_unless_the_build_replaces_it(sessions: Sessions, store: Store) -> None:
    lineages = []
    for result in (
        BuildResult(state="rejected", report={"reason": "no"}, lineage={"built_by": {}}),
        BuildResult(state="rejected", report={}, lineage={"made_by": {}}),
    ):
        number = publish(sessions, store, made_by={"python": "3.12.1"}, published_from={"python": "3.11.7"})
        build(sessions, result)
        with db.reading(sessions) as session:
            lineages.append(versions.get(session, "fraud", number).lineage)
    assert lineages == [PUBLISHER_LINEAGE | {"built_by": {}}, PUBLISHER_LINEAGE | {"made_by": {}}]


def test_an_invalid_version_is_rejected_with_its_field(sessions: Sessions, store: Store) -> None:
    blob = store.put([b"model"]).sha256
    unknown = "0" * 64
    invalid_versions = {
        "name": NewVersion(model="Fraud!", artifact=blob, format="onnx"),
        "alias": NewVersion(model="fraud", artifact=blob, format="onnx", alias="no way"),
        "format": NewVersion(model="fraud", artifact=blob, format="pmml"),
        "artifact": NewVersion(model="fraud", artifact=unknown, format="onnx"),
        "example.artifact": NewVersion(
            model="fraud",
            artifact=blob,
            format="onnx",
            example={"artifact": unknown, "media_type": "text/csv"},
        ),
        "answers": NewVersion(
            model="fraud", artifact=blob, format="onnx", answers={"artifact": blob, "media_type": "text/csv"}
        ),
        "answers.artifact": NewVersion(
            model="fraud",
            artifact=blob,
            format="onnx",
            example={"artifact": blob, "media_type": "text/csv"},
            answers={"artifact": unknown, "media_type": "text/csv"},
        ),
    }
    for field, new in invalid_versions.items():
        with pytest.raises(Invalid) as raised, sessions.begin() as session:
            versions.publish(session, store, new, by="ann")
        assert [e.field for e in raised.value.errors] == [field]
    with db.reading(sessions) as session:
        assert session.scalars(select(ModelRow)).all() == []  # a rejected publish creates no model
        assert session.scalars(select(TaskRow)).all() == []


def test_a_missing_version_is_not_found_with_a_hint(sessions: Sessions, store: Store) -> None:
    publish(sessions, store)
    with db.reading(sessions) as session:
        with pytest.raises(NotFound, match="model 'churn'"):
            versions.get(session, "churn", 1)
        with pytest.raises(NotFound, match="model 'farud'; GET /v1/models lists"):
            versions.get(session, "farud", 1)
        with pytest.raises(NotFound, match="version 'fraud:2'; the newest is 1"):
            versions.get(session, "fraud", 2)


def test_publishes_in_many_threads_get_distinct_numbers_without_gaps(
    sessions: Sessions, store: Store
) -> None:
    numbers = threads(*[lambda: [publish(sessions, store) for _ in range(10)]] * 6)
    assert sorted(n for of_one in numbers for n in of_one) == list(range(1, 61))  # type: ignore[union-attr]


def test_publishes_in_many_processes_get_distinct_numbers(url: str, sessions: Sessions, store: Store) -> None:
    numbers = processes(child_actions.publish, [(url, str(store.root), "fraud", 25)] * 4)
    assert sorted(n for of_one in numbers for n in of_one) == list(range(1, 101))
    with db.reading(sessions) as session:
        assert models.summary(session, "fraud").versions == 100
        assert session.scalar(select(func.count()).select_from(TaskRow)) == 100


def test_a_publish_killed_before_its_commit_leaves_no_rows(
    url: str, sessions: Sessions, store: Store
) -> None:
    run_until_killed(child_actions.publish_and_die, url, str(store.root))
    with db.reading(sessions) as session:
        assert [session.scalars(select(t)).all() for t in (ModelRow, VersionRow, TaskRow)] == [[], [], []]
    assert publish(sessions, store) == 1


def test_acknowledged_versions_survive_a_kill(
    url: str, sessions: Sessions, store: Store, tmp_path: Path
) -> None:
    acknowledged = tmp_path / "acknowledged"
    publisher = FORKS.Process(
        target=child_actions.publish_until_killed, args=(url, str(store.root), str(acknowledged))
    )
    publisher.start()
    while not acknowledged.exists() or acknowledged.read_text().count("\n") < 20:
        assert publisher.is_alive()
    publisher.kill()
    publisher.join()
    with db.reading(sessions) as session:
        lines = acknowledged.read_text().splitlines(keepends=True)
        for number, sha256 in (line.split() for line in lines if "\n" in line):
            assert versions.get(session, "fraud", int(number)).artifact == sha256
        for version in session.scalars(select(VersionRow)):
            assert store.path(version.artifact).read_bytes().split()[0] == str(publisher.pid).encode()
            assert session.scalar(select(TaskRow.id).where(TaskRow.subject == str(version.id)))


def test_the_number_of_a_deleted_version_is_not_reused(sessions: Sessions, store: Store) -> None:
    assert publish_ready(sessions, store, count=2) == [1, 2]
    with db.reading(sessions) as session:
        deleted_id = versions.get(session, "fraud", 2).id
    _remove(sessions, 2)
    assert publish(sessions, store) == 3
    with db.reading(sessions) as session:
        assert versions.get(session, "fraud", 3).id > deleted_id  # and neither is the id


def test_the_requested_alias_is_set_when_the_build_is_ready(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, alias="champion")
    with db.reading(sessions) as session, pytest.raises(NotFound):
        aliases.get(session, "fraud", "champion")
    build(sessions)
    assert champion(sessions) == 1
    publish(sessions, store, alias="champion")
    build(sessions, BuildResult(state="rejected", report={"reason": "no"}))
    assert champion(sessions) == 1


def test_a_late_build_does_not_take_the_alias_from_a_newer_version(sessions: Sessions, store: Store) -> None:
    for _ in range(2):
        publish(sessions, store, alias="champion")
    with sessions.begin() as session:
        older, newer = (versions.get(session, "fraud", n).id for n in (1, 2))
        versions.finish_build(session, newer, READY)
    with sessions.begin() as session:
        versions.finish_build(session, older, READY)
    assert champion(sessions) == 2


def test_the_build_of_a_deleted_version_is_not_found(sessions: Sessions, store: Store) -> None:
    publish(sessions, store)
    with sessions.begin() as session:
        task = queue.claim(session, [BUILD_TASK], "builder")
    assert task is not None
    _remove(sessions, 1)
    with sessions() as session:
        with pytest.raises(NotFound):
            versions.get_by_id(session, int(task.subject))
        with pytest.raises(NotFound):
            versions.finish_build(session, int(task.subject), READY)


def test_a_version_can_be_deleted_while_its_build_ends(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    """Both lock the task and the model; in different orders they would deadlock on PostgreSQL."""
    publish(sessions, store)
    with sessions.begin() as session:
        task = queue.claim(session, [BUILD_TASK], "builder")
    assert task is not None
    waits_for_task = threading.Event()

    def watch(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        if threading.current_thread() is deleter and sql.startswith(("UPDATE tasks", "BEGIN IMMEDIATE")):
            waits_for_task.set()

    event.listen(engine, "before_cursor_execute", watch)
    deleter = threading.Thread(target=_remove, args=(sessions, 1))
    with sessions.begin() as session:
        queue.finish(session, task.id, task.fence)
        deleter.start()
        assert waits_for_task.wait(10)
        versions.finish_build(session, int(task.subject), READY)
    deleter.join()
    with db.reading(sessions) as session:
        assert session.scalars(select(VersionRow)).all() == []


def test_editing_replaces_tags_and_description(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, tags={"a": "1", "b": "2"}, description="old")
    _edit(sessions, 1, tags={"b": "3", "c": "4"}, description="new")
    with db.reading(sessions) as session:
        version = versions.get(session, "fraud", 1)
        assert {t.key: t.value for t in version.tags} == {"b": "3", "c": "4"}
        assert version.description == "new"
    _edit(sessions, 1, tags={})
    with db.reading(sessions) as session:
        assert session.scalars(select(TagRow)).all() == []


def test_search_requires_all_tags(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, tags={"team": "risk", "stage": "test"})
    publish(sessions, store, tags={"team": "risk", "stage": "live"})
    publish(sessions, store, tags={"team": "ads"})
    assert _search(sessions, tags=[("team", "risk")]) == [2, 1]
    assert _search(sessions, tags=[("team", "risk"), ("stage", "live")]) == [2]
    assert _search(sessions, tags=[("team", "live")]) == []


@pytest.mark.parametrize(
    ("description", "q"),
    [
        ("Retrained on MARCH data", "march"),
        ("ÉTÉ à Genève", "été"),
        ("Größe", "GRÖ"),
        ("дерево решений", "ДЕРЕВО"),
        ("100% of a_b\\c", "0% of A_B\\C"),
    ],
)
def test_search_in_descriptions_ignores_case_in_every_alphabet(
    sessions: Sessions, store: Store, description: str, q: str
) -> None:
    publish(sessions, store, description=description)
    publish(sessions, store, description="aXb 100 of it")
    assert _search(sessions, q=q) == [1]


def test_pages_of_versions_stay_correct_while_versions_are_added(sessions: Sessions, store: Store) -> None:
    for _ in range(7):
        publish(sessions, store)
    numbers, token = [], None
    while True:
        with db.reading(sessions) as session:
            page = versions.search(session, "fraud", page_size=3, page_token=token)
            numbers += [v.number for v in page.items]
        publish(sessions, store)
        if (token := page.next_token) is None:
            break
    assert numbers == [7, 6, 5, 4, 3, 2, 1]


def test_only_a_ready_version_can_be_archived_and_unarchived(sessions: Sessions, store: Store) -> None:
    publish(sessions, store)
    with pytest.raises(NotReady, match="fraud:1 is building"):
        _edit(sessions, 1, archived=True)
    _edit(sessions, 1, archived=False)  # it is not archived: no effect
    build(sessions)
    _edit(sessions, 1, archived=True)
    with pytest.raises(NotReady, match="archived"):
        promote(sessions, 1)
    _edit(sessions, 1, archived=True)
    _edit(sessions, 1, archived=False)
    promote(sessions, 1)
    assert champion(sessions) == 1


@pytest.mark.parametrize("action", ["deleted", "archived"])
def test_a_version_in_use_cannot_be_deleted_or_archived(
    sessions: Sessions, store: Store, action: str
) -> None:
    def act(number: int) -> None:
        if action == "deleted":
            _remove(sessions, number)
        else:
            _edit(sessions, number, archived=True)

    publish_ready(sessions, store, count=3)
    promote(sessions, 1, 2)
    promote(sessions, 3, alias="challenger")
    with pytest.raises(InUse, match=f"fraud:2 is champion and cannot be {action}"):
        act(2)
    with pytest.raises(InUse, match=f"fraud:1 is the rollback target of champion and cannot be {action}"):
        act(1)
    with pytest.raises(InUse, match="fraud:3 is challenger"):
        act(3)
    promote(sessions, 3)
    act(1)  # the rollback target is version 2 now
    with sessions.begin() as session:
        aliases.rollback(session, "fraud", "champion", by="ann")
    assert champion(sessions) == 2


def test_a_delete_checks_aliases_under_the_lock(engine: Engine, sessions: Sessions, store: Store) -> None:
    """A delete must see a promote that commits while the delete waits for the lock."""
    publish_ready(sessions, store, count=1)
    waiting = threading.Event()

    def watch(_connection: object, _cursor: object, sql: str, *_: object) -> None:
        if threading.current_thread() is deleter and ("FOR UPDATE" in sql or sql == "BEGIN IMMEDIATE"):
            waiting.set()

    errors: list[BaseException] = []

    def delete() -> None:
        try:
            _remove(sessions, 1)
        except InUse as error:
            errors.append(error)

    event.listen(engine, "before_cursor_execute", watch)
    deleter = threading.Thread(target=delete)
    with sessions.begin() as session:
        aliases.promote(session, "fraud", "champion", 1, by="ann")
        deleter.start()
        assert waiting.wait(10)
    deleter.join()
    assert [str(e) for e in errors] == [
        "fraud:1 is champion and cannot be deleted; promote another version first"
    ]


def test_deleting_a_version_deletes_its_tags_and_cancels_its_build(sessions: Sessions, store: Store) -> None:
    publish(sessions, store, tags={"team": "risk"})
    _remove(sessions, 1)
    with db.reading(sessions) as session:
        assert session.scalars(select(TagRow)).all() == []
        assert session.scalars(select(TaskRow.state)).all() == [queue.CANCELLED]
    with pytest.raises(NotFound):
        _remove(sessions, 1)


def _start_job(sessions: Sessions, number: int) -> int:
    with sessions.begin() as session:
        version = versions.get(session, "fraud", number)
        new = jobs.NewJob(kind=SCORE, spec={}, model="fraud", version=version)
        return jobs.create(session, new, by="ann").id


def test_a_model_is_not_deleted_during_a_training_into_it(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    with sessions.begin() as session:
        training = jobs.create(session, jobs.NewJob(kind=TRAIN, spec={}, model="fraud"), by="ann").id
        jobs.create(session, jobs.NewJob(kind=TRAIN, spec={}, model="churn"), by="ann")
    message = f"fraud cannot be deleted while job {training} needs it"
    with pytest.raises(InUse, match=message), sessions.begin() as session:
        models.remove(session, "fraud")
    with sessions.begin() as session:
        jobs.cancel(session, training)
        models.remove(session, "fraud")


@pytest.mark.parametrize("kind", ["version", "model"])
def test_the_version_of_an_open_job_cannot_be_deleted(sessions: Sessions, store: Store, kind: str) -> None:
    publish_ready(sessions, store, count=2)
    job_id = _start_job(sessions, 1)

    def delete() -> None:
        with sessions.begin() as session:
            versions.remove(session, "fraud", 1) if kind == "version" else models.remove(session, "fraud")

    with pytest.raises(InUse, match=f"cannot be deleted while job {job_id} needs it; cancel the job first"):
        delete()
    if kind == "version":
        _remove(sessions, 2)  # no job needs it
    _edit(sessions, 1, archived=True)  # archiving is allowed: the job fails and can be resumed
    with sessions.begin() as session:
        jobs.cancel(session, job_id)
    delete()
    with db.reading(sessions) as session:
        job = jobs.get(session, job_id)
        assert (job.model, job.version, job.version_id) == ("fraud", 1, None)


def _promote_first(session: Session) -> int:
    return aliases.promote(session, "fraud", "champion", 1, by="ann").version.number


def _archive_first(session: Session) -> str:
    return versions.edit(session, "fraud", 1, archived=True).state


def _remove_first(session: Session) -> None:
    versions.remove(session, "fraud", 1)


@on_postgresql
@pytest.mark.parametrize("change", [_archive_first, _remove_first])
def test_a_version_that_is_promoted_at_the_same_time_is_neither_archived_nor_deleted(
    sessions: Sessions, store: Store, change: Callable[[Session], object]
) -> None:
    publish_ready(sessions, store)
    assert isinstance(run_behind(sessions, _promote_first, change), InUse)
    assert champion(sessions) == 1


@on_postgresql
@pytest.mark.parametrize("change", [_archive_first, _remove_first])
def test_a_version_that_is_archived_or_deleted_at_the_same_time_is_not_promoted(
    sessions: Sessions, store: Store, change: Callable[[Session], object]
) -> None:
    publish_ready(sessions, store, count=2)
    outcome = run_behind(sessions, change, _promote_first)
    assert isinstance(outcome, NotReady if change is _archive_first else NotFound)


@on_postgresql
def test_a_version_deleted_twice_at_the_same_time_is_not_found(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    assert isinstance(run_behind(sessions, _remove_first, _remove_first), NotFound)


@on_postgresql
def test_a_version_that_is_deleted_while_its_build_waits_for_the_model_is_not_found(
    engine: Engine, sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=2)
    with db.reading(sessions) as session:
        version_id = versions.get(session, "fraud", 1).id
    with sessions() as session:
        loaded = versions.get_by_id(session, version_id)
        with just_before(engine, "FOR UPDATE", lambda: _remove(sessions, 1)), pytest.raises(NotFound):
            versions.finish_build(session, version_id, READY)
        assert loaded.number == 1


@on_postgresql
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_builds_that_end_at_the_same_time_give_the_alias_to_the_newest_version(
    sessions: Sessions, store: Store, order: tuple[int, int]
) -> None:
    for _ in range(2):
        publish(sessions, store, alias="champion")
    with db.reading(sessions) as session:
        first, second = (versions.get(session, "fraud", number).id for number in order)
    outcome = run_behind(
        sessions,
        lambda session: versions.finish_build(session, first, READY),
        lambda session: versions.finish_build(session, second, READY).state,
    )
    assert outcome == "ready"
    assert champion(sessions) == 2


@on_postgresql
def test_the_alias_of_a_publisher_stays_at_a_newer_version_promoted_at_the_same_time(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=2)

    def set_alias(session: Session) -> None:
        versions.set_publisher_alias(session, versions.get(session, "fraud", 1), "champion")

    outcome = run_behind(
        sessions, lambda session: aliases.promote(session, "fraud", "champion", 2, by="ann"), set_alias
    )
    assert outcome is None
    assert champion(sessions) == 2


@on_postgresql
def test_a_version_published_at_the_same_time_gets_the_next_number(sessions: Sessions, store: Store) -> None:
    publish(sessions, store)
    new = NewVersion(model="fraud", artifact=store.put([b"a model"]).sha256, format="onnx")
    outcome = run_behind(
        sessions,
        lambda session: versions.publish(session, store, new, by="ann"),
        lambda session: versions.publish(session, store, new, by="bob").number,
    )
    assert outcome == 3


@on_postgresql
def test_a_version_read_again_in_a_transaction_is_as_another_one_left_it(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store)
    with sessions.begin() as session:
        version = versions.get(session, "fraud", 1)
        _edit(sessions, 1, archived=True)
        assert version.state == "ready"
        assert versions.get(session, "fraud", 1).state == "archived"
        _edit(sessions, 1, archived=False)
        assert versions.get_by_id(session, version.id).state == "ready"
