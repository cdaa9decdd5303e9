"""The scheduler: start the jobs of schedules when they are due.

The input of such a job is not examined before it starts: planning does that, and is retried while the input
is missing. Nothing here imports a web framework.
"""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from registry import db
from registry.errors import TriviumError, describe_error
from registry.jobs import schedules
from registry.jobs.schedules import FAILED, StartJob
from registry.jobs.tables import JobRow, ScheduleRow
from service import telemetry

POLL_S = 0.5

log = telemetry.logger(__name__)


def step(sessions: db.Sessions, start: StartJob) -> int:
    """Process all runs that are due; return how many were started, skipped or failed."""
    with db.reading(sessions) as session:  # polling must not take the write lock
        if not schedules.is_due(session):
            return 0
    count = 0
    while True:
        with sessions.begin() as session:
            runs = schedules.tick(session, _only_known_errors(start))
        if runs is None:
            return count
        count += len(runs)
        for run in runs:
            write_log = log.warning if run.outcome == FAILED else log.info
            write_log(f"schedule.{run.outcome}", schedule=run.schedule, job=run.job_id, reason=run.reason)


def _only_known_errors(start: StartJob) -> StartJob:
    """Turn unexpected errors into `TriviumError`: one run fails, and the other schedules continue."""

    def wrapped(session: Session, schedule: ScheduleRow) -> JobRow:
        try:
            return start(session, schedule)
        except (TriviumError, SQLAlchemyError):
            raise
        except Exception as error:
            log.exception("schedule.unexpected_error", schedule=schedule.name)
            raise TriviumError(describe_error(error)) from error

    return wrapped
