"""The table of job kinds, and the admission steps that are the same for every kind.

A job kind consists of three modules, and this table names them:

    service/submit/*_admission.py  `JobAdmission`: checks, dry run, acceptance, facts for the record
    service/batch/*_schemas.py     the pydantic model of its request body
    service/worker/                `JobWork`: plans the job, runs its partitions, assembles the result

To add a kind, write these modules, add its name to `JobKind` in `registry/vocabulary.py`, and add an entry
here. Bodies and works are named by import path and loaded on first use: this package lies below `batch` and
`worker` and must not import them.
"""

from __future__ import annotations

import pkgutil
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from registry import db
from registry.artifacts import Store
from registry.jobs import schedules
from registry.jobs.schedules import StartJob
from registry.jobs.tables import JobRow, ScheduleRow
from registry.vocabulary import SCORE, TRAIN
from service.config import Settings
from service.submit.admission import JobAdmission, JobSpec
from service.submit.score_admission import ScoreAdmission
from service.submit.train_admission import TrainAdmission


class KindEntry(NamedTuple):
    admission: JobAdmission
    body: str  # `module:class` of the pydantic model
    work: str  # `module:class` of the `JobWork`


KIND_TABLE = {
    SCORE: KindEntry(
        ScoreAdmission(),
        body="service.batch.score_schemas:ScoreBody",
        work="service.worker.score_work:ScoreWork",
    ),
    TRAIN: KindEntry(
        TrainAdmission(),
        body="service.batch.train_schemas:TrainBody",
        work="service.worker.train.train_work:TrainWork",
    ),
}


def admission_of(kind: str) -> JobAdmission:
    return KIND_TABLE[kind].admission


def model_paths() -> dict[str, tuple[str, ...]]:
    """Return, by kind, the keys that lead to the model's name in a spec."""
    return {kind: entry.admission.model_path for kind, entry in KIND_TABLE.items()}


def body_classes() -> list[Any]:
    """Return the pydantic models of the request bodies, one for each kind."""
    return [pkgutil.resolve_name(entry.body) for entry in KIND_TABLE.values()]


def work_class(kind: str) -> Any:
    """Return the `JobWork` class of a kind."""
    return pkgutil.resolve_name(KIND_TABLE[kind].work)


def examine_scheduled(settings: Settings, sessions: db.Sessions, store: Store, spec: JobSpec) -> list[str]:
    """Examine the input of a schedule's job, outside of any transaction because it reads files.

    Returns warnings about inputs that are missing. Raises `NotFound`, `NotReady` and `Invalid`.
    """
    admission = admission_of(spec["kind"])
    with db.reading(sessions) as session:
        version = admission.resolve_version(session, spec)
    return admission.examine_scheduled_job(settings, store, spec, version)


def scheduled_job_starter(store: Store) -> StartJob:
    """Return the function that starts a schedule's job, with the version its alias points to at that time.

    It does not read the input: planning does, and is retried while the input is missing.
    """

    def start(session: Session, schedule: ScheduleRow) -> JobRow:
        spec = schedule.job
        admission = admission_of(spec["kind"])
        version = admission.resolve_version(session, spec)
        by = schedules.acting_name(schedule)
        return admission.accept(session, store, spec, version, by=by, schedule=schedule.name)

    return start
