"""Device reports, and rollouts that stop by themselves."""

from __future__ import annotations

from typing import Any

import pytest

from registry import aliases, db, rollouts, versions
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import InUse, NotFound
from registry.rollouts import DeviceCounts, DeviceStatus, NewDeviceReport
from tests.registry.helpers import promote, publish_ready, threads


@pytest.fixture(autouse=True)
def rolling(sessions: Sessions, store: Store) -> None:
    """Version 2 is being rolled out to a fifth of the devices, after version 1; 3 is ready."""
    publish_ready(sessions, store, count=3)
    promote(sessions, 1)
    share(sessions, 2, 20)


def share(sessions: Sessions, number: int, percent: int | None, alias: str = "champion") -> None:
    with sessions.begin() as session:
        aliases.promote(session, "fraud", alias, number, by="ann", edge_percent=percent)


def say(sessions: Sessions, device: str, status: DeviceStatus, version: int = 2, **more: Any) -> None:
    with sessions.begin() as session:
        rollouts.report(session, "fraud", NewDeviceReport(device, version, status, **more), by="edge key")


def fail(sessions: Sessions, *devices: str, version: int = 2) -> None:
    for device in devices:
        say(sessions, device, "failed", version)


def counted(sessions: Sessions) -> list[DeviceCounts]:
    with db.reading(sessions) as session:
        return rollouts.counts(session, "fraud")


def edge(sessions: Sessions, alias: str = "champion") -> tuple[int, int | None, int | None, str | None]:
    """Its version, the share that gets it, what the others get, and why it was stopped."""
    with db.reading(sessions) as session:
        row = aliases.get(session, "fraud", alias)
        return row.version.number, row.edge_percent, row.edge_previous, row.edge_halted


def test_failures_of_enough_devices_stop_the_rollout_and_say_why(sessions: Sessions) -> None:
    fail(sessions, *"ab")
    assert edge(sessions) == (2, 20, 1, None)
    fail(sessions, "c")
    assert edge(sessions) == (2, 0, 1, "3 of 3 devices reported that version 2 failed")


def test_the_history_says_who_reported_last_before_the_rollout_stopped(sessions: Sessions) -> None:
    fail(sessions, *"abc")
    with db.reading(sessions) as session:
        newest = aliases.history(session, "fraud", "champion").items[0]
        assert (newest.action, newest.version, newest.by) == ("halt", 2, "edge key")
        assert newest.reason == "3 of 3 devices reported that version 2 failed"


def test_a_share_of_failures_within_the_bound_stops_nothing(sessions: Sessions) -> None:
    for number in range(27):
        say(sessions, f"good-{number}", "ok")
    fail(sessions, *"abc")
    assert edge(sessions)[1] == 20
    fail(sessions, "d")
    assert edge(sessions)[1] == 0


def test_one_device_that_fails_again_and_again_is_one_device(sessions: Sessions) -> None:
    fail(sessions, *["a"] * 10)
    assert edge(sessions)[1] == 20
    assert counted(sessions) == [DeviceCounts(2, ok=0, failed=1)]


def test_the_newest_word_of_a_device_counts(sessions: Sessions) -> None:
    fail(sessions, "a", "b")
    say(sessions, "a", "ok")
    fail(sessions, "c")
    assert edge(sessions)[1] == 20
    assert counted(sessions) == [DeviceCounts(2, ok=1, failed=2)]


def test_failures_of_another_version_stop_nothing(sessions: Sessions) -> None:
    fail(sessions, *"abcd", version=1)
    assert edge(sessions)[1] == 20
    assert counted(sessions) == [DeviceCounts(1, ok=0, failed=4)]


@pytest.mark.parametrize("percent", [None, 100])
def test_a_version_that_every_device_gets_is_no_rollout(sessions: Sessions, percent: int | None) -> None:
    share(sessions, 2, percent)
    fail(sessions, *"abcd")
    assert edge(sessions) == (2, percent, 1, None)


def test_every_rollout_of_the_version_stops_and_no_other(sessions: Sessions) -> None:
    share(sessions, 1, None, "shop")
    share(sessions, 2, 50, "shop")
    share(sessions, 3, 50, "challenger")
    fail(sessions, *"abc")
    assert [edge(sessions, a)[1] for a in ("champion", "shop", "challenger")] == [0, 0, 50]


def test_a_rollout_that_was_stopped_begins_anew_with_no_failures(sessions: Sessions) -> None:
    fail(sessions, *"abc")
    share(sessions, 2, 5)
    assert edge(sessions) == (2, 5, 1, None)
    fail(sessions, *"de")
    assert edge(sessions)[1] == 5, "the failures before it was stopped are not held against it"
    fail(sessions, "f")
    assert edge(sessions) == (2, 0, 1, "3 of 3 devices reported that version 2 failed")


def test_failures_before_a_version_was_rolled_out_are_not_held_against_it(sessions: Sessions) -> None:
    fail(sessions, *"abc", version=3)
    share(sessions, 3, 10)
    fail(sessions, *"de", version=3)
    assert edge(sessions)[1] == 10


def test_raising_the_share_forgets_no_failure(sessions: Sessions) -> None:
    fail(sessions, *"ab")
    share(sessions, 2, 50)
    fail(sessions, "c")
    assert edge(sessions)[1] == 0


def test_the_others_keep_what_was_rolled_out_to_everybody(sessions: Sessions) -> None:
    """Not the version before, which few of them ever had."""
    share(sessions, 3, 10)
    assert edge(sessions) == (3, 10, 1, None)


def test_a_version_that_was_stopped_never_becomes_what_the_others_get(sessions: Sessions) -> None:
    fail(sessions, *"abc")
    share(sessions, 3, 10)
    assert edge(sessions) == (3, 10, 1, None)


def test_a_version_that_reached_everybody_is_what_the_others_get_next(sessions: Sessions) -> None:
    share(sessions, 2, 100)
    share(sessions, 3, 10)
    assert edge(sessions) == (3, 10, 2, None)


def test_a_share_given_later_leaves_the_others_what_they_had_before(sessions: Sessions) -> None:
    share(sessions, 2, None)
    share(sessions, 2, 30)
    assert edge(sessions) == (2, 30, 1, None)


def test_the_first_version_of_an_alias_has_none_before_it(sessions: Sessions) -> None:
    share(sessions, 3, 10, "challenger")
    assert edge(sessions, "challenger") == (3, 10, None, None)


def test_a_rollback_in_mid_rollout_leads_everybody_back(sessions: Sessions) -> None:
    with sessions.begin() as session:
        aliases.rollback(session, "fraud", "champion", by="bob")
    assert edge(sessions)[:2] == (1, None)


def test_what_the_others_get_can_be_neither_deleted_nor_archived(sessions: Sessions) -> None:
    share(sessions, 3, 10)  # a rollback would go to version 2
    for forbidden in (
        lambda session: versions.remove(session, "fraud", 1),
        lambda session: versions.edit(session, "fraud", 1, archived=True),
    ):
        with pytest.raises(InUse, match="champion"), sessions.begin() as session:
            forbidden(session)


def test_of_reports_at_the_same_moment_none_is_overlooked(sessions: Sessions) -> None:
    outcomes = threads(*(lambda d=d: fail(sessions, d) for d in "abcdef"))  # type: ignore[misc]
    assert outcomes == [None] * 6
    assert edge(sessions)[1] == 0
    assert counted(sessions) == [DeviceCounts(2, ok=0, failed=6)]


def test_a_report_of_a_version_that_never_was_is_refused(sessions: Sessions) -> None:
    with pytest.raises(NotFound, match="fraud:4"):
        say(sessions, "a", "ok", version=4)
    assert counted(sessions) == []


def test_a_report_of_a_version_that_is_gone_is_kept(sessions: Sessions) -> None:
    with sessions.begin() as session:
        versions.remove(session, "fraud", 3)
    say(sessions, "a", "failed", version=3, message="no such operator", latency_ms=2.5)
    with db.reading(sessions) as session:
        (found,) = rollouts.search(session, "fraud").items
        assert (found.version, found.message, found.latency_ms) == (3, "no such operator", 2.5)


def test_reports_come_newest_first_page_by_page(sessions: Sessions) -> None:
    for device in "abc":
        say(sessions, device, "ok")
    with db.reading(sessions) as session:
        page = rollouts.search(session, "fraud", page_size=2)
        rest = rollouts.search(session, "fraud", page_size=2, page_token=page.next_token)
    assert [r.device for r in [*page.items, *rest.items]] == ["c", "b", "a"]
    assert rest.next_token is None


def test_reports_of_a_model_that_is_not_there_are_refused(sessions: Sessions) -> None:
    with pytest.raises(NotFound, match="other"), sessions.begin() as session:
        rollouts.report(session, "other", NewDeviceReport("a", 1, "ok"), by="key")
    with pytest.raises(NotFound, match="other"), sessions() as session:
        rollouts.counts(session, "other")
