"""Schedules over HTTP: make one, change it, pause it, run it now, see what became of its runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from registry import db
from registry.jobs import jobs, schedules
from registry.jobs.tables import ScheduleRow, ScheduleRunRow
from registry.keys import Key
from registry.names import NAME_PATTERN
from service.batch.job_records import record
from service.batch.schedule_schemas import (
    RunRecord,
    ScheduleBody,
    ScheduleEdit,
    ScheduleMade,
    ScheduleRecord,
)
from service.batch.schemas import JobRecord
from service.batch.starting import check_may_start, check_reach
from service.submit import schedule_admission
from service.submit.score_admission import Spec, within
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, guarded, writing
from service.web.fields import Strict
from service.web.idempotency import Done, IdempotencyKey, once, seen
from service.web.pages import Listed, PageQuery, listed
from service.web.problems import problem_responses
from service.web.services import Services

router = APIRouter(tags=["batch"])
PATH = "/v1/schedules"
ONE = PATH + "/{schedule}"
ScheduleName = Annotated[str, Path(description="the schedule's name", pattern=NAME_PATTERN)]


@router.post(
    PATH,
    dependencies=[guarded("batch")],
    status_code=201,
    response_model=ScheduleMade,
    responses=problem_responses(404, 409, 413, 422),
)
def create_schedule(
    body: ScheduleBody,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a job again and again, by cron or at an interval.

    The job is checked as any other; if its input is not there yet, `warnings` says so, and each run looks
    again. Each run takes the version that the alias points to then.
    """
    new = body.asked()
    check_may_start(caller, new.job)
    with db.reading(services.sessions) as session:
        known = seen(session, idempotency_key, caller)
    warnings = [] if known else _look(services, new.job)
    with writing(services) as session:

        def create() -> Done:
            _check(session, services, new.job)
            row = schedules.create(session, new, by=caller.name)
            return Done(_made(session, row, warnings), 201, f"{PATH}/{row.name}")

        return once(session, idempotency_key, caller, request, body, create)


@router.get(PATH, dependencies=[guarded("batch")], responses=problem_responses(422))
def list_schedules(
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    query: Annotated[PageQuery, Query()],
) -> Listed[ScheduleRecord]:
    """Schedules by name. A key for some models sees only theirs."""
    page = schedules.search(
        session, models=caller.models, page_size=query.page_size, page_token=query.page_token
    )
    last = schedules.last_runs(session, [s.name for s in page.items])
    then = _then(session, last.values())
    return listed(page, lambda s: ScheduleRecord.of(s, last.get(s.name), then), request, response)


@router.get(ONE, dependencies=[guarded("batch")], responses=problem_responses(404, 422))
def get_schedule(schedule: ScheduleName, session: ReadDep, caller: CallerDep) -> ScheduleRecord:
    """When it runs next, and what came of its last run."""
    return _record(session, _schedule(session, schedule, caller))


@router.patch(ONE, dependencies=[guarded("batch")], responses=problem_responses(404, 409, 413, 422))
def edit_schedule(
    schedule: ScheduleName, body: ScheduleEdit, services: ServicesDep, caller: CallerDep
) -> ScheduleMade:
    """Change all but the name; pause it, or let it go on. What was due during a pause was not missed."""
    changes = body.asked()
    job = changes.get("job")
    with db.reading(services.sessions) as session:
        check_may_start(caller, _schedule(session, schedule, caller).job)
    if job is not None:
        check_may_start(caller, job)
    warnings = [] if job is None else _look(services, job)
    with writing(services) as session:
        check_may_start(caller, _schedule(session, schedule, caller).job)
        if job is not None:
            _check(session, services, job)
        return _made(session, schedules.edit(session, schedule, changes), warnings)


@router.delete(ONE, dependencies=[guarded("batch")], status_code=204, responses=problem_responses(404, 422))
def delete_schedule(schedule: ScheduleName, session: WriteDep, caller: CallerDep) -> None:
    """Delete it with its history. Jobs that it started go on."""
    _schedule(session, schedule, caller)
    schedules.remove(session, schedule)


@router.post(
    ONE + "/run",
    dependencies=[guarded("batch")],
    status_code=202,
    response_model=JobRecord,
    responses=problem_responses(404, 409, 422),
)
def run_schedule(
    schedule: ScheduleName,
    request: Request,
    session: WriteDep,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start its job now, paused or not: ask `Location` how far it is. When it runs next stays as it is."""

    def run() -> Done:
        check_may_start(caller, _schedule(session, schedule, caller).job)
        job = schedules.run_now(session, schedule, schedule_admission.starter(services.store), by=caller.name)
        return Done(record(job, None, []), 202, f"/v1/jobs/{job.id}")

    return once(session, idempotency_key, caller, request, Strict(), run)


@router.get(ONE + "/runs", dependencies=[guarded("batch")], responses=problem_responses(404, 422))
def list_runs(
    schedule: ScheduleName,
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    query: Annotated[PageQuery, Query()],
) -> Listed[RunRecord]:
    """What came of each run that was due, newest first."""
    _schedule(session, schedule, caller)
    page = schedules.runs(session, schedule, page_size=query.page_size, page_token=query.page_token)
    then = _then(session, page.items)
    return listed(page, lambda run: RunRecord.of(run, then), request, response)


def _schedule(session: Session, name: str, caller: Key) -> ScheduleRow:
    row = schedules.get(session, name)
    check_reach(caller, schedules.model_of(row.job))
    return row


def _look(services: Services, job: Spec) -> list[str]:
    with within("job", job):
        return schedule_admission.look(services.settings, services.sessions, services.store, job)


def _check(session: Session, services: Services, job: Spec) -> None:
    """Raises what a run of this job would meet, fields named as they stand in a schedule."""
    for place, part in (("job", job), ("job.then", job.get("then"))):
        if part is not None:
            with within(place, part):
                schedule_admission.check(session, services.settings, services.store, part)


def _made(session: Session, row: ScheduleRow, warnings: list[str]) -> ScheduleMade:
    return ScheduleMade(**dict(_record(session, row)), warnings=warnings)


def _record(session: Session, row: ScheduleRow) -> ScheduleRecord:
    last = schedules.last_runs(session, [row.name])
    return ScheduleRecord.of(row, last.get(row.name), _then(session, last.values()))


def _then(session: Session, runs: Iterable[ScheduleRunRow]) -> dict[int, jobs.FollowUpJob]:
    return jobs.follow_up_jobs(session, [run.job_id for run in runs if run.job_id is not None])
