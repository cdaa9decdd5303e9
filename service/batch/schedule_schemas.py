"""Wire types of schedules and their runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from registry.jobs import jobs
from registry.jobs.recurrence import MAX_EVERY_S, MIN_EVERY_S, Recurrence
from registry.jobs.schedules import NewSchedule
from registry.jobs.tables import ScheduleRow, ScheduleRunRow
from registry.names import NAME_PATTERN
from registry.vocabulary import RunOutcome
from service.batch.job_schemas import JobBody, is_dry_run, job_spec
from service.batch.score_schemas import SCORE_EXAMPLE
from service.web.request_models import RequestBody, Timestamp


def _reject_dry_run(job: JobBody) -> JobBody:
    if is_dry_run(job):
        raise ValueError("a schedule cannot start a dry run: remove dry_run")
    return job


ScheduledJob = Annotated[
    JobBody,
    AfterValidator(_reject_dry_run),
    Field(description="the body of POST /v1/jobs; each run resolves an alias again"),
]
Cron = Annotated[
    str | None,
    Field(max_length=200, description="minute hour day month weekday", examples=["0 3 * * MON"]),
]
EveryS = Annotated[
    float | None,
    Field(ge=MIN_EVERY_S, le=MAX_EVERY_S, description="interval in seconds; exclusive with cron"),
]
TimeZone = Annotated[str, Field(max_length=100, examples=["Europe/Berlin"], description="time zone of cron")]
StartAt = Annotated[
    Timestamp | None, Field(description="earliest run; intervals of every_s are counted from this time")
]
StartInS = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_EVERY_S,
        description="seconds until the first run, also with cron; exclusive with start_at",
    ),
]
CatchUp = Annotated[bool, Field(description="start missed runs one after another; otherwise skip them")]
Overlap = Annotated[bool, Field(description="start a run while the previous one is unfinished")]


SCHEDULE_EXAMPLE: dict[str, Any] = {
    "name": "weekly-scores",
    "job": SCORE_EXAMPLE,
    "every_s": 604800,
    "start_in_s": 5,
}


class ScheduleBody(RequestBody):
    """A job and the times at which it starts: either `cron` or `every_s`.

    Without a start, the first run of `every_s` is one interval from now.
    """

    model_config = ConfigDict(json_schema_extra={"example": SCHEDULE_EXAMPLE})

    name: Annotated[str, Field(pattern=NAME_PATTERN, examples=["weekly-scores"])]
    job: ScheduledJob
    cron: Cron = None
    every_s: EveryS = None
    timezone: TimeZone = "UTC"
    start_at: StartAt = None
    start_in_s: StartInS = None
    catch_up: CatchUp = False
    overlap: Overlap = False
    paused: bool = False

    def new_schedule(self) -> NewSchedule:
        return NewSchedule(
            name=self.name,
            job=job_spec(self.job),
            recurrence=Recurrence(**{field: getattr(self, field) for field in Recurrence.__struct_fields__}),
            catch_up=self.catch_up,
            overlap=self.overlap,
            paused=self.paused,
        )


class ScheduleEdit(RequestBody):
    """Fields to change; the others keep their values. Setting `cron` clears `every_s`, and vice versa."""

    job: ScheduledJob | None = None
    cron: Cron = None
    every_s: EveryS = None
    timezone: TimeZone | None = None
    start_at: StartAt = None
    start_in_s: StartInS = None
    catch_up: CatchUp | None = None
    overlap: Overlap | None = None
    paused: bool | None = None

    def changes(self) -> dict[str, Any]:
        """Return the new values by field. Null means unchanged: none of the fields can be null."""
        values = {field: getattr(self, field) for field in self.model_fields_set}
        if self.job is not None:
            values["job"] = job_spec(self.job)
        return {field: value for field, value in values.items() if value is not None}


RunJobState = Annotated[str | None, Field(description="state of the run's job; null if it was deleted")]
FollowUpState = Annotated[
    str | None,
    Field(description="state of the job that scores with a training's version; null if none was started"),
]
FollowUpJobs = Mapping[int, jobs.FollowUpJob]
"""By the id of the training."""


class LastRun(BaseModel):
    at: datetime
    job: int | None
    job_state: RunJobState
    then_state: FollowUpState
    outcome: RunOutcome

    @classmethod
    def of(cls, row: ScheduleRunRow, follow_ups: FollowUpJobs) -> LastRun:
        return cls(
            at=row.at,
            job=row.job_id,
            job_state=_job_state(row),
            then_state=_follow_up_state(row, follow_ups),
            outcome=row.outcome,  # type: ignore[arg-type]
        )


class EditRecord(BaseModel):
    """A change of a schedule."""

    at: datetime
    by: str
    fields: list[str]


class ScheduleRecord(BaseModel):
    name: str
    job: dict[str, Any]
    cron: str | None
    every_s: float | None
    timezone: str
    start_at: datetime
    catch_up: bool
    overlap: bool
    paused: bool
    next_at: Annotated[datetime | None, Field(description="null while the schedule is paused")]
    last_run: LastRun | None
    created_at: datetime
    created_by: str
    edits: Annotated[list[EditRecord], Field(description="the newest changes, oldest first")]

    @classmethod
    def of(
        cls, row: ScheduleRow, last_run: ScheduleRunRow | None, follow_ups: FollowUpJobs
    ) -> ScheduleRecord:
        return cls(
            name=row.name,
            job=row.job,
            cron=row.cron,
            every_s=row.every_s,
            timezone=row.timezone,
            start_at=row.start_at,
            catch_up=row.catch_up,
            overlap=row.overlap,
            paused=row.paused,
            next_at=None if row.paused else row.next_at,
            last_run=None if last_run is None else LastRun.of(last_run, follow_ups),
            created_at=row.created_at,
            created_by=row.created_by,
            edits=[EditRecord(**edit) for edit in row.edits],
        )


class CheckedScheduleRecord(ScheduleRecord):
    """A schedule after a request that examined its job."""

    warnings: Annotated[list[str], Field(description="reasons why a run would fail now")]


class RunRecord(BaseModel):
    """A time at which a run was due, and its outcome."""

    id: int
    schedule: str
    due_at: datetime
    at: datetime
    outcome: RunOutcome
    reason: str | None
    job: int | None
    job_state: RunJobState
    then_state: FollowUpState

    @classmethod
    def of(cls, row: ScheduleRunRow, follow_ups: FollowUpJobs) -> RunRecord:
        return cls(
            id=row.id,
            schedule=row.schedule,
            due_at=row.due_at,
            at=row.at,
            outcome=row.outcome,  # type: ignore[arg-type]
            reason=row.reason,
            job=row.job_id,
            job_state=_job_state(row),
            then_state=_follow_up_state(row, follow_ups),
        )


def _job_state(row: ScheduleRunRow) -> str | None:
    return None if row.job is None else row.job.state


def _follow_up_state(row: ScheduleRunRow, follow_ups: FollowUpJobs) -> str | None:
    follow_up = None if row.job_id is None else follow_ups.get(row.job_id)
    return None if follow_up is None else follow_up.state
