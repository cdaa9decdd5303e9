"""The kind of job that scores: every row of the input through one version, partition by partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry import db, versions
from registry.artifacts import Store, Writing
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.rows import NUMPY, Array, Outputs
from registry.signature import Signature
from registry.tables import VersionRow
from service.config import Settings
from service.formats import assembly, balance, format_table, reading
from service.formats.assembly import PartErrors
from service.formats.dataset import Dataset, FileRange
from service.formats.writing import ErrorWriter, PartWriter
from service.runtime.codec.answers import Answers
from service.runtime.loading import read_runtime_spec
from service.submit import input_locations
from service.submit.score_admission import Layout, layout
from service.worker.job_kind import Alive, Gone, Hopeless, Piece, Stage, Whole
from service.worker.lane_models import LaneModels
from service.worker.ray.messages import Descriptor, Scores


class Scoring:
    """The `Work` of kind `score` on this machine."""

    def __init__(self, settings: Settings, sessions: db.Sessions, store: Store, models: LaneModels) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._models = models

    def plan(self, job: JobRow, alive: Alive) -> Stage:
        """The dataset and its parts. Raises `Invalid` when the input is not what the version takes."""
        wanted = layout(job.spec, self._signature(job))
        place = input_locations.locate_input(self._settings, self._store, job.spec["input"])
        dataset = reading.open_dataset(place.location, place.media_type)
        reading.check_head(dataset, wanted.columns, wanted.extra, wanted.id_column, 1)
        found = balance.balanced(reading.split(dataset), self._settings.batch_lanes)
        parts = [jobs.NewPartition(msgspec.to_builtins(p), p.rows) for p in found]
        return Stage(jobs.SCORE_STAGE, parts, {"dataset": msgspec.to_builtins(dataset)})

    def partition(self, job: JobRow, row: PartitionRow, fence: int, alive: Alive) -> Piece:
        signature = self._signature(job)
        self._check_so_far(job)
        dataset = msgspec.convert((job.plan or {})["dataset"], Dataset)
        part = msgspec.convert(row.part, FileRange)
        home = self._settings.job_directory(job.id)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        assert job.version_id is not None, "`_signature` has seen to it"
        with self._models.using(job.version_id) as runtime:
            return score(
                dataset,
                part,
                layout(job.spec, signature),
                signature,
                runtime,
                home / f"part-{row.number:06d}-{fence}",
                job.spec["output"]["media_type"],
                alive,
            )

    def spread(self, job: JobRow, rows: Sequence[PartitionRow]) -> tuple[Scores, list[Descriptor]]:
        """What actors on Ray need for partitions. Raises what `partition` raises."""
        self._signature(job)
        self._check_so_far(job)
        assert job.version_id is not None, "`_signature` has seen to it"
        shared = Scores(
            spec=job.spec,
            dataset=(job.plan or {})["dataset"],
            version=read_runtime_spec(self._sessions, job.version_id),
            blobs=str(self._settings.blobs.absolute()),
            home=str(self._settings.job_directory(job.id)),
            deadline_s=self._settings.predict_deadline_s,
            memory_mb=self._settings.build_memory_mb,
        )
        return shared, [row.part for row in rows]

    def assemble(self, job: JobRow, pieces: Sequence[PartitionRow], alive: Alive) -> Whole:
        """One output and one errors file of all parts, as blobs. Raises `Hopeless`: too many rows failed."""
        rows, failed = sum(p.rows for p in pieces), sum(p.failed for p in pieces)
        home, parts = self._settings.job_directory(job.id), [p.result or {} for p in pieces]
        if gone := [(p.stage, p.number) for p in pieces if not _is_there(home, p.result or {})]:
            raise Gone(gone)
        errors = self._errors_of(job, pieces, lambda: alive(rows, failed)) if failed else None
        if (why := _too_many(job.spec.get("error_threshold"), rows, failed)) is not None:
            raise Hopeless(why, errors)
        with self._store.writing() as sink:
            out = _Watched(sink, lambda: alive(rows, failed))
            assembly.assemble([home / p["file"] for p in parts], job.spec["output"]["media_type"], out)
            output = sink.commit()
        manifest = {
            "rows": rows,
            "failed": failed,
            "sha256": output.sha256,
            "bytes": output.bytes,
            "parts": parts,
        }
        return Whole(manifest, output.sha256, errors)

    def _check_so_far(self, job: JobRow) -> None:
        """Raises `Hopeless` when too many rows have failed already, whatever becomes of the others."""
        threshold = job.spec.get("error_threshold")
        if threshold is None:
            return
        with db.reading(self._sessions) as session:
            found = jobs.progress(session, [job.id])[job.id]
            if found.rows_total is None:
                return
            why = _too_many(threshold, found.rows_total - found.rows_failed, found.rows_failed)
            if why is None:
                return
            pieces = jobs.partitions(session, job.id)
        raise Hopeless(why, self._errors_of(job, pieces, lambda: None))

    def _errors_of(self, job: JobRow, pieces: Sequence[PartitionRow], alive: Callable[[], None]) -> str:
        """The blob of the errors of all `pieces` that are done; the others say how many rows they have."""
        home = self._settings.job_directory(job.id)
        with self._store.writing() as sink:
            assembly.assemble_errors(_errors(home, job, pieces), _Watched(sink, alive))
            return sink.commit().sha256

    def _signature(self, job: JobRow) -> Signature:
        """Of the job's version. Raises `Hopeless` when it was deleted or archived meanwhile."""
        name = f"{job.model}:{job.version}"
        with db.reading(self._sessions) as session:
            version = session.get(VersionRow, job.version_id) if job.version_id else None
            if version is None:
                raise Hopeless(f"{name} was deleted; start a new job with another version")
            if version.state != versions.READY:
                raise Hopeless(
                    f"{name} is {version.state}; bring it back (archived: false), then resume the job"
                )
            return versions.signature_of(version)


class _Watched:
    """A sink that goes on only while somebody wants it filled."""

    def __init__(self, sink: Writing, alive: Callable[[], None]) -> None:
        self._sink, self._alive = sink, alive

    def write(self, chunk: bytes) -> None:
        self._alive()
        self._sink.write(chunk)


def score(
    dataset: Dataset,
    part: FileRange,
    wanted: Layout,
    signature: Signature,
    runtime: Any,
    base: Path,
    media_type: str,
    alive: Alive,
) -> Piece:
    """Score `part` into files beside `base`: the output, and the errors if there are any."""
    started, answers = time.monotonic(), Answers(signature)
    empty = answers.table(_no_rows(signature))
    fields = [
        *format_table.extra_schema(dataset, wanted.extra),
        *(_field(name, a) for name, a in empty.items()),
    ]
    schema = pa.schema(fields)
    rows = failed = 0
    out = PartWriter(base.with_name(base.name + format_table.suffix(media_type)), media_type, schema)
    errors = ErrorWriter(base.with_name(base.name + ".errors.csv"))
    with out, errors:
        for batch in reading.read(dataset, part, wanted.columns, wanted.extra, wanted.id_column):
            alive(rows, failed)
            if len(batch.rows):
                table = answers.table(runtime.run(batch.rows))
                out.write(
                    pa.record_batch([*batch.extra.columns, *map(_column, table.values())], schema=schema)
                )
            for fault in batch.faults:
                errors.write(fault)
            rows, failed = rows + len(batch.rows), failed + len(batch.faults)
        alive(rows, failed)
        written, faults = out.close(), errors.close()
    return Piece(
        rows,
        failed,
        {
            "file": written.file,
            "rows": rows,
            "failed": failed,
            "sha256": written.sha256,
            "bytes": written.bytes,
            "errors": faults,
            "seconds": round(time.monotonic() - started, 3),
        },
    )


def _no_rows(signature: Signature) -> Outputs:
    return {
        o.name: np.empty((0, *(max(d, 0) for d in o.shape[1:])), NUMPY[o.dtype]) for o in signature.outputs
    }


def _field(name: str, array: Array) -> Any:
    return pa.field(name, pa.string() if array.dtype.kind in "OU" else pa.from_numpy_dtype(array.dtype))


def _column(array: Array) -> Any:
    return pa.array(array, type=pa.string() if array.dtype.kind in "OU" else None)


def _too_many(threshold: float | None, rows: int, failed: int) -> str | None:
    """Why a job with so many failed rows has failed; None when it has not."""
    if threshold is None and failed and not rows:
        return f"each of the {failed} rows failed; the errors file says why"
    if threshold is not None and failed > threshold * (rows + failed):
        share = failed / (rows + failed)
        return f"{failed} of {rows + failed} rows failed ({share:.2%}), the threshold is {threshold:.2%}"
    return None


def _is_there(home: Path, result: dict[str, Any]) -> bool:
    """Whether the files that a partition made are, with all their bytes."""
    file, errors = home / result["file"], result["errors"]
    try:
        return file.stat().st_size == result["bytes"] and (errors is None or (home / errors).is_file())
    except FileNotFoundError:
        return False


def _errors(home: Path, job: JobRow, pieces: Sequence[PartitionRow]) -> Iterator[PartErrors]:
    """The errors files. An uploaded input has no name but its digest: it is left out."""
    named = [f["name"] for f in (job.plan or {})["dataset"]["files"]]
    uploaded = job.spec["input"].get("artifact") is not None
    first = in_file = at = 0
    for piece in pieces:
        if piece.part["file"] != at:
            at, in_file = piece.part["file"], 0
        if left := (piece.result or {}).get("errors"):
            yield PartErrors(home / left, first, "" if uploaded else named[at], in_file)
        first += piece.rows_total or 0
        in_file += piece.rows_total or 0
