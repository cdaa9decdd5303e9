"""Fields that the request bodies of several job kinds share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from registry.media_types import PARQUET, InputType, OutputType
from registry.names import NAME_PATTERN, clean_file_name
from registry.vocabulary import ATTEMPTS_LIMIT
from service.web.request_models import RequestBody, Sha256

Name = Annotated[str, Field(pattern=NAME_PATTERN, examples=["fraud"])]
FileName = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(clean_file_name)]
ColumnName = Annotated[str, Field(min_length=1, max_length=1000)]
MaxAttempts = Annotated[
    int, Field(ge=1, le=ATTEMPTS_LIMIT, description="attempts per partition: the first run and its retries")
]


class JobInput(RequestBody):
    """The rows to read: an uploaded artifact, or a path or URI inside the operator's batch roots."""

    artifact: Sha256 | None = None
    uri: Annotated[str | None, Field(min_length=1, max_length=4000, examples=["file:///data/2026-11/"])] = (
        None
    )
    media_type: Annotated[
        InputType | None, Field(description="default: derived from the suffix of the file at `uri`")
    ] = None
    file_name: Annotated[
        FileName | None, Field(description="the user's name of the uploaded file, for messages")
    ] = None

    @model_validator(mode="after")
    def _exactly_one_place(self) -> JobInput:
        if (self.artifact is None) == (self.uri is None):
            raise ValueError("set either artifact or uri")
        if self.artifact is not None and self.media_type is None:
            raise ValueError("set media_type: an artifact has no suffix")
        if self.uri is not None and self.file_name is not None:
            raise ValueError("file_name is for an artifact; a uri has its own name")
        return self


class JobOutput(RequestBody):
    media_type: OutputType = PARQUET
