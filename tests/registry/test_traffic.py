"""Traffic of an alias: weights, segments, the fence of withdrawals, and the results of shadows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import aliases, db, models, revision, traffic, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import InUse, Invalid, NotFound, NotReady
from registry.tables import AliasTrafficRow, ShadowResultRow
from registry.traffic import UNITS, NewTraffic, Segments, ShadowResult
from tests.registry.helpers import promote, publish, publish_ready, threads


@pytest.fixture
def split(sessions: Sessions, store: Store) -> Sessions:
    """A registry whose `fraud` has three ready versions; version 1 is champion with 90 % of the calls."""
    publish_ready(sessions, store, count=3)
    promote(sessions, 1)
    put(sessions, {1: 90, 2: 10})
    return sessions


def put(sessions: Sessions, weights: dict[int, float] | None = None, **fields: Any) -> int:
    """Replace the traffic; return the fence of withdrawals."""
    with sessions.begin() as session:
        new = NewTraffic(weights, **fields)
        row = traffic.put(session, "fraud", "champion", new, by="ann", reason="try it").row
        assert row is not None
        return row.put_id


def stored(sessions: Sessions) -> AliasTrafficRow | None:
    with db.reading(sessions) as session:
        return traffic.get(session, "fraud", "champion").row


def weights(sessions: Sessions) -> dict[str, float]:
    row = stored(sessions)
    assert row is not None
    return row.weights


def history(sessions: Sessions) -> list[tuple[str, str, Any]]:
    """Action, author and weights of each event, newest first."""
    with db.reading(sessions) as session:
        page = aliases.history(session, "fraud", "champion")
        return [(e.action, e.by, e.traffic and e.traffic["weights"]) for e in page.items]


def test_the_history_has_the_weights(split: Sessions) -> None:
    with split.begin() as session:
        traffic.end(session, "fraud", "champion", by="bob")
    assert history(split) == [
        ("traffic", "bob", None),
        ("traffic", "ann", {"1": 90, "2": 10}),
        ("promote", "ann", None),
    ]


def test_the_history_has_the_split_of_a_moment(split: Sessions) -> None:
    with split.begin() as session:
        aliases.promote(session, "fraud", "champion", 2, by="ann")
        aliases.promote(session, "fraud", "champion", 1, by="ann")
    put(split, {1: 50, 3: 50})
    with split.begin() as session:
        aliases.promote(session, "fraud", "champion", 1, by="ann", edge_percent=20)
    with db.reading(split) as session:
        event = aliases.event_at(session, "fraud", "champion", datetime.now(UTC))
    assert (event.action, event.version) == ("rollout", 1)
    assert event.traffic is not None
    assert event.traffic["weights"] == {"1": 50, "3": 50}


def test_a_change_is_seen_by_snapshots(split: Sessions) -> None:
    with db.reading(split) as session:
        before = revision.current(session)
    put(split, {1: 80, 2: 20})
    with split.begin() as session:
        traffic.end(session, "fraud", "champion", by="ann")
    with db.reading(split) as session:
        changes = revision.changes_since(session, before)
    assert changes == (before + 2, {"fraud"}, set())


def test_a_move_ends_the_traffic(split: Sessions) -> None:
    moves: dict[str, Callable[[Session], object]] = {
        "promote": lambda session: aliases.promote(session, "fraud", "champion", 3, by="bob"),
        "traffic": lambda session: aliases.promote(session, "fraud", "champion", 3, by="bob"),  # again
        "rollback": lambda session: aliases.rollback(session, "fraud", "champion", by="bob"),
        "delete": lambda session: aliases.remove(session, "fraud", "champion", by="bob"),
    }
    for action, move in moves.items():
        put(split, {1: 90, 3: 10}, shadow=2)
        with split.begin() as session:
            move(session)
        with db.reading(split) as session:
            assert session.scalars(select(AliasTrafficRow)).all() == []
        assert history(split)[0] == (action, "bob", None)


def test_a_rollout_does_not_end_the_traffic(split: Sessions) -> None:
    with split.begin() as session:
        aliases.promote(session, "fraud", "champion", 3, by="ann")
    put(split, {3: 90, 2: 10})
    with split.begin() as session:
        aliases.promote(session, "fraud", "champion", 3, by="ann", edge_percent=20)
    assert weights(split) == {"2": 10, "3": 90}


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"weights": {1: 90, 2: 9}}, "weights"),
    ({"weights": {}}, "weights"),
    ({}, "weights"),
    ({"weights": {1: 110, 2: -10}}, "weights.1"),
    ({"weights": {1: 99.99999, 2: 0.00001}}, "weights.1"),
    ({"weights": {1: float("nan"), 2: 50}}, "weights.1"),
    ({"weights": {1: 50, 7: 50}}, "weights.7"),
    ({"weights": {1: 100}, "sticky_header": "X-User"}, "sticky_header"),
    ({"weights": {1: 100}, "error_rate": 0.0}, "bounds"),
    ({"shadow": 7}, "shadow"),
    ({"shadow": 1}, "shadow"),
    ({"shadow": "challenger"}, "shadow"),
    ({"shadow": "champion"}, "shadow"),
]


def test_a_fault_is_named(split: Sessions) -> None:
    for fields, field in FAULTS:
        with pytest.raises(Invalid) as caught:
            put(split, **fields)
        assert [fault.field for fault in caught.value.errors] == [field], fields
    assert weights(split) == {"1": 90, "2": 10}


def test_weights_may_have_decimals(split: Sessions) -> None:
    put(split, {1: 99.9, 2: 0.0999, 3: 0.0001})
    assert weights(split) == {"1": 99.9, "2": 0.0999, "3": 0.0001}


def test_only_ready_versions_answer(split: Sessions, store: Store) -> None:
    number = publish(split, store)
    for fields in ({"weights": {1: 50, number: 50}}, {"shadow": number}):
        with pytest.raises(NotReady, match="fraud:4 is building"):
            put(split, **fields)


def test_an_alias_must_exist(split: Sessions) -> None:
    with split.begin() as session:
        for name in ("fraud", "churn"):
            with pytest.raises(NotFound):
                traffic.put(session, name, "challenger", NewTraffic({1: 100}), by="ann")
        with pytest.raises(NotFound, match="aliases are: champion"):
            traffic.get(session, "fraud", "challenger")


def test_traffic_that_does_not_exist_cannot_be_ended(split: Sessions) -> None:
    with split.begin() as session:
        traffic.end(session, "fraud", "champion", by="ann")
        with pytest.raises(NotFound, match="version 1 answers every call"):
            traffic.end(session, "fraud", "champion", by="ann")


def test_a_version_that_answers_is_neither_archived_nor_deleted(split: Sessions) -> None:
    def archive(number: int) -> None:
        with split.begin() as session:
            versions.edit(session, "fraud", number, archived=True)

    def remove(number: int) -> None:
        with split.begin() as session:
            versions.remove(session, "fraud", number)

    with pytest.raises(InUse, match="fraud:2 answers 10 % of the calls of champion and cannot be archived"):
        archive(2)
    put(split, {1: 100, 2: 0}, shadow=3)
    with pytest.raises(InUse, match="fraud:3 is the shadow of champion and cannot be deleted"):
        remove(3)
    archive(2)
    put(split, {1: 100})
    remove(3)


def test_a_withdrawn_canary_returns_its_weight(split: Sessions) -> None:
    put_id = put(split, {1: 60, 2: 10, 3: 30}, error_rate=0.02)
    with split.begin() as session:
        assert traffic.withdraw(session, "fraud", "champion", 3, put_id=put_id, reason="40 of 50 failed")
    assert weights(split) == {"1": 90, "2": 10, "3": 0}
    assert history(split)[0] == ("traffic", "trivium", {"1": 90, "2": 10, "3": 0})
    with split.begin() as session:  # the other canary, noticed by a process that has not seen this change
        assert traffic.withdraw(session, "fraud", "champion", 2, put_id=put_id, reason="late")
    assert weights(split) == {"1": 100, "2": 0, "3": 0}


def test_a_canary_is_withdrawn_once(split: Sessions) -> None:
    put_id = put(split, {1: 90, 2: 10})

    def withdraw() -> bool:
        with split.begin() as session:
            return traffic.withdraw(session, "fraud", "champion", 2, put_id=put_id, reason="it failed")

    assert sorted(map(str, threads(withdraw, withdraw, withdraw))) == ["False", "False", "True"]
    assert [author for _, author, _ in history(split)].count("trivium") == 1


def test_a_newer_request_is_never_overwritten(split: Sessions) -> None:
    old = put(split, {1: 90, 2: 10})
    put(split, {1: 50, 2: 50})
    with split.begin() as session:
        assert not traffic.withdraw(session, "fraud", "champion", 2, put_id=old, reason="late")
    assert weights(split) == {"1": 50, "2": 50}
    with split.begin() as session:
        aliases.promote(session, "fraud", "champion", 2, by="ann")
        assert not traffic.withdraw(session, "fraud", "champion", 2, put_id=old, reason="late")


def lengths(segments: Segments) -> dict[int, int]:
    ends = [0, *(limit for limit, _ in segments)]
    result: dict[int, int] = {}
    for (start, limit), (_, number) in zip(pairwise(ends), segments, strict=True):
        assert start < limit
        result[number] = result.get(number, 0) + limit - start
    return result


def moved(old: Segments, new: Segments) -> int:
    """The number of points that change their version."""
    ends = sorted({0, *(limit for limit, _ in (*old, *new))})
    version = lambda segments, point: next(n for limit, n in segments if point < limit)  # noqa: E731
    return sum(b - a for a, b in pairwise(ends) if version(old, a) != version(new, a))


SPLITS = st.lists(
    st.lists(st.integers(0, UNITS), min_size=3, max_size=3).map(sorted), min_size=1, max_size=6
).map(lambda cuts: [[b - a for a, b in pairwise([0, *cut, UNITS])] for cut in cuts])


@given(SPLITS)
def test_a_change_moves_as_few_callers_as_possible(splits: list[list[int]]) -> None:
    segments: Segments = [[UNITS, 1]]
    for split in splits:
        units = {number: length for number, length in enumerate(split, start=1) if length}
        before, old = lengths(segments), segments
        segments = traffic._reassign(segments, units, own=1)
        assert lengths(segments) == units
        assert segments[-1][0] == UNITS
        grown = sum(max(0, units.get(n, 0) - before.get(n, 0)) for n in units)
        assert moved(old, segments) == grown


def test_a_canary_that_grows_and_shrinks_keeps_its_callers(split: Sessions) -> None:
    for percent, segments in (
        (30, [[700_000, 1], [UNITS, 2]]),
        (10, [[900_000, 1], [UNITS, 2]]),
        (0, [[UNITS, 1]]),
        (100, [[UNITS, 2]]),
    ):
        put(split, {1: 100 - percent, 2: percent})
        row = stored(split)
        assert row is not None
        assert row.segments == segments


def add(sessions: Sessions, shadow_id: int, result: ShadowResult) -> None:
    with sessions.begin() as session:
        traffic.add_result(session, shadow_id, result)


def shadow_id(sessions: Sessions) -> int:
    row = stored(sessions)
    assert row is not None
    assert row.shadow_id is not None
    return row.shadow_id


def stored_results(sessions: Sessions) -> list[ShadowResult]:
    with db.reading(sessions) as session:
        return [traffic.result_of(row) for row in traffic.results(session, "fraud", "champion")]


def result(rows: int, seconds: float) -> ShadowResult:
    result = ShadowResult(1, 2, rows=rows, agreed=rows - 1, difference_sum=0.5, largest_difference=0.5)
    result.latency.counts[20] = rows
    result.latency.seconds = seconds
    return result


def test_the_figures_of_all_processes_are_added(split: Sessions) -> None:
    put(split, {1: 100}, shadow=2)
    key = shadow_id(split)
    failed = ShadowResult(1, 2, failed=3, shed=4, last_error="it is too slow")
    threads(*(lambda part=part: add(split, key, part) for part in (result(5, 0.1), failed, result(7, 0.2))))
    (total,) = stored_results(split)
    assert (total.rows, total.agreed, total.failed, total.shed) == (12, 10, 3, 4)
    assert (total.difference_sum, total.largest_difference, total.last_error) == (1.0, 0.5, "it is too slow")
    assert (sum(total.latency.counts), round(total.latency.seconds, 6)) == (12, 0.3)


def test_another_shadow_starts_another_report(split: Sessions) -> None:
    put(split, {1: 100}, shadow=2)
    first = shadow_id(split)
    add(split, first, result(5, 0.1))
    put(split, {1: 80, 3: 20}, shadow=2)  # the same shadow: the report goes on
    assert shadow_id(split) == first
    put(split, {1: 100}, shadow=3)
    assert stored_results(split) == []
    add(split, shadow_id(split), ShadowResult(1, 3, rows=2))
    assert [(r.shadow_version, r.rows) for r in stored_results(split)] == [(3, 2)]


def test_the_report_stays_after_the_traffic(split: Sessions) -> None:
    put(split, {1: 100}, shadow=2)
    key = shadow_id(split)
    with split.begin() as session:
        aliases.promote(session, "fraud", "champion", 2, by="ann")
    add(split, key, result(5, 0.1))
    assert [r.rows for r in stored_results(split)] == [5]


def test_the_results_of_a_deleted_model_are_dropped(split: Sessions) -> None:
    put(split, {1: 100}, shadow=2)
    key = shadow_id(split)
    add(split, key, result(5, 0.1))
    with split.begin() as session:
        aliases.remove(session, "fraud", "champion", by="ann")
        models.remove(session, "fraud")
    add(split, key, result(5, 0.1))
    with db.reading(split) as session:
        assert session.scalars(select(ShadowResultRow)).all() == []


def test_a_percentile_is_the_limit_of_its_bin() -> None:
    histogram = traffic.empty_histogram()
    assert traffic.percentile(histogram, 0.5) is None
    histogram.counts[10], histogram.counts[20] = 99, 1
    assert traffic.percentile(histogram, 0.99) == pytest.approx(1e-4)
    assert traffic.percentile(histogram, 1.0) == pytest.approx(1e-3)
    traffic.add_latency(histogram, 1000.0)
    assert traffic.percentile(histogram, 1.0) == traffic.LATENCY_LIMITS_S[-1], "JSON has no infinity"
