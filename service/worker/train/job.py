"""The kind of job that trains: stages of partitions, and at the end a version that is published as any other.

Rows are read here, in the worker; everything that has to do with the estimator is done by a child, one step
at a time (`service/compiler/fit`), which leaves a file that the partition's result names. A step that is done
twice leaves two files, and one of them counts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from registry import db
from registry.artifacts import Store, fsync_directory
from registry.errors import Invalid, NotFound, Refused, Unavailable
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import FIT
from service.compiler.fit.fit_records import FitPlan, FitResult, FitStep
from service.compiler.fit.splitting import SplitLayout, layout_features, split_partition
from service.config import Settings
from service.formats import reading
from service.formats.dataset import Dataset, FileRange
from service.formats.format_table import schema_of
from service.submit import input_locations, train_admission
from service.worker.job_kind import Alive, Hopeless, Piece, Stage, Whole
from service.worker.ray.messages import Descriptor, Steps
from service.worker.train import publish_model
from service.worker.train import stages as train_stages
from service.worker.train.stages import ESTIMATOR, Frozen

Fit = Callable[[FitStep, Callable[[], None]], FitResult]
"""Does a step, and calls the other function every few seconds: what that raises ends the step. Raises
`Unavailable` when it was no fault of the step's that it could not be done."""


def in_children(timeout_s: float, forks: ForkServer) -> Fit:
    """Run each step in a child of its own, on this machine."""

    def fit(step: FitStep, beat: Callable[[], None]) -> FitResult:
        try:
            return oneshot.run(forks, FIT, step, timeout_s, beat)
        except oneshot.ChildLost as error:
            raise Unavailable(str(error)) from error

    return fit


class Training:
    """The `Work` of kind `train`. `fit` is where its steps are done."""

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, fit: Fit) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._fit = fit

    def plan(self, job: JobRow, alive: Alive) -> Stage:
        """The dataset, its parts, and what the estimator needs. Raises `Hopeless` for what it refuses."""
        home = self._settings.job_directory(job.id)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._fetch_estimator(job, home)
        place = input_locations.locate_input(self._settings, self._store, job.spec["input"])
        dtypes = train_admission.column_dtypes(job.spec)
        dataset = reading.open_dataset(place.location, place.media_type, alike=True, dtypes=dtypes)
        parts = reading.split(dataset)
        check = self._check(job, home, alive)
        frozen = Frozen(
            dataset=msgspec.to_builtins(dataset),
            layout=_layout(job.spec, dataset, check, len(parts)),
            check=check,
            strategy=job.spec["strategy"],
            balanced=job.spec["sampling"] == "balanced",
        )
        cut = [jobs.NewPartition(msgspec.to_builtins(p), p.rows) for p in parts]
        return Stage(jobs.READ_STAGE, cut, msgspec.to_builtins(frozen))

    def partition(self, job: JobRow, row: PartitionRow, fence: int, alive: Alive) -> Piece:
        home = self._settings.job_directory(job.id)
        frozen = msgspec.convert(job.plan, Frozen)
        name = f"{row.stage}-{row.number:06d}-{fence}"
        if row.stage == jobs.READ_STAGE:
            return _read(frozen, row, home / name, alive)
        before = self._left_before(job, row)
        step = train_stages.step(frozen, row, home, before, self._settings.build_memory_mb)
        return do_step(step, self._fit, home / name, lambda: alive(0, 0))

    def spread(self, job: JobRow, rows: Sequence[PartitionRow]) -> tuple[Steps, list[Descriptor]]:
        """What actors on Ray need for the partitions of an ensemble."""
        home, frozen = self._settings.job_directory(job.id), msgspec.convert(job.plan, Frozen)
        memory_mb = self._settings.build_memory_mb
        steps = [train_stages.step(frozen, row, home, None, memory_mb) for row in rows]
        shared = Steps(home=str(home), timeout_s=self._settings.build_timeout_s)
        return shared, [msgspec.to_builtins(step) for step in steps]

    def assemble(self, job: JobRow, pieces: Sequence[PartitionRow], alive: Alive) -> Whole | Stage:
        """The next stage; after the last one, the version. Raises `Later` until that is built."""
        frozen = msgspec.convert(job.plan, Frozen)
        stage = max(p.stage for p in pieces)
        stages = train_stages.stages(frozen)
        frozen = train_stages.add(frozen, stage, [p for p in pieces if p.stage == stage])
        following = stages[stages.index(stage) + 1 :]
        if following:
            read = [p for p in pieces if p.stage == jobs.READ_STAGE]
            parts = train_stages.partitions(frozen, following[0], read)
            return Stage(following[0], parts, msgspec.to_builtins(frozen))
        home = self._settings.job_directory(job.id)
        return publish_model.publish(self._sessions, self._store, job, frozen, home)

    def _fetch_estimator(self, job: JobRow, home: Path) -> None:
        """A copy of its own: nobody else's file is collected while the job goes on."""
        try:
            uploaded = self._store.path(job.spec["estimator"]["artifact"])
        except NotFound as missing:
            raise Hopeless(f"the estimator: {missing}") from missing
        with tempfile.NamedTemporaryFile(dir=home, delete=False) as copy:
            shutil.copyfile(uploaded, copy.name)
            Path(copy.name).replace(home / ESTIMATOR)
        _durable(home / ESTIMATOR)

    def _check(self, job: JobRow, home: Path, alive: Alive) -> FitPlan:
        step = FitStep(
            do="check",
            estimator=str(home / ESTIMATOR),
            strategy=job.spec["strategy"],
            target=job.spec["target"],
            memory_mb=self._settings.build_memory_mb,
        )
        made = _made(step, self._fit, home / "check", "the estimator", lambda: alive(0, 0))
        return msgspec.convert(made.report, FitPlan)

    def _left_before(self, job: JobRow, row: PartitionRow) -> str | None:
        """The file of the partition that this one goes on from."""
        if not row.part.get(jobs.SEQUENTIAL) or row.number == 0:
            return None
        with db.reading(self._sessions) as session:
            before = jobs.partition(session, job.id, row.stage, row.number - 1)
            return str((before.result or {})["file"])


def do_step(step: FitStep, fit: Fit, path: Path, beat: Callable[[], None]) -> Piece:
    """Do a step; what it leaves is at `path`. Raises `Hopeless` when no other attempt would do better."""
    started = time.monotonic()
    made = _made(step, fit, path, f"partition {step.number}", beat)
    result = {"rows": made.rows, "metrics": made.metrics, "seconds": round(time.monotonic() - started, 3)}
    return Piece(made.rows, 0, result | (_durable(path) if made.file else {}))


def _made(step: FitStep, fit: Fit, path: Path, what: str, beat: Callable[[], None]) -> FitResult:
    """The child names the file that it leaves, so the name is not trusted."""
    _require(step)
    with tempfile.TemporaryDirectory(prefix="step-", dir=path.parent, ignore_cleanup_errors=True) as out:
        made = fit(msgspec.structs.replace(step, out=out), beat)
        if made.state == "rejected":
            raise Hopeless(f"{what}: {made.report['reason']}")
        if made.file is not None:
            left = Path(out) / Path(made.file).name
            if left.is_symlink() or not left.is_file():
                raise Hopeless(f"{what}: the step names a file that it did not write")
            left.replace(path)
    return made


def _require(step: FitStep) -> None:
    """Raises `Hopeless` when a file of an earlier step is gone."""
    needed = [step.estimator, step.transformers, step.state, *step.files, *(s.file for s in step.slots)]
    for file in needed:
        if file is not None and not Path(file).is_file():
            raise Hopeless(f"{Path(file).name}, which an earlier step left, is gone; start the job anew")


def _layout(spec: dict[str, Any], dataset: Dataset, check: FitPlan, parts: int) -> SplitLayout:
    target = spec["target"]
    if target not in dataset.columns:
        raise Hopeless(
            f"the target {target!r} is no column of the input; it has {', '.join(dataset.columns)}"
        )
    try:
        names = [c for c in dataset.columns if c not in spec["exclude"]]
        found = layout_features(names, schema_of(dataset, names).types)
    except Refused as refused:
        raise Hopeless(str(refused)) from refused
    truth = next(f for f in found if f.name == target)
    labelled = check.task == "classification"
    if not labelled and truth.dtype == "string":
        raise Hopeless(f"the target {target!r} holds strings, and {check.name} answers with numbers")
    if not labelled and spec["sampling"] != "none":
        raise Hopeless(f"sampling {spec['sampling']} needs classes, and {check.name} has none")
    by_class = spec["sampling"] == "stratified"
    dealt = spec["strategy"] != "single" and (by_class or spec["partitions"] is not None)
    return SplitLayout(
        features=tuple(f for f in found if f.name != target),
        target=truth,
        labelled=labelled,
        validation=spec["validation"],
        training_slots=(spec["partitions"] or parts) if dealt else 1,
        stratified=by_class,
    )


def _read(frozen: Frozen, row: PartitionRow, path: Path, alive: Alive) -> Piece:
    """Deal a partition of the input. Raises `Hopeless`, naming it, when it is not like the others."""
    dataset = msgspec.convert(frozen.dataset, Dataset)
    part = msgspec.convert(row.part, FileRange)
    path = path.with_suffix(".arrow")
    try:
        names = [f.name for f in (*frozen.layout.features, frozen.layout.target)]
        dealt = split_partition(reading.tables(dataset, part, names), frozen.layout, row.number, path, alive)
    except (Refused, Invalid) as refused:
        name = dataset.files[part.file].name
        raise Hopeless(f"partition {row.number} ({name}): {refused}") from refused
    result = {"counts": msgspec.to_builtins(dealt.counts)} | _durable(path)
    return Piece(dealt.rows, dealt.failed, result)


def _durable(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    fsync_directory(path.parent)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}
