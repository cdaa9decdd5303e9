"""Device reports, and rollouts that halt after failures."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from registry import aliases, db, revision, rollouts, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Conflict, InUse, NotFound
from registry.rollouts import DeviceCounts, DeviceStatus, NewDeviceReport
from registry.tables import DeviceReportRow
from tests.registry.helpers import promote, publish_ready, threads
from tests.registry.interleaving import on_postgresql, run_behind


@pytest.fixture(autouse=True)
def rollout_of_version_2(sessions: Sessions, store: Store) -> None:
    """Version 2 is rolled out to a fifth of the devices, after version 1. Version 3 is ready."""
    publish_ready(sessions, store, count=3)
    promote(sessions, 1)
    roll_out(sessions, 2, 20)


def roll_out(
    sessions: Sessions, number: int, percent: int | None, alias: str = "champion", model: str = "fraud"
) -> None:
    with sessions.begin() as session:
        aliases.promote(session, model, alias, number, by="ann", edge_percent=percent)


def report(
    sessions: Sessions,
    device: str,
    status: DeviceStatus,
    version: int = 2,
    model: str = "fraud",
    **fields: Any,
) -> None:
    with sessions.begin() as session:
        rollouts.report(session, model, NewDeviceReport(device, version, status, **fields), by="edge key")


def fail(sessions: Sessions, *devices: str, version: int = 2) -> None:
    for device in devices:
        report(sessions, device, "failed", version)


def counts(sessions: Sessions) -> list[DeviceCounts]:
    with db.reading(sessions) as session:
        return rollouts.counts(session, "fraud")


def current_revision(sessions: Sessions) -> int:
    with db.reading(sessions) as session:
        return revision.current(session)


def rollout(
    sessions: Sessions, alias: str = "champion", model: str = "fraud"
) -> tuple[int, int | None, int | None, str | None]:
    """Return the alias's version, its share, the version of the other devices, and the reason of a halt."""
    with db.reading(sessions) as session:
        row = aliases.get(session, model, alias)
        return row.version.number, row.edge_percent, row.edge_previous, row.edge_halted


def test_failures_of_three_devices_halt_the_rollout_with_a_reason(sessions: Sessions) -> None:
    fail(sessions, *"ab")
    assert rollout(sessions) == (2, 20, 1, None)
    fail(sessions, "c")
    assert rollout(sessions) == (2, 0, 1, "3 of 3 devices reported that version 2 failed")


def test_the_history_records_the_halt_and_its_last_reporter(sessions: Sessions) -> None:
    fail(sessions, *"abc")
    with db.reading(sessions) as session:
        newest = aliases.history(session, "fraud", "champion").items[0]
        assert (newest.action, newest.version, newest.by) == ("halt", 2, "edge key")
        assert newest.reason == "3 of 3 devices reported that version 2 failed"


def test_a_share_of_failures_below_the_limit_does_not_halt(sessions: Sessions) -> None:
    for number in range(27):
        report(sessions, f"ok-{number}", "ok")
    fail(sessions, *"abc")
    assert rollout(sessions)[1] == 20
    fail(sessions, "d")
    assert rollout(sessions)[1] == 0


def test_three_failures_of_29_devices_halt(sessions: Sessions) -> None:
    """More than a tenth: three of 30 do not."""
    for number in range(26):
        report(sessions, f"ok-{number}", "ok")
    fail(sessions, *"abc")
    assert rollout(sessions)[1] == 0


def test_repeated_failures_of_one_device_count_once(sessions: Sessions) -> None:
    fail(sessions, *["a"] * 10)
    assert rollout(sessions)[1] == 20
    assert counts(sessions) == [DeviceCounts(2, ok=0, failed=1)]


def test_the_newest_report_of_a_device_counts(sessions: Sessions) -> None:
    fail(sessions, "a", "b")
    report(sessions, "a", "ok")
    fail(sessions, "c")
    assert rollout(sessions)[1] == 20
    assert counts(sessions) == [DeviceCounts(2, ok=1, failed=2)]


def test_counts_are_listed_newest_version_first(sessions: Sessions) -> None:
    report(sessions, "a", "ok", version=1)
    report(sessions, "a", "failed", version=3)
    report(sessions, "a", "ok")
    expected = [
        DeviceCounts(3, ok=0, failed=1),
        DeviceCounts(2, ok=1, failed=0),
        DeviceCounts(1, ok=1, failed=0),
    ]
    assert counts(sessions) == expected


def test_failures_of_another_version_do_not_halt(sessions: Sessions) -> None:
    fail(sessions, *"abcd", version=1)
    assert rollout(sessions)[1] == 20
    assert counts(sessions) == [DeviceCounts(1, ok=0, failed=4)]


def test_a_rollout_to_99_percent_of_the_devices_is_halted(sessions: Sessions) -> None:
    roll_out(sessions, 2, 99)
    fail(sessions, *"abc")
    assert rollout(sessions)[1] == 0


def test_a_rollout_to_no_device_is_not_halted(sessions: Sessions) -> None:
    """It may be stopped by hand; a halt would store a reason and change the model for all readers."""
    roll_out(sessions, 2, 0)
    revision_before = current_revision(sessions)
    fail(sessions, *"abcd")
    assert rollout(sessions) == (2, 0, 1, None)
    assert current_revision(sessions) == revision_before


def test_a_halt_is_a_change_of_the_model_and_a_report_is_not(sessions: Sessions) -> None:
    before = current_revision(sessions)
    fail(sessions, *"ab")
    report(sessions, "c", "ok")
    assert current_revision(sessions) == before
    fail(sessions, "c")
    with db.reading(sessions) as session:
        changes = revision.changes_since(session, before)
    assert changes is not None
    assert changes.models == {"fraud"}
    before = current_revision(sessions)
    fail(sessions, *"de")
    assert current_revision(sessions) == before, "it is halted once"


@pytest.mark.parametrize("percent", [None, 100])
def test_a_version_for_all_devices_is_not_halted(sessions: Sessions, percent: int | None) -> None:
    roll_out(sessions, 2, percent)
    fail(sessions, *"abcd")
    assert rollout(sessions) == (2, percent, 1, None)


def test_all_rollouts_of_the_failed_version_halt_and_no_other(sessions: Sessions) -> None:
    roll_out(sessions, 1, None, "shop")
    roll_out(sessions, 2, 50, "shop")
    roll_out(sessions, 3, 50, "challenger")
    fail(sessions, *"abc")
    assert [rollout(sessions, a)[1] for a in ("champion", "shop", "challenger")] == [0, 0, 50]


def test_a_rollout_restarted_after_a_halt_starts_without_failures(sessions: Sessions) -> None:
    fail(sessions, *"abc")
    roll_out(sessions, 2, 5)
    assert rollout(sessions) == (2, 5, 1, None)
    fail(sessions, *"de")
    assert rollout(sessions)[1] == 5, "failures before the halt do not count"
    fail(sessions, "f")
    assert rollout(sessions) == (2, 0, 1, "3 of 3 devices reported that version 2 failed")


def test_failures_before_a_rollout_do_not_count(sessions: Sessions) -> None:
    fail(sessions, *"abc", version=3)
    roll_out(sessions, 3, 10)
    fail(sessions, *"de", version=3)
    assert rollout(sessions)[1] == 10


def test_a_failure_at_the_moment_of_the_promotion_does_not_count(sessions: Sessions) -> None:
    fail(sessions, "a")
    with sessions.begin() as session:
        started_at = aliases.get(session, "fraud", "champion").event.at
        session.execute(update(DeviceReportRow).values(at=started_at))
    fail(sessions, "b", "c")
    assert rollout(sessions)[1] == 20
    with sessions.begin() as session:
        first = select(func.min(DeviceReportRow.id)).scalar_subquery()
        later = started_at + timedelta(microseconds=1)
        session.execute(update(DeviceReportRow).where(DeviceReportRow.id == first).values(at=later))
    fail(sessions, "c")
    assert rollout(sessions)[1] == 0


def test_a_halt_of_another_alias_or_model_restarts_no_count(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, "other", count=2)
    promote(sessions, 1, model="other")
    roll_out(sessions, 2, 50, model="other")
    roll_out(sessions, 1, None, "shop")
    roll_out(sessions, 3, 50, "shop")
    fail(sessions, *"ab")
    for device in "abc":
        report(sessions, device, "failed", version=3)
        report(sessions, device, "failed", model="other")
    assert rollout(sessions, "shop")[1] == rollout(sessions, model="other")[1] == 0
    assert rollout(sessions)[1] == 20
    fail(sessions, "c")
    assert rollout(sessions)[1] == 0


def test_reports_of_another_model_do_not_count(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, "other", count=2)
    promote(sessions, 1, model="other")
    roll_out(sessions, 2, 50, model="other")
    fail(sessions, *"ab")
    for device in "cd":
        report(sessions, device, "failed", model="other")
    assert (rollout(sessions)[1], rollout(sessions, model="other")[1]) == (20, 50)
    assert counts(sessions) == [DeviceCounts(2, ok=0, failed=2)]
    with db.reading(sessions) as session:
        assert [r.device for r in rollouts.search(session, "fraud").items] == ["b", "a"]
    fail(sessions, "c")
    assert (rollout(sessions)[1], rollout(sessions, model="other")[1]) == (0, 50)


@on_postgresql
def test_failures_are_counted_one_after_the_other(sessions: Sessions) -> None:
    """Otherwise two devices that fail at the same moment do not see each other's report."""
    fail(sessions, "a")

    def fail_in(device: str) -> Callable[[Session], object]:
        new = NewDeviceReport(device, 2, "failed")
        return lambda session: rollouts.report(session, "fraud", new, by="edge key")

    run_behind(sessions, fail_in("b"), fail_in("c"))
    assert rollout(sessions)[1] == 0


def test_raising_the_share_keeps_earlier_failures(sessions: Sessions) -> None:
    fail(sessions, *"ab")
    roll_out(sessions, 2, 50)
    fail(sessions, "c")
    assert rollout(sessions)[1] == 0


def test_other_devices_keep_the_last_version_for_all_devices(sessions: Sessions) -> None:
    """Not the previous version, which was installed on few of them."""
    roll_out(sessions, 3, 10)
    assert rollout(sessions) == (3, 10, 1, None)


def test_a_halted_version_never_becomes_the_version_of_other_devices(sessions: Sessions) -> None:
    fail(sessions, *"abc")
    roll_out(sessions, 3, 10)
    assert rollout(sessions) == (3, 10, 1, None)


def test_a_version_that_reached_all_devices_is_the_next_version_of_other_devices(sessions: Sessions) -> None:
    roll_out(sessions, 2, 100)
    roll_out(sessions, 3, 10)
    assert rollout(sessions) == (3, 10, 2, None)


def test_a_share_set_later_keeps_the_version_of_other_devices(sessions: Sessions) -> None:
    roll_out(sessions, 2, None)
    roll_out(sessions, 2, 30)
    assert rollout(sessions) == (2, 30, 1, None)


def test_the_first_version_of_an_alias_has_no_previous_version(sessions: Sessions) -> None:
    roll_out(sessions, 3, 10, "challenger")
    assert rollout(sessions, "challenger") == (3, 10, None, None)


def test_a_rollback_during_a_rollout_applies_to_all_devices(sessions: Sessions) -> None:
    with sessions.begin() as session:
        aliases.rollback(session, "fraud", "champion", by="bob")
    assert rollout(sessions)[:2] == (1, None)


@pytest.mark.parametrize("state", ["ready", "archived", "deleted"])
def test_other_devices_never_get_a_version_that_was_rolled_back(sessions: Sessions, state: str) -> None:
    roll_out(sessions, 2, None)
    with sessions.begin() as session:
        aliases.rollback(session, "fraud", "champion", by="bob")
    with sessions.begin() as session:
        if state == "archived":
            versions.edit(session, "fraud", 2, archived=True)
        elif state == "deleted":
            versions.remove(session, "fraud", 2)
    with pytest.raises(Conflict, match="all devices get fraud:1 already, and there is no earlier version"):
        roll_out(sessions, 1, 50)
    assert rollout(sessions) == (1, None, None, None)
    roll_out(sessions, 3, 50)
    assert rollout(sessions) == (3, 50, 1, None)


def test_other_devices_never_get_a_version_that_was_archived(sessions: Sessions) -> None:
    roll_out(sessions, 3, None)  # version 2 never reached all devices; a rollback goes to it
    with sessions.begin() as session:
        versions.edit(session, "fraud", 1, archived=True)
    with pytest.raises(Conflict, match="leave out edge_percent, or promote another version"):
        roll_out(sessions, 3, 50)
    assert rollout(sessions) == (3, None, 1, None)


def test_the_version_of_other_devices_can_be_neither_deleted_nor_archived(sessions: Sessions) -> None:
    roll_out(sessions, 3, 10)  # a rollback would go to version 2
    for call in (
        lambda session: versions.remove(session, "fraud", 1),
        lambda session: versions.edit(session, "fraud", 1, archived=True),
    ):
        with pytest.raises(InUse, match="champion"), sessions.begin() as session:
            call(session)


def test_concurrent_reports_are_all_counted(sessions: Sessions) -> None:
    outcomes = threads(*(lambda d=d: fail(sessions, d) for d in "abcdef"))
    assert outcomes == [None] * 6
    assert rollout(sessions)[1] == 0
    assert counts(sessions) == [DeviceCounts(2, ok=0, failed=6)]


def test_a_report_about_an_unknown_version_is_rejected(sessions: Sessions) -> None:
    with pytest.raises(NotFound, match="fraud:4"):
        report(sessions, "a", "ok", version=4)
    assert counts(sessions) == []


def test_a_report_about_a_deleted_version_is_stored(sessions: Sessions) -> None:
    with sessions.begin() as session:
        versions.remove(session, "fraud", 3)
    report(sessions, "a", "failed", version=3, message="no such operator", latency_ms=2.5)
    with db.reading(sessions) as session:
        (row,) = rollouts.search(session, "fraud").items
        assert (row.version, row.message, row.latency_ms) == (3, "no such operator", 2.5)


def test_search_returns_pages_of_reports_newest_first(sessions: Sessions) -> None:
    for device in "abc":
        report(sessions, device, "ok")
    with db.reading(sessions) as session:
        page = rollouts.search(session, "fraud", page_size=2)
        second_page = rollouts.search(session, "fraud", page_size=2, page_token=page.next_token)
    assert [r.device for r in [*page.items, *second_page.items]] == ["c", "b", "a"]
    assert second_page.next_token is None


def test_reports_about_an_unknown_model_are_rejected(sessions: Sessions) -> None:
    with pytest.raises(NotFound, match="other"), sessions.begin() as session:
        rollouts.report(session, "other", NewDeviceReport("a", 1, "ok"), by="key")
    with pytest.raises(NotFound, match="other"), sessions() as session:
        rollouts.counts(session, "other")
