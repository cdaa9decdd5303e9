"""Stages of a training: their order, their partitions, and the step that each partition runs.

    read       split each partition of the input into an Arrow file; runs in the worker
    transform  one pass over the data that fits transformers; one partition after another
    fit        the model: one partition after another (partial_fit), all at once (ensemble), or one (single)
    merge      write one fitted pipeline
    predict    predict the validation rows of each partition
    measure    compute metrics of these predictions

This module reads no files and no database. Stage names start with a number, so that they sort in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from registry.jobs.jobs import ON_RAY, SEQUENTIAL, NewPartition
from registry.jobs.tables import PartitionRow
from registry.signature import Scalar
from registry.vocabulary import Strategy
from service.compiler.fit.fit_records import ClassShare, FitAction, FitPlan, FitStep, Slot
from service.compiler.fit.splitting import VALIDATION_SLOT, SplitLayout
from service.worker.job_work import PermanentFailure

ESTIMATOR = "estimator.joblib"


class TrainingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Plan of a training: frozen when the job is planned, extended after each stage.

    Files are names in the job's directory.
    """

    dataset: dict[str, Any]
    layout: SplitLayout
    fit_plan: FitPlan
    strategy: Strategy
    balanced: bool
    classes: tuple[Scalar, ...] | None = None  # sorted; None: regression
    split_files: tuple[str, ...] = ()
    training_files: tuple[int, ...] = ()  # indices of split files that hold training rows
    rows: int = 0  # training rows before sampling
    fitted: int = 0  # training rows after sampling
    without_target: int = 0
    held_out: int = 0
    missing: tuple[str, ...] = ()  # features with missing values, in any of the rows
    transformers: str | None = None
    members: tuple[str, ...] = ()  # fitted models to merge
    model: str | None = None
    predictions: tuple[str, ...] = ()
    metrics: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def training_partitions(self) -> int:
        """Number of partitions that the model is fitted to."""
        if self.strategy == "single":
            return 1
        return self.layout.training_slots if self.layout.training_slots > 1 else len(self.training_files)


def stage_names(plan: TrainingPlan) -> list[str]:
    """Return the names of all stages in order."""
    actions = ["read", *["transform"] * len(plan.fit_plan.passes), "fit", "merge"]
    actions += ["predict", "measure"] if plan.layout.validation else []
    return [f"{position:02d}-{action}" for position, action in enumerate(actions)]


def action_of(stage: str) -> str:
    return stage.partition("-")[2]


def with_results(plan: TrainingPlan, stage: str, partitions: Sequence[PartitionRow]) -> TrainingPlan:
    """Return the plan extended by the results of a finished stage.

    Raises `PermanentFailure` if the training cannot continue.
    """
    action = action_of(stage)
    results = [p.result or {} for p in partitions]
    files = tuple(r["file"] for r in results if "file" in r)
    replace = msgspec.structs.replace
    if action == "read":
        plan = replace(plan, without_target=sum(p.failed for p in partitions))
        return _with_split_files(plan, files, results)
    if action == "transform":
        return replace(plan, transformers=files[-1])
    if action == "fit":
        members = files if plan.strategy == "ensemble" else files[-1:]
        return replace(plan, members=members, fitted=sum(r["rows"] for r in results))
    if action == "merge":
        return replace(plan, model=files[0])
    if action == "predict":
        return replace(plan, predictions=files)
    return replace(plan, metrics=results[0]["metrics"])


def _with_split_files(
    plan: TrainingPlan, files: tuple[str, ...], results: Sequence[dict[str, Any]]
) -> TrainingPlan:
    counts = [[slots for _, slots in r["counts"]] for r in results]  # rows per slot, by partition and class
    held_out = sum(slots[VALIDATION_SLOT] for part in counts for slots in part)
    rows = [sum(sum(slots[VALIDATION_SLOT + 1 :]) for slots in part) for part in counts]
    target = plan.layout.target.name
    if not sum(rows):
        raise PermanentFailure(f"no training row of the input has a value in the target {target!r}")
    if plan.layout.validation and not held_out:
        share = f"{plan.layout.validation:g}"
        raise PermanentFailure(f"validation {share} of {sum(rows)} rows holds out no row")
    classes = None
    if plan.layout.labelled:
        classes = tuple(sorted({value for r in results for value, _ in r["counts"]}))
        if len(classes) < 2:
            raise PermanentFailure(
                f"the target {target!r} is {classes[0]!r} in every row: two classes are needed"
            )
    return msgspec.structs.replace(
        plan,
        split_files=files,
        training_files=tuple(number for number, count in enumerate(rows) if count),
        rows=sum(rows),
        held_out=held_out,
        missing=tuple(sorted({name for r in results for name in r["missing"]})),
        classes=classes,
    )


def new_partitions(
    plan: TrainingPlan, stage: str, read_partitions: Sequence[PartitionRow]
) -> list[NewPartition]:
    """Return the partitions of a stage. `read_partitions`: the finished ones of the first stage."""
    action = action_of(stage)
    if action == "predict":
        return [NewPartition({}) for _ in plan.split_files]
    if action not in ("transform", "fit"):
        return [NewPartition({})]
    options = {SEQUENTIAL: True} if action == "transform" or plan.strategy == "partial_fit" else {}
    if action == "fit":
        options[ON_RAY] = True
    shares = _class_shares(plan, read_partitions) if plan.balanced else [None] * plan.training_partitions
    return [NewPartition({"shares": s, **options}) for s in shares]


def _class_shares(plan: TrainingPlan, read_partitions: Sequence[PartitionRow]) -> list[list[list[int]]]:
    """Return the `ClassShare` fields of each class, for each training partition."""
    counts = [dict((p.result or {})["counts"]) for p in read_partitions]
    no_rows = [0] * plan.layout.slots
    classes = plan.classes or ()
    rows = [
        [sum(counts[file].get(c, no_rows)[slot] for file, slot in slots) for c in classes]
        for slots in _training_slots(plan)
    ]
    totals = [sum(part[i] for part in rows) for i in range(len(classes))]
    rarest = min(totals)
    if not rarest:
        raise PermanentFailure(f"the class {classes[totals.index(0)]!r} has no training rows")
    before, shares = [0] * len(classes), []
    for part in rows:
        shares.append([[rarest, total, earlier] for total, earlier in zip(totals, before, strict=True)])
        before = [b + n for b, n in zip(before, part, strict=True)]
    return shares


def _training_slots(plan: TrainingPlan) -> list[list[tuple[int, int]]]:
    """Return, for each training partition, the indices of its split files and the slots in them."""
    slots = plan.layout.training_slots
    if plan.strategy == "single":
        return [[(file, slot) for file in plan.training_files for slot in range(1, 1 + slots)]]
    if slots > 1:
        return [[(file, 1 + slot) for file in plan.training_files] for slot in range(slots)]
    return [[(file, 1)] for file in plan.training_files]


class PartitionPlace(Protocol):
    """The fields of a partition that its step depends on."""

    @property
    def stage(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def part(self) -> dict[str, Any]: ...


def fit_step(
    plan: TrainingPlan, row: PartitionPlace, directory: Path, previous_file: str | None, memory_mb: int
) -> FitStep:
    """Return the step that a child process runs for a partition.

    `previous_file`: file of the previous partition, if this one continues from it.
    """
    action: Any = action_of(row.stage)
    shares = row.part.get("shares")
    transformers = previous_file if action == "transform" and previous_file else plan.transformers
    return FitStep(
        do=action,
        estimator=str(directory / ESTIMATOR),
        strategy=plan.strategy,
        target=plan.layout.target.name,
        features=plan.layout.features,
        classes=plan.classes,
        slots=_step_slots(plan, action, row.number, directory),
        shares=tuple(ClassShare(*s) for s in shares) if shares else None,
        number=row.number,
        index=int(row.stage[:2]) - 1,
        ends=row.number == plan.training_partitions - 1,
        transformers=_path(directory, transformers),
        state=_path(directory, previous_file if action == "fit" else None),
        files=tuple(str(directory / name) for name in _step_files(plan, action)),
        memory_mb=memory_mb,
    )


def _step_slots(plan: TrainingPlan, action: FitAction, number: int, directory: Path) -> tuple[Slot, ...]:
    if action in ("transform", "fit"):
        slots = _training_slots(plan)[number]
    elif action == "predict":
        slots = [(number, VALIDATION_SLOT)]
    else:
        slots = [slot for part in _training_slots(plan) for slot in part]
    return tuple(
        Slot(str(directory / plan.split_files[file]), slot, plan.layout.slots) for file, slot in slots
    )


def _step_files(plan: TrainingPlan, action: FitAction) -> tuple[str, ...]:
    if action == "merge":
        return plan.members
    if action == "predict":
        assert plan.model is not None
        return (plan.model,)
    return plan.predictions if action == "measure" else ()


def _path(directory: Path, name: str | None) -> str | None:
    return None if name is None else str(directory / name)
