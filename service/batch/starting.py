"""What `POST /v1/jobs` does, by kind: look at the input outside of any transaction, then enqueue once."""

from __future__ import annotations

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from registry import db
from registry.jobs.schedules import model_of
from registry.keys import Key
from registry.vocabulary import TRAIN
from service.batch.bodies import spec_of
from service.batch.job_records import record
from service.batch.schemas import Checkup, ScoreBody
from service.batch.train_schemas import TrainBody
from service.submit import score_admission, train_admission
from service.web.auth import denial_reason
from service.web.deps import writing
from service.web.idempotency import Done, once, seen
from service.web.services import Services


def score(body: ScoreBody, request: Request, services: Services, caller: Key, key: str | None) -> Response:
    """`key`: the request's Idempotency-Key."""
    check_reach(caller, body.model)
    spec = spec_of(body)
    version = None
    with db.reading(services.sessions) as session:
        if body.dry_run or not seen(session, key, caller):
            version = score_admission.version_of(session, spec)
    if version is not None:
        found = score_admission.examine(services.settings, services.store, spec, version)
        if body.dry_run:
            return _checkup(body.model, version.number, found)
    with writing(services) as session:

        def start() -> Done:
            pinned = version or score_admission.version_of(session, spec)  # the key's day was over just now
            job = score_admission.accept(session, services.store, spec, pinned, by=caller.name)
            return Done(record(job, None, []), 202, f"/v1/jobs/{job.id}")

        return once(session, key, caller, request, body, start)


def train(body: TrainBody, request: Request, services: Services, caller: Key, key: str | None) -> Response:
    """`key`: the request's Idempotency-Key."""
    spec = spec_of(body)
    check_may_start(caller, spec)
    with db.reading(services.sessions) as session:
        known = seen(session, key, caller)
    if not known:
        features = train_admission.examine(services.settings, services.store, spec)
        train_admission.examine_then(services.settings, services.store, spec, features)
    with writing(services) as session:

        def start() -> Done:
            job = train_admission.accept(session, services.store, spec, by=caller.name)
            return Done(record(job, None, []), 202, f"/v1/jobs/{job.id}")

        return once(session, key, caller, request, body, start)


def check_may_start(caller: Key, spec: score_admission.Spec) -> None:
    """403 when the key is not for the job's model, or lacks what the job does: a training publishes."""
    check_reach(caller, model_of(spec))
    if spec["kind"] == TRAIN and denial_reason(caller, "publish") is not None:
        raise HTTPException(403, "a training publishes a version: this key lacks the scope publish")


def check_reach(caller: Key, model: str | None) -> None:
    """403 when the key is not for this model."""
    if model is not None and (reason := denial_reason(caller, "batch", model=model)) is not None:
        raise HTTPException(403, reason)


def _checkup(model: str, version: int, found: score_admission.Examined) -> Response:
    record = Checkup(
        model=model,
        version=version,
        columns=found.columns,
        rows_checked=found.rows,
        rows_failed=found.failed,
        warnings=found.warnings,
    )
    return Response(record.model_dump_json(), media_type="application/json")
