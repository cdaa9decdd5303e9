"""Messages between the worker and the child that runs one step of a training."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from registry.signature import DType, Scalar
from registry.vocabulary import Strategy

FitAction = Literal["check", "transform", "fit", "merge", "predict", "measure"]

SEED = 0
"""Seed of all random choices that the estimator does not seed itself."""


class Feature(msgspec.Struct, frozen=True):
    name: str
    dtype: DType


class Slot(msgspec.Struct, frozen=True):
    """Rows in an Arrow file: the record batches whose index modulo `of` is `slot`."""

    file: str
    slot: int
    of: int


class ClassShare(msgspec.Struct, frozen=True):
    """Train on `take` of the `of` rows that a class has in all partitions.

    `before` of those rows are in earlier partitions.
    """

    take: int
    of: int
    before: int


class FitStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a training. All paths are absolute paths on this machine.

    - `check`: check that the strategy can train the estimator.
    - `transform`: continue pass `index` over the data, which fits transformers, with one partition.
    - `fit`: fit the model on one partition, or on all of them.
    - `merge`: write one fitted pipeline.
    - `predict`: predict the validation rows.
    - `measure`: compute metrics of those predictions.
    """

    do: FitAction
    estimator: str
    strategy: Strategy
    target: str
    out: str = ""  # an existing, empty directory for the file of this step
    features: tuple[Feature, ...] = ()
    classes: tuple[Scalar, ...] | None = None  # sorted; None: regression
    slots: tuple[Slot, ...] = ()
    shares: tuple[ClassShare, ...] | None = None  # one per class, in the order of `classes`; None: all rows
    number: int = 0  # of the partition
    index: int = 0  # of the pass over the data
    ends: bool = False  # this is the last partition of the pass
    transformers: str | None = None  # the file of the `transform` step before
    state: str | None = None  # the model as fitted on the partition before
    files: tuple[str, ...] = ()  # to merge, to predict with, or to measure
    memory_mb: int = 8192


class FitResult(msgspec.Struct, kw_only=True):
    """Outcome of a step. When it is rejected, `report["reason"]` holds the reason."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any] = msgspec.field(default_factory=dict)
    file: str | None = None  # a file name in `out`; None: the step wrote no file
    rows: int = 0  # rows that the step used
    metrics: dict[str, float] = msgspec.field(default_factory=dict)


class FitPlan(msgspec.Struct, frozen=True):
    """Report of the `check` step: the estimator, and the passes that its training takes."""

    name: str  # class name of the model at the end of the pipeline
    task: Literal["classification", "regression"]
    passes: tuple[str, ...]  # one per pass over the data before the model is fitted: the steps of the pass
    merged: str | None = None  # describes how the members of an ensemble become one model
