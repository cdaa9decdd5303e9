"""The wire types of training jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from service.batch.schemas import Attempts, ColumnName, Input, Name, Scoring
from service.web.fields import Sha256, Strict

MAX_PARTITIONS = 1000


class Estimator(Strict):
    """An unfitted scikit-learn estimator or Pipeline: a joblib file that was uploaded."""

    artifact: Sha256


class Publish(Strict):
    name: Name
    alias: Annotated[Name | None, Field(description="moved to the new version once it is ready")] = None
    tags: Annotated[dict[str, Annotated[str, Field(max_length=1000)]], Field(max_length=100)] = Field(
        default_factory=dict
    )


class Then(Scoring):
    """Score this input, with exactly the version that was trained."""


EXAMPLE: dict[str, Any] = {
    "kind": "train",
    "estimator": {"artifact": "9f86d081884c7d65" + "0" * 48},
    "input": {"uri": "file:///data/2026/", "media_type": "text/csv"},
    "target": "is_fraud",
    "strategy": "ensemble",
    "publish": {"name": "fraud", "alias": "challenger"},
}


class TrainBody(Strict):
    """Fit an estimator to partitioned data, and publish what it becomes. Needs the scope `publish` too."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    kind: Literal["train"]
    estimator: Estimator
    input: Input
    target: Annotated[ColumnName, Field(description="the column that holds the true values")]
    exclude: Annotated[
        list[ColumnName], Field(max_length=10_000, description="columns that are no features: ids, dates")
    ] = Field(default_factory=list)
    dtypes: Annotated[
        dict[ColumnName, Literal["float64", "int64", "bool", "string"]],
        Field(max_length=10_000, description="what columns hold, where their first rows look otherwise"),
    ] = Field(default_factory=dict)
    strategy: Annotated[
        Literal["partial_fit", "ensemble", "single"],
        Field(
            description="partial_fit: one model, partition after partition. ensemble: a model for each "
            "partition, merged into one. single: one fit over all rows, which have to fit into memory"
        ),
    ]
    sampling: Annotated[
        Literal["none", "balanced", "stratified"],
        Field(
            description="balanced: as many rows of each class as the rarest has. stratified: rows are dealt "
            "so that each partition has each class's share"
        ),
    ] = "none"
    partitions: Annotated[
        int | None,
        Field(ge=1, le=MAX_PARTITIONS, description="deal the rows into so many; unset: those of the input"),
    ] = None
    validation: Annotated[
        float, Field(ge=0, le=0.9, description="share of rows held out, to measure the model")
    ] = 0.2
    publish: Publish
    then: Then | None = None
    engine: Literal["local", "ray"] = "local"
    max_attempts: Attempts = 4

    @model_validator(mode="after")
    def _one_fit(self) -> TrainBody:
        if self.strategy == "single" and self.partitions is not None:
            raise ValueError("the strategy single is one fit over all rows: leave partitions out")
        return self

    @model_validator(mode="after")
    def _by_ray(self) -> TrainBody:
        if self.engine == "ray" and self.strategy != "ensemble":
            raise ValueError("on Ray there is the strategy ensemble: the others have nothing to spread")
        return self
