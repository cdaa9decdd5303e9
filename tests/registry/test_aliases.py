"""Aliases: one pointer, every move kept, the way back always the way it came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from sqlalchemy import select

from registry import aliases, db, versions
from registry import revision as changes
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Conflict, Invalid, NotFound, NotReady
from registry.tables import AliasEventRow
from tests.registry import child_actions
from tests.registry.helpers import champion, processes, promote, publish, publish_ready, threads


def _rollback(sessions: Sessions) -> int:
    with sessions.begin() as session:
        return aliases.rollback(session, "fraud", "champion", by="bob", reason="it was worse").version.number


def _moves(sessions: Sessions) -> list[tuple[str, int | None]]:
    """Oldest first."""
    with db.reading(sessions) as session:
        page = aliases.history(session, "fraud", "champion", page_size=1000)
        return [(e.action, e.version) for e in reversed(page.items)]


def test_rollback_walks_back_the_way_the_alias_came(sessions: Sessions, store: Store) -> None:
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


def test_a_promote_after_a_rollback_comes_back_to_where_it_stood(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=4)
    promote(sessions, 1, 2, 3)
    assert _rollback(sessions) == 2
    promote(sessions, 4)
    assert [_rollback(sessions), _rollback(sessions)] == [2, 1]


def test_rollback_goes_to_another_version_than_the_one_that_serves(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2, 1)
    assert [_rollback(sessions), _rollback(sessions)] == [2, 1]
    with pytest.raises(Conflict):
        _rollback(sessions)


@pytest.mark.parametrize("how", ["deleted", "archived"])
def test_rollback_skips_what_cannot_serve_any_more(sessions: Sessions, store: Store, how: str) -> None:
    publish_ready(sessions, store, count=4)
    promote(sessions, 1, 2, 3, 4)
    with sessions.begin() as session:
        if how == "deleted":
            versions.remove(session, "fraud", 2)
        else:
            versions.edit(session, "fraud", 2, archived=True)
    assert [_rollback(sessions), _rollback(sessions)] == [3, 1]


def test_what_was_archived_and_brought_back_is_a_rollback_target_again(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=3)
    promote(sessions, 1, 2, 3)
    for archived in (True, False):
        with sessions.begin() as session:
            versions.edit(session, "fraud", 1, archived=archived)
    assert [_rollback(sessions), _rollback(sessions)] == [2, 1]


def test_promoting_where_the_alias_points_already_is_no_move(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)
    promote(sessions, 1)
    with db.reading(sessions) as session:
        revision = changes.current(session)
    promote(sessions, 1, 1)
    assert _moves(sessions) == [("promote", 1)]
    with sessions.begin() as session:
        assert changes.current(session) == revision
        assert aliases.promote(session, "fraud", "champion", 1, by="ann", edge_percent=10).edge_percent == 10
        assert changes.current(session) == revision + 1
    assert _moves(sessions) == [("promote", 1), ("rollout", 1)]


def test_only_a_ready_version_that_exists_is_promoted(sessions: Sessions, store: Store) -> None:
    with pytest.raises(NotFound, match="model 'fraud'"):
        promote(sessions, 1)
    publish(sessions, store)
    with pytest.raises(NotReady, match="fraud:1 is building; only a ready version can be champion"):
        promote(sessions, 1)
    with pytest.raises(NotFound, match="version 'fraud:2'"):
        promote(sessions, 2)
    with pytest.raises(Invalid):
        promote(sessions, 1, alias="Champion!")


def test_an_alias_of_another_model_is_another_alias(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    publish_ready(sessions, store, "churn")
    promote(sessions, 1, 2)
    promote(sessions, 1, model="churn")
    assert (champion(sessions), champion(sessions, "churn")) == (2, 1)
    with sessions.begin() as session, pytest.raises(Conflict):
        aliases.rollback(session, "churn", "champion", by="ann")


def test_history_says_who_moved_it_when_and_why(sessions: Sessions, store: Store) -> None:
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


def test_history_at_a_moment_says_what_was_live_then(sessions: Sessions, store: Store) -> None:
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
                then = moments[number].astimezone(zone)
                assert aliases.event_at(session, "fraud", "champion", then).version == number
        first = session.scalars(select(AliasEventRow.at).order_by(AliasEventRow.id)).first()
        assert first is not None
        assert aliases.event_at(session, "fraud", "champion", first).version == 1  # the instant itself counts
        for nowhere in (moments[0], moments[-1], datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))):
            with pytest.raises(NotFound, match="it pointed to no version"):
                aliases.event_at(session, "fraud", "champion", nowhere)
        last = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
        with pytest.raises(NotFound, match="it pointed to no version"):
            aliases.event_at(session, "fraud", "champion", last)


def test_history_has_pages(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2, 1, 2, 1)
    seen, token = [], None
    with db.reading(sessions) as session:
        while True:
            page = aliases.history(session, "fraud", "champion", page_size=2, page_token=token)
            seen += [e.version for e in page.items]
            if (token := page.next_token) is None:
                break
    assert seen == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("in_one_transaction", [True, False])
def test_a_deleted_alias_keeps_its_history_and_starts_anew(
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
    with pytest.raises(Conflict, match="no earlier version"):  # what was before the deletion is over
        _rollback(sessions)
    promote(sessions, 2)
    assert _rollback(sessions) == 1


def _assert_clean_chain(sessions: Sessions, moves: int) -> None:
    """Each event replaced the one before it, and the alias stands at the last."""
    with db.reading(sessions) as session:
        events = session.scalars(select(AliasEventRow).order_by(AliasEventRow.id)).all()
        assert [e.previous_id for e in events] == [None, *[e.id for e in events[:-1]]]
        assert all(a.version != b.version for a, b in pairwise(events))
        assert all(a.at <= b.at for a, b in pairwise(events))
        assert 1 <= len(events) <= moves
        assert aliases.get(session, "fraud", "champion").event_id == events[-1].id


def test_promotes_in_many_threads_make_one_chain(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=6)
    assert threads(*[lambda n=n: promote(sessions, n, 7 - n, n) for n in range(1, 7)]) == [None] * 6
    _assert_clean_chain(sessions, 18)


def test_promotes_in_many_processes_make_one_chain(url: str, sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=4)
    processes(child_actions.promote, [(url, "fraud", [n, 5 - n] * 5) for n in range(1, 5)])
    _assert_clean_chain(sessions, 40)


def test_rollbacks_at_the_same_moment_each_go_one_back(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, count=5)
    promote(sessions, 1, 2, 3, 4, 5)
    assert sorted(threads(*[lambda: _rollback(sessions)] * 4)) == [1, 2, 3, 4]  # type: ignore[type-var]
    assert champion(sessions) == 1


def test_another_share_of_the_devices_is_a_line_in_the_history_and_no_move(
    sessions: Sessions, store: Store
) -> None:
    publish_ready(sessions, store, count=2)
    promote(sessions, 1, 2)
    for percent, reason in ((10, None), (50, "no complaints"), (50, "again"), (None, None)):
        with sessions.begin() as session:
            aliases.promote(session, "fraud", "champion", 2, by="bob", reason=reason, edge_percent=percent)
    with db.reading(sessions) as session:
        lines = aliases.history(session, "fraud", "champion").items[:3]
        assert [(e.action, e.version, e.reason) for e in reversed(lines)] == [
            ("rollout", 2, "for 10 % of the devices"),
            ("rollout", 2, "no complaints"),
            ("rollout", 2, "for all of the devices"),
        ]
    assert _rollback(sessions) == 1
