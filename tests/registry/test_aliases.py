"""Aliases: promote, rollback, history and rollouts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import aliases, db, versions
from registry import revision as changes
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Conflict, Invalid, NotFound, NotReady
from registry.tables import AliasEventRow
from tests.registry import child_actions
from tests.registry.helpers import champion, processes, promote, publish, publish_ready, threads
from tests.registry.interleaving import on_postgresql, run_behind


def _rollback(sessions: Sessions) -> int:
    with sessions.begin() as session:
        return aliases.rollback(session, "fraud", "champion", by="bob", reason="it was worse").version.number


def _moves(sessions: Sessions) -> list[tuple[str, int | None]]:
    """Return the events, oldest first."""
    with db.reading(sessions) as session:
        page = aliases.history(session, "fraud", "champion", page_size=1000)
        return [(e.action, e.version) for e in reversed(page.items)]


def test_rollbacks_return_to_the_previous_versions_in_order(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1, 2, 3)
    assert (_rollback(sessions), _rollback(sessions)) == (2, 1)
    with pytest.raises(Conflict, match="fraud@champion has no earlier version"):
        _rollback(sessions)
    assert champion(sessions) == 1
    assert _moves(sessions) == [
        ("promote", 1),
        ("promote", 2),
        ("promote", 3),
        ("rollback", 2),
        ("rollback", 1),
    ]


def test_a_rollback_after_a_promote_skips_rolled_back_versions(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=4)
    promote(sessions, 1, 2, 3)
    assert _rollback(sessions) == 2
    promote(sessions, 4)
    assert [_rollback(sessions), _rollback(sessions)] == [2, 1]


def test_rollback_never_goes_to_the_current_version(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2, 1)
    assert [_rollback(sessions), _rollback(sessions)] == [2, 1]
    with pytest.raises(Conflict):
        _rollback(sessions)


@pytest.mark.parametrize("change", ["deleted", "archived"])
def test_rollback_skips_deleted_and_archived_versions(sessions: Sessions, store: Store, change: str) -> None:
    publish_ready(sessions, store, count=4)
    promote(sessions, 1, 2, 3, 4)
    with sessions.begin() as session:
        if change == "deleted":
            versions.remove(session, "fraud", 2)
        else:
            versions.edit(session, "fraud", 2, archived=True)
    assert [_rollback(sessions), _rollback(sessions)] == [3, 1]


def test_an_unarchived_version_is_a_rollback_target_again(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1, 2, 3)
    for archived in (True, False):
        with sessions.begin() as session:
            versions.edit(session, "fraud", 1, archived=archived)
    assert [_rollback(sessions), _rollback(sessions)] == [2, 1]


def test_promoting_the_current_version_is_not_a_move(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    with sessions.begin() as session:
        aliases.promote(session, "fraud", "champion", 1, by="ann", edge_percent=5)
    with db.reading(sessions) as session:
        revision = changes.current(session)
    with sessions.begin() as session:
        aliases.promote(session, "fraud", "champion", 1, by="ann", edge_percent=5)
    assert _moves(sessions) == [("promote", 1)]
    with sessions.begin() as session:
        assert changes.current(session) == revision
        assert aliases.promote(session, "fraud", "champion", 1, by="ann", edge_percent=10).edge_percent == 10
        assert changes.current(session) == revision + 1
    assert _moves(sessions) == [("promote", 1), ("rollout", 1)]
    promote(sessions, 1, 1)
    assert _moves(sessions) == [("promote", 1), ("rollout", 1), ("rollout", 1)]


def test_only_an_existing_ready_version_can_be_promoted(sessions: Sessions, store: Store) -> None:
    with pytest.raises(NotFound, match="model 'fraud'"):
        promote(sessions, 1)
    publish(sessions, store)
    with pytest.raises(NotReady, match="fraud:1 is building; only a ready version can be champion"):
        promote(sessions, 1)
    with pytest.raises(NotFound, match="version 'fraud:2'"):
        promote(sessions, 2)
    with pytest.raises(Invalid):
        promote(sessions, 1, alias="Champion!")


def test_aliases_of_two_models_are_independent(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    publish_ready(sessions, store, "churn")
    promote(sessions, 1, 2)
    promote(sessions, 1, model="churn")
    assert (champion(sessions), champion(sessions, "churn")) == (2, 1)
    with sessions.begin() as session, pytest.raises(Conflict):
        aliases.rollback(session, "churn", "champion", by="ann")


def test_the_history_records_author_time_and_reason(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    before = datetime.now(UTC)
    promote(sessions, 1, 2)
    _rollback(sessions)
    with db.reading(sessions) as session:
        newest = aliases.history(session, "fraud", "champion").items[0]
        assert (newest.version, newest.by, newest.reason) == (1, "bob", "it was worse")
        assert before <= newest.at <= datetime.now(UTC)
        with pytest.raises(NotFound):
            aliases.history(session, "fraud", "challenger")


def test_event_at_returns_the_version_at_a_time(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=3)
    moments = [datetime.now(UTC)]
    for number in (1, 2, 3):
        promote(sessions, number)
        moments.append(datetime.now(UTC))
    with sessions.begin() as session:
        aliases.remove(session, "fraud", "champion", by="ann")
    moments.append(datetime.now(UTC))
    with db.reading(sessions) as session:
        for number in (1, 2, 3):
            for zone in (UTC, timezone(timedelta(hours=9, minutes=30))):
                moment = moments[number].astimezone(zone)
                assert aliases.event_at(session, "fraud", "champion", moment).version == number
        first = session.scalars(select(AliasEventRow.at).order_by(AliasEventRow.id)).first()
        assert first is not None
        assert aliases.event_at(session, "fraud", "champion", first).version == 1  # inclusive
        for moment in (moments[0], moments[-1], datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))):
            with pytest.raises(NotFound, match="it pointed to no version"):
                aliases.event_at(session, "fraud", "champion", moment)
        last = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
        with pytest.raises(NotFound, match="it pointed to no version"):
            aliases.event_at(session, "fraud", "champion", last)


def test_the_history_has_pages(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2, 1, 2, 1)
    numbers, token = [], None
    with db.reading(sessions) as session:
        while True:
            page = aliases.history(session, "fraud", "champion", page_size=2, page_token=token)
            numbers += [e.version for e in page.items]
            if (token := page.next_token) is None:
                break
    assert numbers == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("in_one_transaction", [True, False])
def test_a_deleted_alias_keeps_its_history_but_not_its_rollback_targets(
    sessions: Sessions, store: Store, in_one_transaction: bool
) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2)
    with sessions.begin() as session:
        aliases.remove(session, "fraud", "champion", by="ann")
        if in_one_transaction:
            aliases.promote(session, "fraud", "champion", 1, by="ann")
    if not in_one_transaction:
        with db.reading(sessions) as session, pytest.raises(NotFound):
            aliases.get(session, "fraud", "champion")
        promote(sessions, 1)
    assert champion(sessions) == 1
    assert _moves(sessions) == [("promote", 1), ("promote", 2), ("delete", None), ("promote", 1)]
    with pytest.raises(Conflict, match="no earlier version"):
        _rollback(sessions)
    promote(sessions, 2)
    assert _rollback(sessions) == 1


def _check_event_chain(sessions: Sessions, moves: int) -> None:
    """Check that each event replaced the one before it, and that the alias refers to the last."""
    with db.reading(sessions) as session:
        events = session.scalars(select(AliasEventRow).order_by(AliasEventRow.id)).all()
        assert [e.previous_id for e in events] == [None, *[e.id for e in events[:-1]]]
        assert all(a.version != b.version for a, b in pairwise(events))
        assert all(a.at <= b.at for a, b in pairwise(events))
        assert 1 <= len(events) <= moves
        assert aliases.get(session, "fraud", "champion").event_id == events[-1].id


def test_promotes_in_many_threads_form_one_event_chain(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=6)
    assert threads(*[lambda n=n: promote(sessions, n, 7 - n, n) for n in range(1, 7)]) == [None] * 6
    _check_event_chain(sessions, 18)


def test_promotes_in_many_processes_form_one_event_chain(url: str, sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=4)
    processes(child_actions.promote, [(url, "fraud", [n, 5 - n] * 5) for n in range(1, 5)])
    _check_event_chain(sessions, 40)


def test_concurrent_rollbacks_each_go_back_one_version(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=5)
    promote(sessions, 1, 2, 3, 4, 5)
    assert sorted(threads(*[lambda: _rollback(sessions)] * 4)) == [1, 2, 3, 4]  # type: ignore[type-var]
    assert champion(sessions) == 1


def test_a_changed_rollout_share_is_an_event_but_not_a_move(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2)
    for percent, reason in ((10, None), (50, "no complaints"), (50, "again"), (None, None)):
        with sessions.begin() as session:
            aliases.promote(session, "fraud", "champion", 2, by="bob", reason=reason, edge_percent=percent)
    with db.reading(sessions) as session:
        events = aliases.history(session, "fraud", "champion").items[:3]
        assert [(e.action, e.version, e.reason) for e in reversed(events)] == [
            ("rollout", 2, "for 10 % of the devices"),
            ("rollout", 2, "no complaints"),
            ("rollout", 2, "for all of the devices"),
        ]
    assert _rollback(sessions) == 1


@on_postgresql
@pytest.mark.parametrize("first", [2, 3])
def test_promotions_at_the_same_time_refer_to_each_other(
    sessions: Sessions, store: Store, first: int
) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1)

    def promote_in(session: Session, number: int) -> int:
        read_before = aliases.get(session, "fraud", "champion")
        assert read_before.version.number == 1
        return aliases.promote(session, "fraud", "champion", number, by="ann").version.number

    outcome = run_behind(sessions, lambda s: promote_in(s, first), lambda s: promote_in(s, 5 - first))
    assert outcome == 5 - first
    _check_event_chain(sessions, 3)
    assert [_rollback(sessions), _rollback(sessions)] == [first, 1]


@on_postgresql
def test_a_rollback_behind_a_promotion_goes_back_to_the_version_before_it(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1, 2)

    def roll_back(session: Session) -> int:
        read_before = aliases.get(session, "fraud", "champion")
        assert read_before.version.number == 2
        return aliases.rollback(session, "fraud", "champion", by="ann").version.number

    outcome = run_behind(
        sessions, lambda session: aliases.promote(session, "fraud", "champion", 3, by="ann"), roll_back
    )
    assert outcome == 2
    assert champion(sessions) == 2


@on_postgresql
def test_a_deletion_behind_another_one_is_not_found(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    promote(sessions, 1)
    outcome = run_behind(
        sessions,
        lambda session: aliases.remove(session, "fraud", "champion", by="ann"),
        lambda session: aliases.remove(session, "fraud", "champion", by="bob"),
    )
    assert isinstance(outcome, NotFound)
    assert _moves(sessions) == [("promote", 1), ("delete", None)]


@on_postgresql
def test_a_promotion_behind_a_deletion_starts_a_new_history(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1)
    outcome = run_behind(
        sessions,
        lambda session: aliases.remove(session, "fraud", "champion", by="ann"),
        lambda session: aliases.promote(session, "fraud", "champion", 2, by="bob").event.previous_id,
    )
    assert outcome is None
    assert champion(sessions) == 2
