"""Schedules at work: check a schedule's job when it is made, start it when it is due.

A job that a schedule starts is not checked against its first rows: its planning does that, and is tried
again when the input is not there yet. Nothing here knows HTTP.
"""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from registry import db
from registry.errors import TriviumError
from registry.jobs import schedules
from registry.jobs.schedules import FAILED, StartJob
from registry.jobs.tables import JobRow, ScheduleRow
from service import telemetry

LOOK_S = 0.5

log = telemetry.logger(__name__)


def step(sessions: db.Sessions, start: StartJob) -> int:
    """Do what is due now; how many runs were started, skipped or failed."""
    with db.reading(sessions) as session:  # a look costs the writers nothing
        if not schedules.is_due(session):
            return 0
    done = 0
    while True:
        with sessions.begin() as session:
            made = schedules.tick(session, _told(start))
        if made is None:
            return done
        done += len(made)
        for run in made:
            tell = log.warning if run.outcome == FAILED else log.info
            tell(f"schedule.{run.outcome}", schedule=run.schedule, job=run.job_id, reason=run.reason)


def _told(start: StartJob) -> StartJob:
    """An error that nobody has foreseen is one run's failure, and must not stop all schedules."""

    def told(session: Session, schedule: ScheduleRow) -> JobRow:
        try:
            return start(session, schedule)
        except (TriviumError, SQLAlchemyError):
            raise
        except Exception as error:
            log.exception("schedule.broken", schedule=schedule.name)
            raise TriviumError(f"{type(error).__name__}: {error}") from error

    return told
