"""End of a training: publish the model as a version and start the job that follows.

Each happens once, even if workers die in between: the transaction that publishes the version also records it
in the job, and the job that follows names the training as its parent.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from registry import db, versions
from registry.artifacts import Store
from registry.errors import Conflict, Invalid, NotFound
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.media_types import PARQUET
from registry.tables import VersionRow
from registry.versions import NewVersion
from registry.vocabulary import BUILDING, REJECTED
from service.compiler.example import MAX_ROWS
from service.compiler.fit.fit_records import SEED
from service.compiler.fit.sampling import Quota
from service.compiler.fit.splitting import VALIDATION_SLOT
from service.submit.job_kinds import admission_of
from service.worker.job_work import JobResult, PermanentFailure, RetryLater
from service.worker.train.stages import TrainingPlan

BUILD_POLL_S = 0.2
MAX_FILE_NAMES = 20
"""Names of input files in the version's lineage."""


def publish(
    sessions: db.Sessions, store: Store, job: JobRow, plan: TrainingPlan, directory: Path
) -> JobResult:
    """Publish the model and wait for its build. The result moves the alias and starts the job that follows.

    Raises `RetryLater` while the version is being built, `PermanentFailure` if it is rejected.
    """
    if job.version is None:
        _publish_version(sessions, store, job, plan, directory)
        raise RetryLater(BUILD_POLL_S)
    name = f"{job.model}:{job.version}"
    with db.reading(sessions) as session:
        version = session.get(VersionRow, job.version_id) if job.version_id else None
    if version is None:
        raise PermanentFailure(f"{name} was deleted before it was built")
    if version.state == BUILDING:
        raise RetryLater(BUILD_POLL_S)
    if version.state == REJECTED:
        raise PermanentFailure(f"{name} was rejected: {(version.report or {}).get('reason')}")
    manifest = {"model": job.model, "version": job.version, **training_summary(job, plan)}
    return JobResult(manifest, on_done=partial(_release, store))


def _publish_version(
    sessions: db.Sessions, store: Store, job: JobRow, plan: TrainingPlan, directory: Path
) -> None:
    spec = job.spec
    assert plan.model is not None
    artifact = store.put_file(directory / plan.model).sha256
    new = NewVersion(
        model=spec["publish"]["name"],
        artifact=artifact,
        format="sklearn-joblib",
        example={"artifact": _store_example(store, plan, directory), "media_type": PARQUET},
        target=plan.layout.target.name if plan.layout.validation else None,
        # The example is a sample, which may lack the rows with missing values.
        signature={"inputs": [{"name": n, "nullable": True} for n in plan.missing]} if plan.missing else None,
        metrics=plan.metrics,
        tags=spec["publish"]["tags"],
        description=f"trained by job {job.id}",
    )
    with sessions.begin() as session:
        current = jobs.lock(session, job.id)
        if current.version is not None or current.state not in jobs.OPEN_STATES:
            return  # another worker published it, or the job was cancelled
        version = versions.publish(session, store, new, by=job.created_by)
        version.lineage = {**version.lineage, "training": {"job": job.id, **training_summary(job, plan)}}
        current.version, current.version_id = version.number, version.id


def training_summary(job: JobRow, plan: TrainingPlan) -> dict[str, Any]:
    """Return the facts that the version's lineage keeps after the job is deleted."""
    return {
        "estimator": job.spec["estimator"]["artifact"],
        "strategy": plan.strategy,
        "merged": plan.fit_plan.merged,
        "sampling": job.spec["sampling"],
        "target": plan.layout.target.name,
        "excluded": job.spec["exclude"],
        "partitions": plan.training_partitions,
        "rows": plan.fitted,
        "rows_without_target": plan.without_target,
        "held_out": plan.held_out,
        "metrics": plan.metrics,
        "seed": SEED,
        "input": _input_summary(plan.dataset["files"]),
    }


def _input_summary(files: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe the input by one digest of all files and the names of the first ones."""
    lines = [f"{f['name']} {f['bytes']} {f['fingerprint']}" for f in files]
    return {
        "files": len(files),
        "bytes": sum(f["bytes"] for f in files),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "names": [f["name"] for f in files[:MAX_FILE_NAMES]],
    }


def _release(store: Store, session: Session, job: JobRow) -> None:
    """Point the alias at the version and start the job that follows, in the transaction that ends the job.

    A training that was cancelled or failed changes nothing that is served.
    """
    version = session.get(VersionRow, job.version_id, populate_existing=True)
    if version is None:
        raise PermanentFailure(f"{job.model}:{job.version} was deleted before its training ended")
    alias = job.spec["publish"]["alias"]
    if alias is not None:
        try:
            versions.set_publisher_alias(session, version, alias)
        except Conflict as error:  # for example archived meanwhile
            raise PermanentFailure(f"{alias} was not moved: {error}") from error
    _start_follow_up(session, store, job, version)


def _start_follow_up(session: Session, store: Store, job: JobRow, version: VersionRow) -> None:
    """Start the job in `then` with exactly this version, unless it was started before."""
    then = job.spec.get("then")
    if then is None or jobs.follow_up_jobs(session, [job.id]):
        return
    spec = {**then, "model": job.model, "version": version.number, "alias": None}
    try:
        admission_of(then["kind"]).accept(
            session,
            store,
            spec,
            version,
            by=job.created_by,
            schedule=job.schedule,  # the schedule's next run waits for this job, too
            parent_id=job.id,
        )
    except (NotFound, Invalid) as error:
        name = f"{job.model}:{version.number}"
        raise PermanentFailure(f"{name} is published, but its job in then cannot start: {error}") from error


def _store_example(store: Store, plan: TrainingPlan, directory: Path) -> str:
    """Store a sample of rows as the version's example; return the sha256 of the blob.

    The sample consists of validation rows with their target; without validation, of training rows without it.
    """
    from_validation = bool(plan.layout.validation)
    total = plan.held_out if from_validation else plan.rows
    quota = Quota(min(total, MAX_ROWS), total)
    names = [f.name for f in plan.layout.features]
    names += [plan.layout.target.name] if from_validation else []
    with tempfile.TemporaryFile() as file:
        writer = None
        for name in plan.split_files:
            for batch in _batches(directory / name, plan.layout.slots, from_validation):
                count = quota.take(batch.num_rows)
                positions = pa.array(np.arange(count) * batch.num_rows // max(count, 1))
                sample = batch.select(names).take(positions)
                writer = writer or pq.ParquetWriter(file, sample.schema)
                writer.write_batch(sample)
        assert writer is not None, "planning has checked that there are rows"
        writer.close()
        file.seek(0)
        return store.put(iter(lambda: file.read(1 << 20), b"")).sha256


def _batches(path: Path, slots: int, from_validation: bool) -> Iterator[Any]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        for index in range(file.num_record_batches):
            if (index % slots == VALIDATION_SLOT) == from_validation:
                yield file.get_batch(index)
