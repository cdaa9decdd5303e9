"""Settings of prediction logs: which share of a model's calls is recorded, and how long the rows are kept.

A model without settings records nothing: inputs may be personal data. Switching a log off changes no limit,
so recorded rows are deleted when they are due. The files are the service's (`service/prediction_log`).
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import models, revision
from registry.tables import ModelRow, PredictionLogRow, now

DEFAULT_KEEP_DAYS = 30
DEFAULT_MAX_MB = 10_240


class LogSettings(msgspec.Struct, frozen=True):
    """`sample` is the share of calls from 0 to 1. None as a limit: rows are kept without that limit.

    `changed_at` and `changed_by` are set when settings are read; None for the defaults.
    """

    sample: float = 0.0
    keep_days: int | None = DEFAULT_KEEP_DAYS
    max_mb: int | None = DEFAULT_MAX_MB
    changed_at: datetime | None = None
    changed_by: str | None = None


def get(session: Session, model: str) -> LogSettings:
    """Raises `NotFound` for a model that does not exist."""
    return _settings(session.get(PredictionLogRow, models.get(session, model).id))


def put(session: Session, model: str, settings: LogSettings, *, by: str) -> LogSettings:
    """Replace the settings. Raises `NotFound`."""
    owner = models.lock(session, model)
    row = session.get(PredictionLogRow, owner.id, populate_existing=True)
    if row is None:
        row = PredictionLogRow(model_id=owner.id)
        session.add(row)
    row.sample, row.keep_days, row.max_mb = settings.sample, settings.keep_days, settings.max_mb
    row.changed_at, row.changed_by = now(), by
    revision.record_change(session, "model", model)
    session.flush()
    return _settings(row)


def switch_off(session: Session, model: str, *, by: str) -> LogSettings:
    """Record no more calls; the limits of the recorded rows stay. Raises `NotFound`."""
    models.lock(session, model)
    return put(session, model, msgspec.structs.replace(get(session, model), sample=0.0), by=by)


def by_model(session: Session) -> dict[int, LogSettings]:
    """Return the settings of every existing model, by its id."""
    rows = {row.model_id: row for row in session.scalars(select(PredictionLogRow))}
    return {model_id: _settings(rows.get(model_id)) for model_id in session.scalars(select(ModelRow.id))}


def _settings(row: PredictionLogRow | None) -> LogSettings:
    if row is None:
        return LogSettings()
    return LogSettings(row.sample, row.keep_days, row.max_mb, row.changed_at, row.changed_by)
