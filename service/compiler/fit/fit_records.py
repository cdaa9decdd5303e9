"""What a step of a training is asked for, and what it answers: the messages between worker and child."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from registry.signature import DType, Scalar

Do = Literal["check", "transform", "fit", "merge", "predict", "measure"]
Strategy = Literal["partial_fit", "ensemble", "single"]

SEED = 0
"""Of everything that is left to chance and that the estimator does not seed itself."""


class Feature(msgspec.Struct, frozen=True):
    name: str
    dtype: DType


class Slot(msgspec.Struct, frozen=True):
    """Rows in an Arrow file: those batches whose index modulo `of` is `slot`."""

    file: str
    slot: int
    of: int


class Share(msgspec.Struct, frozen=True):
    """Of a class's `of` rows in all partitions `most` are taken; `before` are in the partitions before."""

    most: int
    of: int
    before: int


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step. All paths are absolute and on this machine.

    `check`: can the estimator be trained so? `transform`: pass `index` of fitting the transformers goes on
    with one more partition. `fit`: the model itself, on one partition (or all of them). `merge`: one fitted
    pipeline of all that. `predict`: its answers for rows held out. `measure`: figures of those answers.
    """

    do: Do
    estimator: str
    strategy: Strategy
    target: str
    out: str = ""  # an existing, empty directory: the file that `Fitted` names is in it
    features: tuple[Feature, ...] = ()
    classes: tuple[Scalar, ...] | None = None  # sorted; None: regression
    slots: tuple[Slot, ...] = ()
    shares: tuple[Share, ...] | None = None  # by class, as `classes`; None: take all rows
    number: int = 0  # of the partition
    index: int = 0  # of the pass over the data in which transformers are fitted
    ends: bool = False  # this partition is the last one of its pass
    transformers: str | None = None  # as the step before has left them
    state: str | None = None  # of the model, as the partition before has left it
    files: tuple[str, ...] = ()  # to be merged, or measured
    memory_mb: int = 8192


class Fitted(msgspec.Struct, kw_only=True):
    """What became of a step. For a rejected one `report["reason"]` says why."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any] = msgspec.field(default_factory=dict)
    file: str | None = None  # a file name in `out`; None when there was nothing to leave
    rows: int = 0  # that were used
    metrics: dict[str, float] = msgspec.field(default_factory=dict)


class Plan(msgspec.Struct, frozen=True):
    """The report of `check`: what the estimator is, and the steps that its training takes."""

    name: str  # of the model at the end of the pipeline
    task: Literal["classification", "regression"]
    passes: tuple[str, ...]  # over the data, before the model is fitted: what each of them fits
    merged: str | None = None  # how an ensemble's members become one model, for people
