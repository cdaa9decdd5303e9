"""Settings of prediction logs: off by default, and one change of the registry each."""

from __future__ import annotations

import pytest

from registry import models, prediction_logs, revision
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import NotFound
from registry.prediction_logs import LogSettings
from tests.registry.helpers import publish_ready


@pytest.fixture(autouse=True)
def fraud(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store)


def put(sessions: Sessions, settings: LogSettings) -> None:
    with sessions.begin() as session:
        prediction_logs.put(session, "fraud", settings, by="ann")


def limits(settings: LogSettings) -> tuple[float, int | None, int | None]:
    return settings.sample, settings.keep_days, settings.max_mb


def test_nothing_is_recorded_by_default(sessions: Sessions) -> None:
    with sessions() as session:
        assert prediction_logs.get(session, "fraud") == LogSettings(0.0, 30, 10_240)
        assert list(prediction_logs.by_model(session).values()) == [LogSettings()]


def test_settings_are_replaced_and_recorded_as_changes_of_the_model(sessions: Sessions) -> None:
    with sessions() as session:
        before = revision.current(session)
    put(sessions, LogSettings(0.25, 7, None))
    put(sessions, LogSettings(1.0, None, 5))
    with sessions() as session:
        settings = prediction_logs.get(session, "fraud")
        assert limits(settings) == (1.0, None, 5)
        assert (settings.changed_by, settings.changed_at is None) == ("ann", False)
        changes = revision.changes_since(session, before)
        assert changes is not None
        assert changes.models == {"fraud"}
        assert changes.revision == before + 2


def test_switching_off_keeps_the_limits(sessions: Sessions) -> None:
    put(sessions, LogSettings(0.5, 7, None))
    with sessions.begin() as session:
        assert limits(prediction_logs.switch_off(session, "fraud", by="ann")) == (0.0, 7, None)
    with sessions() as session:
        assert limits(prediction_logs.get(session, "fraud")) == (0.0, 7, None)


def test_settings_are_deleted_with_their_model(sessions: Sessions) -> None:
    put(sessions, LogSettings(0.5))
    with sessions.begin() as session:
        models.remove(session, "fraud")
    with sessions() as session:
        assert prediction_logs.by_model(session) == {}
        with pytest.raises(NotFound):
            prediction_logs.get(session, "fraud")
