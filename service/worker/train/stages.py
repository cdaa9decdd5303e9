"""The stages of a training: which come when, their partitions, and the step that each of those is.

    read       each partition of the input is dealt into an Arrow file; here, in the worker
    transform  one for each pass over the data that its transformers need; partition after partition
    fit        the model: partition after partition (partial_fit), all at once (ensemble), or one (single)
    merge      one fitted pipeline of all that
    predict    its answers for the rows held out, in each partition
    measure    the figures of those answers

Nothing here touches a file or the database. A stage's name begins with its place, so that names sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from registry.jobs import jobs
from registry.jobs.jobs import NewPartition
from registry.jobs.tables import PartitionRow
from registry.signature import Scalar
from service.compiler.fit.fit_records import ClassShare, FitAction, FitPlan, FitStep, Slot, Strategy
from service.compiler.fit.splitting import VALIDATION_SLOT, SplitLayout
from service.worker.job_kind import Hopeless

ESTIMATOR = "estimator.joblib"


class Frozen(msgspec.Struct, frozen=True, kw_only=True):
    """A training's plan: what was frozen at first, and what each stage has added. Files are names in the
    job's folder."""

    dataset: dict[str, Any]
    layout: SplitLayout
    check: FitPlan
    strategy: Strategy
    balanced: bool
    classes: tuple[Scalar, ...] | None = None  # sorted; None: a regression
    dealt: tuple[str, ...] = ()
    trained: tuple[int, ...] = ()  # the numbers of dealt files that hold rows to train on
    rows: int = 0  # to train on, before sampling
    fitted: int = 0  # after it
    without_target: int = 0
    held_out: int = 0
    transformers: str | None = None
    members: tuple[str, ...] = ()  # fitted models, to be merged
    model: str | None = None
    answers: tuple[str, ...] = ()
    metrics: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def parts(self) -> int:
        """Partitions that the model is trained on."""
        if self.strategy == "single":
            return 1
        return self.layout.training_slots if self.layout.training_slots > 1 else len(self.trained)


def stages(frozen: Frozen) -> list[str]:
    """The names of all stages, in their order."""
    work = ["read", *["transform"] * len(frozen.check.passes), "fit", "merge"]
    work += ["predict", "measure"] if frozen.layout.validation else []
    return [f"{place:02d}-{do}" for place, do in enumerate(work)]


def do(stage: str) -> str:
    return stage.partition("-")[2]


def add(frozen: Frozen, stage: str, done: Sequence[PartitionRow]) -> Frozen:
    """The plan, and what a finished stage has made. Raises `Hopeless` when there is nothing to go on with."""
    results = [p.result or {} for p in done]
    files = tuple(r["file"] for r in results if "file" in r)
    replace = msgspec.structs.replace
    if do(stage) == "read":
        frozen = replace(frozen, without_target=sum(p.failed for p in done))
        return _read(frozen, files, results)
    if do(stage) == "transform":
        return replace(frozen, transformers=files[-1])
    if do(stage) == "fit":
        members = files if frozen.strategy == "ensemble" else files[-1:]
        return replace(frozen, members=members, fitted=sum(r["rows"] for r in results))
    if do(stage) == "merge":
        return replace(frozen, model=files[0])
    if do(stage) == "predict":
        return replace(frozen, answers=files)
    return replace(frozen, metrics=results[0]["metrics"])


def _read(frozen: Frozen, files: tuple[str, ...], results: Sequence[dict[str, Any]]) -> Frozen:
    counts = [[n for _, n in r["counts"]] for r in results]  # rows in each slot, by partition and class
    held = sum(n[VALIDATION_SLOT] for part in counts for n in part)
    rows = [sum(sum(n[VALIDATION_SLOT + 1 :]) for n in part) for part in counts]
    target = frozen.layout.target.name
    if not sum(rows):
        raise Hopeless(f"the input has no rows to train on that have a value in {target!r}")
    if frozen.layout.validation and not held:
        raise Hopeless(f"validation {frozen.layout.validation:g} of {sum(rows)} rows holds out none")
    classes = None
    if frozen.layout.labelled:
        classes = tuple(sorted({value for r in results for value, _ in r["counts"]}))
        if len(classes) < 2:
            raise Hopeless(f"the target {target!r} is {classes[0]!r} in every row: there is nothing to learn")
    return msgspec.structs.replace(
        frozen,
        dealt=files,
        trained=tuple(number for number, n in enumerate(rows) if n),
        rows=sum(rows),
        held_out=held,
        classes=classes,
    )


def partitions(frozen: Frozen, stage: str, read: Sequence[PartitionRow]) -> list[NewPartition]:
    """The partitions of a stage; `read` are those of the first one."""
    if do(stage) == "predict":
        return [NewPartition({}) for _ in frozen.dealt]
    if do(stage) not in ("transform", "fit"):
        return [NewPartition({})]
    in_turn = {jobs.SEQUENTIAL: True} if do(stage) == "transform" or frozen.strategy == "partial_fit" else {}
    shares = _shares(frozen, read) if frozen.balanced else [None] * frozen.parts
    return [NewPartition({"shares": s, **in_turn}) for s in shares]


def _shares(frozen: Frozen, read: Sequence[PartitionRow]) -> list[list[list[int]]]:
    """For each partition, and in it for each class: how many rows of how many are taken, and how many are in
    the partitions before."""
    found = [dict((p.result or {})["counts"]) for p in read]
    none = [0] * frozen.layout.slots
    classes = frozen.classes or ()
    rows = [[sum(found[f].get(c, none)[slot] for f, slot in p) for c in classes] for p in _pieces(frozen)]
    totals = [sum(part[i] for part in rows) for i in range(len(classes))]
    rarest = min(totals)
    if not rarest:
        raise Hopeless(f"no rows of class {classes[totals.index(0)]!r} are left to train on")
    before, shares = [0] * len(classes), []
    for part in rows:
        shares.append([[rarest, total, seen] for total, seen in zip(totals, before, strict=True)])
        before = [b + n for b, n in zip(before, part, strict=True)]
    return shares


def _pieces(frozen: Frozen) -> list[list[tuple[int, int]]]:
    """For each partition to train on: the dealt files and slots that it consists of."""
    hands = frozen.layout.training_slots
    if frozen.strategy == "single":
        return [[(file, slot) for file in frozen.trained for slot in range(1, 1 + hands)]]
    if hands > 1:
        return [[(file, 1 + hand) for file in frozen.trained] for hand in range(hands)]
    return [[(file, 1)] for file in frozen.trained]


class Place(Protocol):
    """What a step needs to know of a partition."""

    @property
    def stage(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def part(self) -> dict[str, Any]: ...


def step(frozen: Frozen, row: Place, home: Path, before: str | None, memory_mb: int) -> FitStep:
    """What a child is to do for a partition; `before` is the file that the partition before it has left."""
    what: Any = do(row.stage)
    shares = row.part.get("shares")
    return FitStep(
        do=what,
        estimator=str(home / ESTIMATOR),
        strategy=frozen.strategy,
        target=frozen.layout.target.name,
        features=frozen.layout.features,
        classes=frozen.classes,
        slots=_slots(frozen, what, row.number, home),
        shares=tuple(ClassShare(*s) for s in shares) if shares else None,
        number=row.number,
        index=int(row.stage[:2]) - 1,
        ends=row.number == frozen.parts - 1,
        transformers=_path(home, before if what == "transform" and before else frozen.transformers),
        state=_path(home, before if what == "fit" else None),
        files=tuple(str(home / name) for name in _files(frozen, what)),
        memory_mb=memory_mb,
    )


def _slots(frozen: Frozen, what: FitAction, number: int, home: Path) -> tuple[Slot, ...]:
    if what in ("transform", "fit"):
        pieces = _pieces(frozen)[number]
    elif what == "predict":
        pieces = [(number, VALIDATION_SLOT)]
    else:
        pieces = [piece for part in _pieces(frozen) for piece in part]
    return tuple(Slot(str(home / frozen.dealt[file]), slot, frozen.layout.slots) for file, slot in pieces)


def _files(frozen: Frozen, what: FitAction) -> tuple[str, ...]:
    if what == "merge":
        return frozen.members
    if what == "predict":
        assert frozen.model is not None
        return (frozen.model,)
    return frozen.answers if what == "measure" else ()


def _path(home: Path, name: str | None) -> str | None:
    return None if name is None else str(home / name)
