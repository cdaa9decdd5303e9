"""Work of scoring jobs: score each partition of the input with one version, then join the output files."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry import db, versions
from registry.artifacts import BlobWriter, Store, create_directory
from registry.errors import Invalid, Unavailable
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.media_types import SUFFIXES
from registry.rows import NUMPY_DTYPES, Array, Outputs
from registry.signature import Signature
from registry.tables import VersionRow
from registry.vocabulary import RAY, READY
from service.builds.forkserver import ForkServer
from service.formats import assembly, reading
from service.formats.assembly import PartErrors
from service.formats.dataset import Batch, Dataset, FileRange
from service.formats.writing import ErrorWriter, PartWriter, find_unwritable_rows
from service.runtime.codec.answer_encoder import AnswerEncoder
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import ModelRuntime, RuntimeSpec, read_runtime_spec, start_bulk_runtime
from service.runtime.row_refusals import RowScorer
from service.submit.input_locations import locate_input
from service.submit.score_admission import HEAD_ROWS, columns_to_read, none_scorable
from service.worker.job_work import (
    JobResult,
    PartitionResult,
    PartsMissing,
    PermanentFailure,
    PlannedStage,
    RayInput,
    RayRunner,
    ReportProgress,
    WorkContext,
)


class ScoreWork:
    """The `JobWork` of kind `score`."""

    def __init__(self, context: WorkContext) -> None:
        self._settings = context.settings
        self._sessions = context.sessions
        self._store = context.store
        self._models = context.models

    def plan(self, job: JobRow, report_progress: ReportProgress) -> PlannedStage:
        """Raises `Invalid` if the input does not fit the version's signature."""
        columns = columns_to_read(job.spec, self._signature(job))
        place = locate_input(self._settings, self._store, job.spec["input"])
        dataset = reading.open_dataset(
            place.location, place.media_type, name=place.name, features=columns.features
        )
        head = reading.read_head(dataset, columns.features, columns.copied, columns.id_column, HEAD_ROWS)
        if job.engine != RAY and job.spec.get("error_threshold") is None:
            self._require_scorable_head(job, head)
        ranges = reading.split(dataset, self._settings.batch_lanes)
        partitions = [
            jobs.NewPartition({**msgspec.to_builtins(r), jobs.ON_RAY: True}, r.rows) for r in ranges
        ]
        return PlannedStage(jobs.SCORE_STAGE, partitions, {"dataset": msgspec.to_builtins(dataset)})

    def _require_scorable_head(self, job: JobRow, head: Batch) -> None:
        """Raises `PermanentFailure` if the model refuses all of the first rows.

        Admission has checked the cells without the model. A model that refuses every row would be called for
        each of them.
        """
        if not len(head.rows):
            return
        assert job.version_id is not None, "_signature has checked it"
        version = read_runtime_spec(self._sessions, job.version_id)
        with self._models.using(job.version_id) as runtime:
            try:
                runtime.run(head.rows)
            except Unavailable:  # the partitions find the rows that cause it
                return
            except Invalid:
                pass
            scorer = RowScorer(runtime.run, version.requires_finite)
            scored = scorer.run(head.rows, lambda: None)
        if not scored.accepted.any():
            reason = none_scorable(head.length, scored.refused[0].message)
            raise PermanentFailure(reason)

    def partition(
        self, job: JobRow, row: PartitionRow, fence: int, report_progress: ReportProgress
    ) -> PartitionResult:
        signature = self._signature(job)
        max_failed = self._check_error_threshold(job)
        directory = self._settings.job_directory(job.id)
        create_directory(directory, 0o700)
        assert job.version_id is not None, "_signature has checked it"
        version = read_runtime_spec(self._sessions, job.version_id)
        with self._models.using(job.version_id) as runtime:
            return score_range(
                msgspec.convert((job.plan or {})["dataset"], Dataset),
                msgspec.convert(row.part, FileRange),
                job.spec,
                signature,
                RowScorer(runtime.run, version.requires_finite),
                directory / f"part-{row.number:06d}-{fence}",
                report_progress,
                max_failed,
            )

    def assemble(
        self, job: JobRow, partitions: Sequence[PartitionRow], report_progress: ReportProgress
    ) -> JobResult:
        """Join the parts into one output and one errors file.

        Raises `PermanentFailure` if too many rows failed.
        """
        rows, failed = sum(p.rows for p in partitions), sum(p.failed for p in partitions)
        directory = self._settings.job_directory(job.id)
        parts = [p.result or {} for p in partitions]
        if missing := [
            (p.stage, p.number) for p in partitions if not _is_complete(directory, p.result or {})
        ]:
            raise PartsMissing(missing)

        def check() -> None:
            report_progress(rows, failed)

        errors = self._assemble_errors(job, partitions, check) if failed else None
        reason = _failure_reason(job.spec.get("error_threshold"), rows, failed)
        if reason is not None:
            raise PermanentFailure(reason, errors)
        with self._store.writer() as sink:
            files = [directory / p["file"] for p in parts]
            assembly.assemble(files, job.spec["output"]["media_type"], _CancellableSink(sink, check))
            output = sink.commit()
        manifest = {
            "rows": rows,
            "failed": failed,
            "sha256": output.sha256,
            "bytes": output.bytes,
            "parts": parts,
        }
        return JobResult(manifest, output.sha256, errors)

    def ray_input(self, job: JobRow, rows: Sequence[PartitionRow]) -> RayInput:
        self._signature(job)
        max_failed = self._check_error_threshold(job)
        assert job.version_id is not None, "_signature has checked it"
        shared = SharedScoreInput(
            spec=job.spec,
            dataset=(job.plan or {})["dataset"],
            version=read_runtime_spec(self._sessions, job.version_id),
            blobs=str(self._settings.blobs.absolute()),
            deadline_s=self._settings.predict_deadline_s,
            memory_mb=self._settings.build_memory_mb,
            max_failed=None if math.isinf(max_failed) else max_failed,
        )
        return RayInput(msgspec.to_builtins(shared), [row.part for row in rows])

    @staticmethod
    def on_ray(shared: dict[str, Any], fork_server: ForkServer) -> RayRunner:
        return ActorScorer(msgspec.convert(shared, SharedScoreInput), fork_server)

    def _check_error_threshold(self, job: JobRow) -> float:
        """Return how many more rows may fail; infinity if that is not known.

        Raises `PermanentFailure` if more rows have failed already than the job allows in total.
        """
        threshold = job.spec.get("error_threshold")
        if threshold is None:
            return math.inf
        with db.reading(self._sessions) as session:
            progress = jobs.progress(session, [job.id])[job.id]
            if progress.rows_total is None:
                return math.inf
            rows = progress.rows_total - progress.rows_failed
            reason = _failure_reason(threshold, rows, progress.rows_failed)
            if reason is None:
                return float(threshold * progress.rows_total - progress.rows_failed)
            partitions = jobs.partitions(session, job.id)
        raise PermanentFailure(reason, self._assemble_errors(job, partitions, lambda: None))

    def _assemble_errors(
        self, job: JobRow, partitions: Sequence[PartitionRow], check: Callable[[], None]
    ) -> str:
        """Write the failed rows of all finished partitions into a blob; return its sha256."""
        directory = self._settings.job_directory(job.id)
        with self._store.writer() as sink:
            part_errors = _error_files(directory, job, partitions)
            assembly.assemble_errors(part_errors, _CancellableSink(sink, check))
            return sink.commit().sha256

    def _signature(self, job: JobRow) -> Signature:
        """Return the signature of the job's version.

        Raises `PermanentFailure` if the version was deleted or archived in the meantime.
        """
        name = f"{job.model}:{job.version}"
        with db.reading(self._sessions) as session:
            version = session.get(VersionRow, job.version_id) if job.version_id else None
            if version is None:
                raise PermanentFailure(f"{name} was deleted; start a new job with another version")
            if version.state != READY:
                raise PermanentFailure(
                    f"{name} is {version.state}; unarchive it (archived: false), then resume the job"
                )
            return versions.signature_of(version)


class SharedScoreInput(msgspec.Struct, frozen=True, kw_only=True):
    """Input that all partitions of a scoring job on Ray share. `blobs` is the same path on every node."""

    spec: dict[str, Any]
    dataset: dict[str, Any]
    version: RuntimeSpec
    blobs: str
    deadline_s: float  # of one call of an isolated model
    memory_mb: int  # limit of an isolated model
    max_failed: float | None  # rows that may fail; None: not known


class ActorScorer:
    """The `RayRunner` of scoring jobs. It loads the model once."""

    def __init__(self, shared: SharedScoreInput, fork_server: ForkServer) -> None:
        self._shared = shared
        self._isolation = Isolation(lambda: fork_server.fork("isolated"), shared.memory_mb, shared.deadline_s)
        self._runtime: ModelRuntime | None = None

    def __call__(self, part: dict[str, Any], base: Path) -> PartitionResult:
        shared = self._shared
        max_failed = math.inf if shared.max_failed is None else shared.max_failed
        if self._runtime is None:
            store = Store(Path(shared.blobs))
            self._runtime = start_bulk_runtime(shared.version, store, self._isolation)
        return score_range(
            msgspec.convert(shared.dataset, Dataset),
            msgspec.convert(part, FileRange),
            shared.spec,
            shared.version.signature,
            RowScorer(self._runtime.run, shared.version.requires_finite),
            base,
            lambda rows, failed: None,  # Ray ends an actor whose job was cancelled
            max_failed,
        )


class _CancellableSink:
    """A sink that calls `check` before each write; an exception ends the assembly."""

    def __init__(self, sink: BlobWriter, check: Callable[[], None]) -> None:
        self._sink, self._check = sink, check

    def write(self, chunk: bytes) -> None:
        self._check()
        self._sink.write(chunk)


def score_range(
    dataset: Dataset,
    file_range: FileRange,
    spec: dict[str, Any],
    signature: Signature,
    scorer: RowScorer,
    base: Path,
    report_progress: ReportProgress,
    max_failed: float = math.inf,
) -> PartitionResult:
    """Score the rows of `file_range`. Writes an output file, and an errors file if rows failed.

    `base` is the prefix of their names. Once `max_failed` rows have failed, the job fails anyway, and the
    rows that the model refuses are not searched for.
    """
    started, answers = time.monotonic(), AnswerEncoder(signature)
    columns, media_type = columns_to_read(spec, signature), spec["output"]["media_type"]
    schema = _output_schema(dataset, columns.copied, answers.table(_empty_outputs(signature)))
    rows = failed = 0
    path = base.with_name(base.name + SUFFIXES[media_type][0])
    output = PartWriter(path, media_type, schema, len(columns.copied))
    errors = ErrorWriter(base.with_name(base.name + ".errors.csv"))
    with output, errors:
        for batch in reading.read_batches(
            dataset, file_range, columns.features, columns.copied, columns.id_column
        ):
            report_progress(rows, failed)
            unwritable = find_unwritable_rows(batch.extra, media_type)
            batch = reading.add_faults(batch, rows + failed, unwritable, columns.id_column)
            if len(batch.rows):
                before_call = functools.partial(report_progress, rows, failed)
                scored = scorer.run(batch.rows, before_call, max_failed - failed - len(batch.faults))
                batch = reading.add_faults(batch, rows + failed, scored.refused, columns.id_column)
                if scored.outputs is not None:
                    arrays = [
                        *batch.extra.columns,
                        *map(_to_arrow, answers.table(scored.outputs).values()),
                    ]
                    output.write(pa.record_batch(arrays, schema=schema))
            for fault in batch.faults:
                errors.write(fault)
            rows, failed = rows + len(batch.rows), failed + len(batch.faults)
        report_progress(rows, failed)
        written, errors_file = output.close(), errors.close()
    result = {
        "file": written.file,
        "rows": rows,
        "failed": failed,
        "sha256": written.sha256,
        "bytes": written.bytes,
        "errors": errors_file,
        "seconds": round(time.monotonic() - started, 3),
    }
    return PartitionResult(rows, failed, result)


def _output_schema(dataset: Dataset, copied: Sequence[str], table: dict[str, Array]) -> Any:
    fields = [pa.field(name, _arrow_type(array)) for name, array in table.items()]
    return pa.schema([*reading.extra_schema(dataset, copied), *fields])


def _empty_outputs(signature: Signature) -> Outputs:
    return {
        o.name: np.empty((0, *(max(d, 0) for d in o.shape[1:])), NUMPY_DTYPES[o.dtype])
        for o in signature.outputs
    }


def _arrow_type(array: Array) -> Any:
    return pa.string() if array.dtype.kind in "OU" else pa.from_numpy_dtype(array.dtype)


def _to_arrow(array: Array) -> Any:
    return pa.array(array, type=pa.string() if array.dtype.kind in "OU" else None)


def _failure_reason(threshold: float | None, rows: int, failed: int) -> str | None:
    """Return why a job with this many failed rows fails, or None if it does not."""
    if threshold is None and failed and not rows:
        return f"each of the {failed} rows failed; see the errors file for the reasons"
    if threshold is not None and failed > threshold * (rows + failed):
        share = failed / (rows + failed)
        return f"{failed} of {rows + failed} rows failed ({share:.2%}), the threshold is {threshold:.2%}"
    return None


def _is_complete(directory: Path, result: dict[str, Any]) -> bool:
    """Whether the files of a partition exist, the output with all its bytes."""
    output, errors = directory / result["file"], result["errors"]
    try:
        return output.stat().st_size == result["bytes"] and (errors is None or (directory / errors).is_file())
    except FileNotFoundError:
        return False


def _error_files(directory: Path, job: JobRow, partitions: Sequence[PartitionRow]) -> Iterator[PartErrors]:
    """Yield the errors file of each partition that has one."""
    names = [f["name"] for f in (job.plan or {})["dataset"]["files"]]
    first_row = first_row_in_file = current_file = 0
    for partition in partitions:
        if partition.part["file"] != current_file:
            current_file, first_row_in_file = partition.part["file"], 0
        if errors := (partition.result or {}).get("errors"):
            yield PartErrors(directory / errors, first_row, names[current_file], first_row_in_file)
        first_row += partition.rows_total or 0
        first_row_in_file += partition.rows_total or 0
