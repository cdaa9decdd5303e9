"""Routes of prediction logs: their settings, their rows, and the labels that callers report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator
from starlette.exceptions import HTTPException

from registry import db, labels, models, prediction_logs, versions
from registry.errors import invalid_field
from registry.labels import LabelValue, NewLabel
from registry.media_types import CSV, NDJSON, PARQUET
from registry.prediction_logs import DEFAULT_KEEP_DAYS, DEFAULT_MAX_MB, LogSettings
from service.online.negotiation import acceptable_type
from service.prediction_log import log_files
from service.prediction_log.recorder import is_prediction_id
from service.runtime.codec import MAX_INSTANCES
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope
from service.web.problems import problem_responses
from service.web.request_models import (
    MAX_NUMBER,
    ModelName,
    RequestBody,
    RequestModel,
    Timestamp,
    require_digits,
)
from service.web.services import Services

router = APIRouter(tags=["predictions"])
SETTINGS_PATH = "/v1/models/{name}/prediction-log"
MEDIA_TYPES = (NDJSON, CSV, PARQUET)
"""Of the rows, in the server's order of preference."""
MAX_LABELS = 10_000
"""Labels in one call."""
MAX_LABEL_LENGTH = 1000
MAX_DAYS = 36_500
_LABEL_TYPES = (
    f"a string of at most {MAX_LABEL_LENGTH} characters, a number, true, false, null, or an object of these "
    "by target"
)
_SCALARS = ({"type": "string", "maxLength": MAX_LABEL_LENGTH}, {"type": "number"}, {"type": "boolean"})
_LABEL_SCHEMA = {"anyOf": [*_SCALARS, {"type": "null"}, {"type": "object"}]}


class LogSettingsBody(RequestBody):
    sample: Annotated[float, Field(ge=0, le=1, description="share of the calls that are recorded")]
    keep_days: Annotated[
        int | None, Field(ge=0, le=MAX_DAYS, description="rows are deleted after; null: never")
    ] = DEFAULT_KEEP_DAYS
    max_mb: Annotated[
        int | None, Field(ge=1, le=MAX_NUMBER, description="the oldest rows above are deleted; null: none")
    ] = DEFAULT_MAX_MB


class LogSettingsRecord(BaseModel):
    sample: float
    keep_days: int | None
    max_mb: int | None
    changed_at: datetime | None
    changed_by: str | None

    @classmethod
    def of(cls, settings: LogSettings) -> Self:
        return cls.model_validate(settings, from_attributes=True)


class PredictionsQuery(RequestModel):
    start: Annotated[
        Timestamp | None,
        Query(alias="from", description="of the first row", examples=["2026-03-03T00:00:00Z"]),
    ] = None
    end: Annotated[Timestamp | None, Query(alias="to", description="rows before this time")] = None
    version: Annotated[int | None, Query(ge=1, le=MAX_NUMBER), BeforeValidator(require_digits)] = None


def _check_prediction_id(value: str) -> str:
    if not is_prediction_id(value):
        raise ValueError(
            "not the id of a prediction, such as pred-5f1c0a9b3e-1a: `id` or X-Prediction-Id of an answer"
        )
    return value


def _check_label(value: Any) -> LabelValue:
    if isinstance(value, dict) and value and len(value) <= MAX_INSTANCES:
        return {str(target): _check_scalar(label) for target, label in value.items()}
    return _check_scalar(value)


def _check_scalar(value: Any) -> labels.Scalar:
    if isinstance(value, str):
        is_label = len(value) <= MAX_LABEL_LENGTH
    elif isinstance(value, float):
        is_label = math.isfinite(value)
    else:
        is_label = value is None or (isinstance(value, int) and abs(value) < 2**63)
    if not is_label:
        raise ValueError(f"not {_LABEL_TYPES}")
    label: labels.Scalar = value
    return label


Label = Annotated[Any, BeforeValidator(_check_label), WithJsonSchema(_LABEL_SCHEMA)]


class FeedbackItem(RequestBody):
    """The true value of one row of a prediction, or those of all its rows."""

    id: Annotated[str, AfterValidator(_check_prediction_id), Field(examples=["pred-5f1c0a9b3e-1a"])]
    row: Annotated[int, Field(ge=0, lt=MAX_INSTANCES, description="index of the instance in the call")] = 0
    label: Label = None
    labels: Annotated[
        list[Label] | None, Field(min_length=1, max_length=MAX_INSTANCES, description="of all rows, in order")
    ] = None

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        fields = self.model_fields_set
        if ("label" in fields) == (self.labels is not None):
            raise ValueError("not exactly one of `label` and `labels`")
        if self.labels is not None and "row" in fields:
            raise ValueError("not `labels` without `row`: the list starts with row 0")
        return self

    def new_labels(self) -> Iterator[NewLabel]:
        if self.labels is None:
            yield NewLabel(self.id, self.row, self.label)
        else:
            yield from (NewLabel(self.id, row, label) for row, label in enumerate(self.labels))


class FeedbackBody(RequestBody):
    items: Annotated[list[FeedbackItem], Field(min_length=1, max_length=MAX_LABELS)]


class FeedbackRecord(BaseModel):
    labels: int  # stored, or replaced


@router.get(SETTINGS_PATH, dependencies=[require_scope("any")], responses=problem_responses(404, 422))
def get_log_settings(name: ModelName, session: ReadDep) -> LogSettingsRecord:
    """Return which share of the model's calls is recorded, and how long rows are kept."""
    return LogSettingsRecord.of(prediction_logs.get(session, name))


@router.put(SETTINGS_PATH, dependencies=[require_scope("admin")], responses=problem_responses(404, 413, 422))
def put_log_settings(
    name: ModelName, body: LogSettingsBody, session: WriteDep, caller: CallerDep
) -> LogSettingsRecord:
    """Record a share of the model's calls, with their inputs. Other servers follow within 100 ms."""
    settings = LogSettings(body.sample, body.keep_days, body.max_mb)
    return LogSettingsRecord.of(prediction_logs.put(session, name, settings, by=caller.name))


@router.delete(SETTINGS_PATH, dependencies=[require_scope("admin")], responses=problem_responses(404, 422))
def switch_log_off(name: ModelName, session: WriteDep, caller: CallerDep) -> LogSettingsRecord:
    """Record no more calls. The recorded rows stay until they reach the limits."""
    return LogSettingsRecord.of(prediction_logs.switch_off(session, name, by=caller.name))


@router.get(
    "/v1/models/{name}/predictions",
    dependencies=[require_scope("predict")],
    response_class=StreamingResponse,
    responses={
        200: {"content": {media_type: {"schema": {"type": "string"}} for media_type in MEDIA_TYPES}},
        **problem_responses(404, 406, 422),
    },
)
def read_predictions(
    name: ModelName, request: Request, services: ServicesDep, query: Annotated[PredictionsQuery, Query()]
) -> StreamingResponse:
    """Return the recorded rows in the order of time, with the labels of their predictions.

    The format is JSON lines, CSV or Parquet, by `Accept`. Calls that another process of the server answered
    less than 6 s ago may be missing.
    """
    media_type = _negotiate(request)
    if query.start is not None and query.end is not None and query.start >= query.end:
        raise invalid_field("to", "`to` is not after `from`", "a time after `from`")
    directory = _find_log(services, name, query.version)
    services.recorder.flush()
    rows = _stream(services, directory, name, query.start, query.end, query.version, media_type)
    return StreamingResponse(rows, media_type=media_type)


def _negotiate(request: Request) -> str:
    accept = request.headers.get("accept")
    media_type = acceptable_type(accept.encode("latin-1") if accept else None, MEDIA_TYPES)
    if media_type is None:
        raise HTTPException(406, f"cannot answer as {accept!r}; accept one of {', '.join(MEDIA_TYPES)}")
    return media_type


def _find_log(services: Services, name: str, version: int | None) -> Any:
    """Return the directory of the model's log. Raises `NotFound`; the log of a deleted version is found."""
    with db.reading(services.sessions) as session:
        model = models.get(session, name)
        directory = log_files.model_directory(services.settings.predictions_directory, name, model.id)
        if version is not None and version not in log_files.version_directories(directory):
            versions.get(session, name, version)
    return directory


def _stream(
    services: Services,
    directory: Any,
    name: str,
    start: datetime | None,
    end: datetime | None,
    version: int | None,
    media_type: str,
) -> Iterator[bytes]:
    """Open the log and return its rows as chunks of the answer's body."""
    from service.formats.writing import encode_stream  # pyarrow: see service/startup.py
    from service.prediction_log.log_reader import LogReader, Selection, database_labels

    reader = LogReader(directory, Selection(start, end, version), database_labels(services.sessions, name))
    return encode_stream(reader.batches(), reader.schema, media_type)


@router.post("/v1/feedback", dependencies=[require_scope("predict")], responses=problem_responses(413, 422))
def report_labels(body: FeedbackBody, services: ServicesDep, caller: CallerDep) -> FeedbackRecord:
    """Report the true values of predictions. The newest label of a row counts; null withdraws it.

    Labels may come before or after the prediction is in the log. A label whose prediction is in no log is
    never returned, and is deleted with the oldest log.
    """
    new_labels = [label for item in body.items for label in item.new_labels()]
    if len(new_labels) > MAX_LABELS:
        message = f"there are {len(new_labels)} labels in the items; send at most {MAX_LABELS} in one call"
        raise invalid_field("items", message, f"at most {MAX_LABELS} labels")
    with services.sessions.begin() as session:  # not `WriteDep`: labels change no snapshot
        labels.put(session, new_labels, key_id=caller.id)
    return FeedbackRecord(labels=len(new_labels))
