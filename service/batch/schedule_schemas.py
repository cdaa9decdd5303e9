"""The wire types of schedules and their history."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from registry.jobs import jobs
from registry.jobs.recurrence import MAX_EVERY_S, MIN_EVERY_S, When
from registry.jobs.schedules import NewSchedule
from registry.jobs.tables import ScheduleRow, ScheduleRunRow
from registry.names import NAME_PATTERN
from service.batch import schemas
from service.batch.bodies import JobBody, spec_of
from service.batch.schemas import ScoreBody
from service.batch.train_schemas import TrainBody
from service.web.fields import Moment, Strict

Outcome = Literal["started", "skipped", "failed"]


def _is_meant(job: ScoreBody | TrainBody) -> ScoreBody | TrainBody:
    if getattr(job, "dry_run", False):
        raise ValueError("not a job that is only checked; leave dry_run out")
    return job


Job = Annotated[
    JobBody,
    AfterValidator(_is_meant),
    Field(description="the body of POST /v1/jobs; an alias is looked up anew by each run"),
]
Cron = Annotated[
    str | None,
    Field(max_length=200, description="minute hour day month weekday", examples=["0 3 * * MON"]),
]
EveryS = Annotated[float | None, Field(ge=MIN_EVERY_S, le=MAX_EVERY_S, description="in place of cron")]
Zone = Annotated[str, Field(max_length=100, examples=["Europe/Berlin"], description="that cron is read in")]
StartAt = Annotated[
    Moment | None, Field(description="no run is before it; the runs of every_s are counted from it")
]
StartInS = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_EVERY_S,
        description="in place of start_at: the first run is so many seconds from now, also with cron",
    ),
]
CatchUp = Annotated[
    bool, Field(description="start runs that were missed, one after another; else they are skipped")
]
Overlap = Annotated[bool, Field(description="start a run though the one before is not finished")]


EXAMPLE: dict[str, Any] = {
    "name": "weekly-scores",
    "job": schemas.EXAMPLE,
    "every_s": 604800,
    "start_in_s": 5,
}


class ScheduleBody(Strict):
    """When a job is started again and again. Either `cron` or `every_s`; without a start the first run of
    `every_s` is one interval from now."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    name: Annotated[str, Field(pattern=NAME_PATTERN, examples=["weekly-scores"])]
    job: Job
    cron: Cron = None
    every_s: EveryS = None
    timezone: Zone = "UTC"
    start_at: StartAt = None
    start_in_s: StartInS = None
    catch_up: CatchUp = False
    overlap: Overlap = False
    paused: bool = False

    def asked(self) -> NewSchedule:
        return NewSchedule(
            name=self.name,
            job=spec_of(self.job),
            when=When(**{field: getattr(self, field) for field in When.__struct_fields__}),
            catch_up=self.catch_up,
            overlap=self.overlap,
            paused=self.paused,
        )


class ScheduleEdit(Strict):
    """What is left out stays as it is. Of `cron` and `every_s`, giving one takes the other away."""

    job: Job | None = None
    cron: Cron = None
    every_s: EveryS = None
    timezone: Zone | None = None
    start_at: StartAt = None
    start_in_s: StartInS = None
    catch_up: CatchUp | None = None
    overlap: Overlap | None = None
    paused: bool | None = None

    def asked(self) -> dict[str, Any]:
        """By field, without those that are null: none of them can be nothing."""
        found = {field: getattr(self, field) for field in self.model_fields_set}
        if self.job is not None:
            found["job"] = spec_of(self.job)
        return {field: value for field, value in found.items() if value is not None}


JobState = Annotated[str | None, Field(description="of its job now; null when there is none any more")]
ThenState = Annotated[
    str | None, Field(description="of the job that scores with what a training made; null when there is none")
]
Thens = Mapping[int, jobs.FollowUpJob]
"""By training."""


class LastRun(BaseModel):
    at: datetime
    job: int | None
    job_state: JobState
    then_state: ThenState
    outcome: Outcome

    @classmethod
    def of(cls, row: ScheduleRunRow, then: Thens) -> LastRun:
        return cls(
            at=row.at,
            job=row.job_id,
            job_state=_state(row),
            then_state=_then_state(row, then),
            outcome=row.outcome,  # type: ignore[arg-type]
        )


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
    next_at: Annotated[datetime | None, Field(description="null while it is paused")]
    last_run: LastRun | None
    created_at: datetime
    created_by: str

    @classmethod
    def of(cls, row: ScheduleRow, last: ScheduleRunRow | None, then: Thens) -> ScheduleRecord:
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
            last_run=None if last is None else LastRun.of(last, then),
            created_at=row.created_at,
            created_by=row.created_by,
        )


class ScheduleMade(ScheduleRecord):
    """A schedule whose job was just looked at."""

    warnings: Annotated[list[str], Field(description="why a run would fail, were it now")]


class RunRecord(BaseModel):
    """A moment at which a run was due, and what came of it."""

    id: int
    schedule: str
    due_at: datetime
    at: datetime
    outcome: Outcome
    reason: str | None
    job: int | None
    job_state: JobState
    then_state: ThenState

    @classmethod
    def of(cls, row: ScheduleRunRow, then: Thens) -> RunRecord:
        return cls(
            id=row.id,
            schedule=row.schedule,
            due_at=row.due_at,
            at=row.at,
            outcome=row.outcome,  # type: ignore[arg-type]
            reason=row.reason,
            job=row.job_id,
            job_state=_state(row),
            then_state=_then_state(row, then),
        )


def _state(row: ScheduleRunRow) -> str | None:
    return None if row.job is None else row.job.state


def _then_state(row: ScheduleRunRow, then: Thens) -> str | None:
    found = None if row.job_id is None else then.get(row.job_id)
    return None if found is None else found.state
