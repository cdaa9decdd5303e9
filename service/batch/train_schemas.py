"""Request body of training jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from registry.media_types import CSV
from registry.vocabulary import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_VALIDATION,
    LOCAL,
    MAX_PARTITIONS,
    MAX_VALIDATION,
    RAY,
    SAMPLINGS,
    STRATEGIES,
    Engine,
    Sampling,
    Strategy,
)
from service.batch.body_fields import ColumnName, JobInput, MaxAttempts, Name
from service.batch.score_schemas import ScoringFields
from service.web.request_models import RequestBody, Sha256


class Estimator(RequestBody):
    """An unfitted scikit-learn estimator or Pipeline: an uploaded joblib file."""

    artifact: Sha256


class Publish(RequestBody):
    name: Name
    alias: Annotated[Name | None, Field(description="moved to the new version once it is ready")] = None
    tags: Annotated[dict[str, Annotated[str, Field(max_length=1000)]], Field(max_length=100)] = Field(
        default_factory=dict
    )


class Then(ScoringFields):
    """Score this input with exactly the version that was trained."""


TRAIN_EXAMPLE: dict[str, Any] = {
    "kind": "train",
    "estimator": {"artifact": "9f86d081884c7d65" + "0" * 48},
    "input": {"uri": "file:///data/2026/", "media_type": CSV},
    "target": "is_fraud",
    "strategy": "ensemble",
    "publish": {"name": "fraud", "alias": "challenger"},
}


class TrainBody(RequestBody):
    """Fit an estimator to partitioned data and publish the model. Also requires the scope `publish`."""

    model_config = ConfigDict(json_schema_extra={"example": TRAIN_EXAMPLE})

    kind: Literal["train"]
    estimator: Estimator
    input: JobInput
    target: Annotated[ColumnName, Field(description="column that holds the true values")]
    exclude: Annotated[
        list[ColumnName],
        Field(max_length=10_000, description="columns that are not features, such as ids and dates"),
    ] = Field(default_factory=list)
    dtypes: Annotated[
        dict[ColumnName, Literal["float64", "int64", "bool", "string"]],
        Field(max_length=10_000, description="types of columns whose first rows suggest another type"),
    ] = Field(default_factory=dict)
    strategy: Annotated[
        Strategy,
        Field(description="; ".join(f"{name}: {text}" for name, text in STRATEGIES.items())),
    ]
    sampling: Annotated[
        Sampling,
        Field(description="; ".join(f"{name}: {text}" for name, text in SAMPLINGS.items())),
    ] = "none"
    partitions: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_PARTITIONS,
            description="number of partitions to distribute the rows to; default: those of the input",
        ),
    ] = None
    validation: Annotated[
        float,
        Field(ge=0, le=MAX_VALIDATION, description="share of the rows that is held out to measure the model"),
    ] = DEFAULT_VALIDATION
    publish: Publish
    then: Then | None = None
    engine: Engine = LOCAL
    max_attempts: MaxAttempts = DEFAULT_MAX_ATTEMPTS

    @model_validator(mode="after")
    def _single_has_no_partitions(self) -> TrainBody:
        if self.strategy == "single" and self.partitions is not None:
            raise ValueError("the strategy single fits all rows at once: remove partitions")
        return self

    @model_validator(mode="after")
    def _ray_fits_ensembles(self) -> TrainBody:
        if self.engine == RAY and self.strategy != "ensemble":
            raise ValueError("the engine ray supports only the strategy ensemble")
        return self
