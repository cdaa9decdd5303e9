"""Work of training jobs: stages of partitions, and at the end a version that is published like any other.

The worker reads the rows. Every step that opens the estimator runs in a child process
(`service/compiler/fit`), which writes a file that the partition's result names. If a step runs twice, two
files exist, and the registry counts one of them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from registry import db
from registry.artifacts import create_directory, fsync_directory
from registry.errors import Invalid, NotFound, Refused, Unavailable
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import FIT
from service.compiler.fit.fit_records import Feature, FitPlan, FitResult, FitStep
from service.compiler.fit.splitting import SplitLayout, split_partition
from service.formats import reading
from service.formats.column_types import feature_dtypes
from service.formats.dataset import Dataset, FileRange
from service.submit.input_locations import locate_input
from service.submit.train_admission import column_dtypes, missing_target
from service.worker.job_work import (
    JobResult,
    PartitionResult,
    PermanentFailure,
    PlannedStage,
    RayInput,
    RayRunner,
    ReportProgress,
    WorkContext,
)
from service.worker.train import publish_model, stages
from service.worker.train.stages import ESTIMATOR, TrainingPlan

RunFit = Callable[[FitStep, Callable[[], None]], FitResult]
"""Runs a step and calls the second argument every few seconds; an exception from it ends the step.

Raises `Unavailable` if the step could not run for a reason outside of it.
"""


def fit_in_child(timeout_s: float, fork_server: ForkServer) -> RunFit:
    """Return a function that runs each step in a child process on this machine."""

    def fit(step: FitStep, heartbeat: Callable[[], None]) -> FitResult:
        try:
            return oneshot.run(fork_server, FIT, step, timeout_s, heartbeat)
        except oneshot.ChildLost as error:
            raise Unavailable(str(error)) from error

    return fit


class TrainWork:
    """The `JobWork` of kind `train`."""

    def __init__(self, context: WorkContext) -> None:
        self._settings = context.settings
        self._sessions = context.sessions
        self._store = context.store
        self._fit = fit_in_child(context.settings.build_timeout_s, context.fork_server)

    def plan(self, job: JobRow, report_progress: ReportProgress) -> PlannedStage:
        """Raises `PermanentFailure` if the estimator or the columns cannot be used."""
        directory = self._settings.job_directory(job.id)
        create_directory(directory, 0o700)
        self._copy_estimator(job, directory)
        place = locate_input(self._settings, self._store, job.spec["input"])
        dataset = reading.open_dataset(
            place.location,
            place.media_type,
            uniform=True,
            dtypes=column_dtypes(job.spec),
            name=place.name,
        )
        ranges = reading.split(dataset)
        fit_plan = self._check_estimator(job, directory, report_progress)
        plan = TrainingPlan(
            dataset=msgspec.to_builtins(dataset),
            layout=_split_layout(job.spec, dataset, fit_plan, len(ranges)),
            fit_plan=fit_plan,
            strategy=job.spec["strategy"],
            balanced=job.spec["sampling"] == "balanced",
        )
        partitions = [jobs.NewPartition(msgspec.to_builtins(r), r.rows) for r in ranges]
        return PlannedStage(jobs.READ_STAGE, partitions, msgspec.to_builtins(plan))

    def partition(
        self, job: JobRow, row: PartitionRow, fence: int, report_progress: ReportProgress
    ) -> PartitionResult:
        directory = self._settings.job_directory(job.id)
        plan = msgspec.convert(job.plan, TrainingPlan)
        path = directory / f"{row.stage}-{row.number:06d}-{fence}"
        if row.stage == jobs.READ_STAGE:
            return _split_input(plan, row, path, report_progress)
        previous_file = self._previous_file(job, row)
        step = stages.fit_step(plan, row, directory, previous_file, self._settings.build_memory_mb)
        return run_step(step, self._fit, path, lambda: report_progress(0, 0))

    def assemble(
        self, job: JobRow, partitions: Sequence[PartitionRow], report_progress: ReportProgress
    ) -> JobResult | PlannedStage:
        """Return the next stage. After the last stage publish the version; `RetryLater` until it is built."""
        plan = msgspec.convert(job.plan, TrainingPlan)
        stage = max(p.stage for p in partitions)
        plan = stages.with_results(plan, stage, [p for p in partitions if p.stage == stage])
        names = stages.stage_names(plan)
        following = names[names.index(stage) + 1 :]
        if following:
            read_partitions = [p for p in partitions if p.stage == jobs.READ_STAGE]
            parts = stages.new_partitions(plan, following[0], read_partitions)
            return PlannedStage(following[0], parts, msgspec.to_builtins(plan))
        directory = self._settings.job_directory(job.id)
        return publish_model.publish(self._sessions, self._store, job, plan, directory)

    def ray_input(self, job: JobRow, rows: Sequence[PartitionRow]) -> RayInput:
        """Only the fits of an ensemble run on Ray: they do not depend on each other."""
        directory, plan = self._settings.job_directory(job.id), msgspec.convert(job.plan, TrainingPlan)
        memory_mb = self._settings.build_memory_mb
        steps = [stages.fit_step(plan, row, directory, None, memory_mb) for row in rows]
        shared = {"timeout_s": self._settings.build_timeout_s}
        return RayInput(shared, [msgspec.to_builtins(step) for step in steps])

    @staticmethod
    def on_ray(shared: dict[str, Any], fork_server: ForkServer) -> RayRunner:
        fit = fit_in_child(shared["timeout_s"], fork_server)
        return lambda part, base: run_step(msgspec.convert(part, FitStep), fit, base, lambda: None)

    def _copy_estimator(self, job: JobRow, directory: Path) -> None:
        """Copy the estimator: garbage collection may delete the artifact while the job runs."""
        try:
            uploaded = self._store.verified_path(job.spec["estimator"]["artifact"])
        except NotFound as error:
            raise PermanentFailure(f"the estimator: {error}") from error
        copy = directory / f".{ESTIMATOR}.{secrets.token_hex(4)}"
        try:
            shutil.copyfile(uploaded, copy)
            copy.replace(directory / ESTIMATOR)
        finally:
            copy.unlink(missing_ok=True)
        _sync_file(directory / ESTIMATOR)

    def _check_estimator(self, job: JobRow, directory: Path, report_progress: ReportProgress) -> FitPlan:
        step = FitStep(
            do="check",
            estimator=str(directory / ESTIMATOR),
            strategy=job.spec["strategy"],
            target=job.spec["target"],
            memory_mb=self._settings.build_memory_mb,
        )
        heartbeat = lambda: report_progress(0, 0)  # noqa: E731
        result = _run_fit(step, self._fit, directory / "check", "the estimator", heartbeat)
        return msgspec.convert(result.report, FitPlan)

    def _previous_file(self, job: JobRow, row: PartitionRow) -> str | None:
        """Return the file of the previous partition if this one continues from it."""
        if not row.part.get(jobs.SEQUENTIAL) or row.number == 0:
            return None
        with db.reading(self._sessions) as session:
            previous = jobs.partition(session, job.id, row.stage, row.number - 1)
            return str((previous.result or {})["file"])


def run_step(step: FitStep, fit: RunFit, path: Path, heartbeat: Callable[[], None]) -> PartitionResult:
    """Run a step; its file is written to `path`. Raises `PermanentFailure` if retrying cannot help."""
    started = time.monotonic()
    done = _run_fit(step, fit, path, f"partition {step.number}", heartbeat)
    result = {"rows": done.rows, "metrics": done.metrics, "seconds": round(time.monotonic() - started, 3)}
    return PartitionResult(done.rows, 0, result | (_sync_file(path) if done.file else {}))


def _run_fit(
    step: FitStep, fit: RunFit, path: Path, subject: str, heartbeat: Callable[[], None]
) -> FitResult:
    """Run a step in an empty directory, then move its file to `path`.

    The child process runs code of the model, so the file name that it reports is not trusted.
    """
    _require_files(step)
    with tempfile.TemporaryDirectory(prefix="step-", dir=path.parent, ignore_cleanup_errors=True) as out:
        result = fit(msgspec.structs.replace(step, out=out), heartbeat)
        if result.state == "rejected":
            raise PermanentFailure(f"{subject}: {result.report['reason']}")
        if result.file is not None:
            file = Path(out) / Path(result.file).name
            if file.is_symlink() or not file.is_file():
                raise PermanentFailure(f"{subject}: the step reports a file that it did not write")
            file.replace(path)
    return result


def _require_files(step: FitStep) -> None:
    """Raises `PermanentFailure` if a file of an earlier step is missing."""
    files = [step.estimator, step.transformers, step.state, *step.files, *(s.file for s in step.slots)]
    for file in files:
        if file is not None and not Path(file).is_file():
            raise PermanentFailure(
                f"the file {Path(file).name} of an earlier step is missing: start a new job"
            )


def _split_layout(spec: dict[str, Any], dataset: Dataset, fit_plan: FitPlan, ranges: int) -> SplitLayout:
    target_name = spec["target"]
    if target_name not in dataset.columns:
        raise PermanentFailure(missing_target(target_name, dataset.columns))
    try:
        names = [c for c in dataset.columns if c not in spec["exclude"]]
        dtypes = feature_dtypes(dataset, names)
    except Invalid as error:
        raise PermanentFailure(str(error)) from error
    columns = [Feature(name, dtype) for name, dtype in dtypes.items()]
    target = next(f for f in columns if f.name == target_name)
    labelled = fit_plan.task == "classification"
    if not labelled and target.dtype == "string":
        raise PermanentFailure(f"the target {target_name!r} holds text, but {fit_plan.name} predicts numbers")
    if not labelled and spec["sampling"] != "none":
        raise PermanentFailure(
            f"sampling {spec['sampling']} needs classes, but {fit_plan.name} is a regressor"
        )
    stratified = spec["sampling"] == "stratified"
    redistributed = spec["strategy"] != "single" and (stratified or spec["partitions"] is not None)
    return SplitLayout(
        features=tuple(f for f in columns if f.name != target_name),
        target=target,
        labelled=labelled,
        validation=spec["validation"],
        training_slots=(spec["partitions"] or ranges) if redistributed else 1,
        stratified=stratified,
    )


def _split_input(
    plan: TrainingPlan, row: PartitionRow, path: Path, report_progress: ReportProgress
) -> PartitionResult:
    """Split one partition of the input.

    Raises `PermanentFailure`, naming the file, if its columns differ from those of other partitions.
    """
    dataset = msgspec.convert(plan.dataset, Dataset)
    file_range = msgspec.convert(row.part, FileRange)
    path = path.with_suffix(".arrow")
    names = [f.name for f in (*plan.layout.features, plan.layout.target)]
    try:
        batches = reading.read_record_batches(dataset, file_range, names)
        split = split_partition(batches, plan.layout, row.number, path, report_progress)
    except (Refused, Invalid) as error:
        name = dataset.files[file_range.file].name
        raise PermanentFailure(f"partition {row.number} ({name}): {error}") from error
    facts = {"counts": msgspec.to_builtins(split.counts), "missing": list(split.missing)}
    result = facts | _sync_file(path)
    return PartitionResult(split.rows, split.failed, result)


def _sync_file(path: Path) -> dict[str, Any]:
    """Flush a file to the disk; return its name, size and sha256 for the partition's result."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    fsync_directory(path.parent)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}
