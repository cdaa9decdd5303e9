"""Request body of scoring jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from registry.media_types import CSV, PARQUET
from registry.vocabulary import DEFAULT_MAX_ATTEMPTS, LOCAL, Engine
from service.batch.body_fields import ColumnName, JobInput, JobOutput, MaxAttempts, Name
from service.web.request_models import MAX_NUMBER, RequestBody


class ScoringFields(RequestBody):
    """The fields of a scoring job except for its version: `then` of a training has the same ones."""

    kind: Literal["score"]
    input: JobInput
    output: JobOutput = JobOutput()
    id_column: Annotated[
        ColumnName | None, Field(description="column that is copied into the output and the errors file")
    ] = None
    passthrough: Annotated[
        list[ColumnName], Field(max_length=1000, description="columns of the input to copy into the output")
    ] = Field(default_factory=list)
    error_threshold: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="share of rows that may fail; default: the job fails only if every row fails",
        ),
    ] = None
    max_attempts: MaxAttempts = DEFAULT_MAX_ATTEMPTS
    engine: Engine = LOCAL
    expires_in: Annotated[
        float | None,
        Field(
            gt=0, le=3650 * 86400, description="seconds to keep the files and the record after the job's end"
        ),
    ] = None


SCORE_EXAMPLE: dict[str, Any] = {
    "kind": "score",
    "model": "fraud",
    "input": {"uri": "file:///data/2026-11/", "media_type": CSV},
    "output": {"media_type": PARQUET},
    "id_column": "id",
}


class ScoreBody(ScoringFields):
    """Score every row of the input with one version."""

    model_config = ConfigDict(json_schema_extra={"example": SCORE_EXAMPLE})

    model: Name
    version: Annotated[int | None, Field(ge=1, le=MAX_NUMBER)] = None
    alias: Annotated[Name | None, Field(description="resolved once, when the job is accepted")] = None
    dry_run: Annotated[bool, Field(description="only check the first rows; enqueue nothing")] = False

    @model_validator(mode="after")
    def _at_most_one_reference(self) -> ScoreBody:
        if self.version is not None and self.alias is not None:
            raise ValueError("set version or alias, not both")
        return self
