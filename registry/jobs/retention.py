"""Jobs whose time is over are forgotten, with their partitions and tasks."""

from __future__ import annotations

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.tables import TaskRow, now


def any_over(session: Session) -> bool:
    """Whether `forget` has something to do."""
    return session.scalar(select(JobRow.id).where(JobRow.expires_at <= now()).limit(1)) is not None


def forget(session: Session) -> list[int]:
    """Delete the records of jobs whose time is over; their ids. Their files are the caller's to delete."""
    over = select(JobRow.id).where(JobRow.expires_at <= now()).limit(100)
    found = session.scalars(over.with_for_update(skip_locked=True)).all()  # none that is just being resumed
    for job_id in found:
        session.execute(delete(JobRow).where(JobRow.id == job_id))
        its = or_(TaskRow.subject == str(job_id), TaskRow.subject.startswith(f"{job_id}/"))
        session.execute(delete(TaskRow).where(TaskRow.kind.in_(jobs.KINDS), its))
    return list(found)
