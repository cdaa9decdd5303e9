"""The end of a training: its model becomes a version, and what is to follow with that version is enqueued.

Each of the two happens once, whatever dies meanwhile: the job says which version it published, in the
transaction that published it, and a job that follows names its parent.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from registry import db, versions
from registry.artifacts import Store
from registry.errors import Invalid, NotFound
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.tables import VersionRow
from registry.versions import NewVersion
from service.compiler.example import MAX_ROWS
from service.compiler.fit.fit_records import SEED
from service.compiler.fit.sampling import Quota
from service.compiler.fit.splitting import VALIDATION_SLOT
from service.formats.media_types import PARQUET
from service.submit.job_kinds import admission_of
from service.worker.job_kind import Hopeless, Later, Whole
from service.worker.train.stages import Frozen

WAIT_S = 0.5
MOST_NAMES = 20


def publish(sessions: db.Sessions, store: Store, job: JobRow, frozen: Frozen, home: Path) -> Whole:
    """The version, ready. Raises `Later` while it is built, `Hopeless` when it is rejected."""
    if job.version is None:
        _publish(sessions, store, job, frozen, home)
        raise Later(WAIT_S)
    name = f"{job.model}:{job.version}"
    with sessions.begin() as session:
        held = jobs.lock(session, job.id)
        version = session.get(VersionRow, held.version_id) if held.version_id else None
        if version is None:
            raise Hopeless(f"{name} was deleted before it was built")
        if version.state == versions.BUILDING:
            raise Later(WAIT_S)
        if version.state == versions.REJECTED:
            raise Hopeless(f"{name} was rejected: {(version.report or {}).get('reason')}")
        if held.state in jobs.OPEN_STATES:  # a job that was cancelled meanwhile is not to go on in another
            _follow(session, store, held, version)
    return Whole({"model": job.model, "version": job.version, **summary(job, frozen)})


def _publish(sessions: db.Sessions, store: Store, job: JobRow, frozen: Frozen, home: Path) -> None:
    spec = job.spec
    assert frozen.model is not None
    artifact = store.put_file(home / frozen.model).sha256
    new = NewVersion(
        model=spec["publish"]["name"],
        artifact=artifact,
        format="sklearn-joblib",
        example={"artifact": _example(store, frozen, home), "media_type": PARQUET},
        target=frozen.layout.target.name if frozen.layout.validation else None,
        metrics=frozen.metrics,
        tags=spec["publish"]["tags"],
        description=f"trained by job {job.id}",
        alias=spec["publish"]["alias"],
    )
    with sessions.begin() as session:
        held = jobs.lock(session, job.id)
        if held.version is not None or held.state not in jobs.OPEN_STATES:  # somebody else was faster
            return
        version = versions.publish(session, store, new, by=job.created_by)
        version.lineage = {**version.lineage, "training": {"job": job.id, **summary(job, frozen)}}
        held.version, held.version_id = version.number, version.id


def summary(job: JobRow, frozen: Frozen) -> dict[str, Any]:
    """What the version's lineage keeps of the training when the job is forgotten."""
    return {
        "estimator": job.spec["estimator"]["artifact"],
        "strategy": frozen.strategy,
        "merged": frozen.check.merged,
        "sampling": job.spec["sampling"],
        "target": frozen.layout.target.name,
        "excluded": job.spec["exclude"],
        "partitions": frozen.parts,
        "rows": frozen.fitted,
        "rows_without_target": frozen.without_target,
        "held_out": frozen.held_out,
        "metrics": frozen.metrics,
        "seed": SEED,
        "input": _input(frozen.dataset["files"]),
    }


def _input(files: list[dict[str, Any]]) -> dict[str, Any]:
    """What was read: one digest of all files, and the first of them by name."""
    told = [f"{f['name']} {f['bytes']} {f['fingerprint']}" for f in files]
    return {
        "files": len(files),
        "bytes": sum(f["bytes"] for f in files),
        "digest": hashlib.sha256("\n".join(told).encode()).hexdigest(),
        "names": [f["name"] for f in files[:MOST_NAMES]],
    }


def _follow(session: Any, store: Store, job: JobRow, version: VersionRow) -> None:
    """Enqueue the scoring that is to follow, with exactly this version, unless that was done."""
    then = job.spec.get("then")
    if then is None or jobs.follow_up_jobs(session, [job.id]):
        return
    spec = {**then, "model": job.model, "version": version.number, "alias": None}
    try:
        by, schedule = job.created_by, job.schedule  # whose next run waits for this one, too
        admission_of(then["kind"]).accept(
            session, store, spec, version, by=by, schedule=schedule, parent_id=job.id
        )
    except (NotFound, Invalid) as missing:
        raise Hopeless(f"{job.model}:{version.number} is published, but then: {missing}") from missing


def _example(store: Store, frozen: Frozen, home: Path) -> str:
    """A sample of the rows held out, with the truth; of rows trained on, without it. The blob's sha256."""
    held = bool(frozen.layout.validation)
    total = frozen.held_out if held else frozen.rows
    quota = Quota(min(total, MAX_ROWS), total)
    names = [f.name for f in frozen.layout.features] + ([frozen.layout.target.name] if held else [])
    with tempfile.TemporaryFile() as file:
        writer = None
        for name in frozen.dealt:
            for batch in _batches(home / name, frozen.layout.slots, held):
                most = quota.take(batch.num_rows)
                taken = batch.select(names).take(pa.array(np.arange(most) * batch.num_rows // max(most, 1)))
                writer = writer or pq.ParquetWriter(file, taken.schema)
                writer.write_batch(taken)
        assert writer is not None, "there are rows: planning has seen to it"
        writer.close()
        file.seek(0)
        return store.put(iter(lambda: file.read(1 << 20), b"")).sha256


def _batches(path: Path, slots: int, held: bool) -> Any:
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
        for index in range(file.num_record_batches):
            if (index % slots == VALIDATION_SLOT) == held:
                yield file.get_batch(index)
