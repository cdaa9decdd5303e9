"""Wire types of jobs: the request body, whose `kind` selects its fields, and the records of all kinds."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BaseModel, Field

from registry.names import NAME_PATTERN
from registry.vocabulary import Engine, JobKind, JobState
from service.submit.admission import JobSpec
from service.submit.job_kinds import body_classes
from service.web.request_models import RequestBody, RequestModel

if TYPE_CHECKING:
    JobBody = RequestBody
else:  # a union of the bodies in the table of job kinds
    JobBody = Annotated[Union[tuple(body_classes())], Field(discriminator="kind")]  # noqa: UP007


def job_spec(body: JobBody) -> JobSpec:
    """Return the job as it is stored: every default filled in, an alias not resolved."""
    return body.model_dump(mode="json", exclude={"dry_run"})


def is_dry_run(body: JobBody) -> bool:
    """Whether to check the job only. Kinds without a dry run lack the field."""
    return getattr(body, "dry_run", False)


class PartitionRecord(BaseModel):
    """One partition. `output` is the address of its part while the job's output is not assembled."""

    stage: str
    number: int
    file: Annotated[
        str | None, Field(description="name of the input file that it reads; null for stages without input")
    ]
    state: JobState
    rows: int
    failed: int
    attempts: int
    worker: str | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None
    output: str | None


class JobSummary(BaseModel):
    id: int
    kind: JobKind
    state: JobState
    engine: Engine
    model: str | None
    version: int | None
    rows_total: int | None
    rows_done: int
    rows_failed: int
    partitions_total: int | None
    partitions_done: int
    attempts: int
    rate: Annotated[float | None, Field(description="rows per second")]
    eta_s: float | None
    max_attempts: int
    schedule: str | None
    parent_id: int | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    error: str | None


class JobRecord(JobSummary):
    spec: dict[str, Any]
    output: Annotated[str | None, Field(description="address of the output, once it is complete")]
    errors: Annotated[str | None, Field(description="address of the list of failed rows, if rows failed")]
    manifest: dict[str, Any] | None
    then_id: Annotated[int | None, Field(description="the job that scores with the version of this training")]
    then_state: JobState | None
    partitions: list[PartitionRecord]


class DryRunReport(BaseModel):
    """Result of a dry run."""

    model: str
    version: int
    columns: list[str]
    rows_checked: int
    rows_failed: int
    warnings: list[str]


class JobQuery(RequestModel):
    state: JobState | None = None
    model: Annotated[str | None, Field(pattern=NAME_PATTERN)] = None
