"""The wire types of scoring jobs, and of every job's record."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from registry.names import NAME_PATTERN
from service.web.fields import MAX_NUMBER, Sha256, Strict
from service.web.strict import Checked

MediaType = Literal[
    "text/csv",
    "application/vnd.apache.parquet",
    "application/x-ndjson",
    "application/vnd.apache.arrow.stream",
]
OutputType = Literal["text/csv", "application/vnd.apache.parquet", "application/x-ndjson"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
Name = Annotated[str, Field(pattern=NAME_PATTERN, examples=["fraud"])]
ColumnName = Annotated[str, Field(min_length=1, max_length=1000)]
Attempts = Annotated[int, Field(ge=1, le=20, description="per partition: one run and the retries")]
Keep = Annotated[
    float | None,
    Field(gt=0, le=3650 * 86400, description="seconds that files and record outlive the job"),
]


class Input(Strict):
    """Where the rows are: an artifact that was uploaded, or a place inside the operator's batch roots."""

    artifact: Sha256 | None = None
    uri: Annotated[str | None, Field(min_length=1, max_length=4000, examples=["file:///data/2026-11/"])] = (
        None
    )
    media_type: Annotated[
        MediaType | None, Field(description="what is in it; unset: as the name of the file at `uri` says")
    ] = None

    @model_validator(mode="after")
    def _one_place(self) -> Input:
        if (self.artifact is None) == (self.uri is None):
            raise ValueError("say either artifact or uri")
        if self.artifact is not None and self.media_type is None:
            raise ValueError("an artifact has no name: say its media_type")
        return self


class Output(Strict):
    media_type: OutputType = "application/vnd.apache.parquet"


class Scoring(Strict):
    """What is scored, and what becomes of it, whichever version does it."""

    kind: Literal["score"]
    input: Input
    output: Output = Output()
    id_column: Annotated[ColumnName | None, Field(description="goes into output and errors file")] = None
    passthrough: Annotated[
        list[ColumnName], Field(max_length=1000, description="columns of the input that go into the output")
    ] = Field(default_factory=list)
    error_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="the share of rows that may fail; unset: the job fails when every row did",
        ),
    ] = None
    max_attempts: Attempts = 4
    engine: Literal["local", "ray"] = "local"
    expires_in: Keep = None


EXAMPLE: dict[str, Any] = {
    "kind": "score",
    "model": "fraud",
    "input": {"uri": "file:///data/2026-11/", "media_type": "text/csv"},
    "output": {"media_type": "application/vnd.apache.parquet"},
    "id_column": "id",
}


class ScoreBody(Scoring):
    """Score every row of the input with one version."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    model: Name
    version: Annotated[int | None, Field(ge=1, le=MAX_NUMBER)] = None
    alias: Annotated[Name | None, Field(description="looked up once, when the job is accepted")] = None
    dry_run: Annotated[bool, Field(description="only check the first rows; nothing is enqueued")] = False

    @model_validator(mode="after")
    def _one_version(self) -> ScoreBody:
        if self.version is not None and self.alias is not None:
            raise ValueError("say version or alias, not both")
        return self


class PartitionRecord(BaseModel):
    """One piece of the work. `output` is where a finished part can be had before all are assembled."""

    stage: str
    number: int
    file: Annotated[str | None, Field(description="the input file it reads; null of an upload, and of none")]
    state: State
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
    kind: Literal["score", "train"]
    state: State
    engine: Literal["local", "ray"]
    model: str | None
    version: int | None
    rows_total: int | None
    rows_done: int
    rows_failed: int
    partitions_total: int | None
    partitions_done: int
    attempts: int
    rate: Annotated[float | None, Field(description="rows a second")]
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
    output: Annotated[str | None, Field(description="where the output is, once it is there")]
    errors: Annotated[str | None, Field(description="where the failed rows are listed, if there are any")]
    manifest: dict[str, Any] | None
    then_id: Annotated[int | None, Field(description="the job that scores with what this one trained")]
    then_state: State | None
    partitions: list[PartitionRecord]


class Checkup(BaseModel):
    """What a dry run found."""

    model: str
    version: int
    columns: list[str]
    rows_checked: int
    rows_failed: int
    warnings: list[str]


class JobQuery(Checked):
    state: State | None = None
    model: Annotated[str | None, Field(pattern=NAME_PATTERN)] = None
