"""HTTP routes of schedules: create, list, edit, delete and run them, and list their runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from sqlalchemy.orm import Session

from registry import db
from registry.jobs import jobs, schedules
from registry.jobs.tables import ScheduleRow, ScheduleRunRow
from registry.keys import Key
from registry.names import NAME_PATTERN
from service.batch.job_records import job_record
from service.batch.job_routes import require_model_access, require_start_access
from service.batch.job_schemas import JobRecord
from service.batch.schedule_schemas import (
    CheckedScheduleRecord,
    RunRecord,
    ScheduleBody,
    ScheduleEdit,
    ScheduleRecord,
)
from service.submit import job_kinds
from service.submit.admission import JobSpec, prefixed_fields
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope, write_transaction
from service.web.idempotency import IdempotencyKey, IdempotentResult, is_repeat, run_once
from service.web.listing import ListResponse, PageQuery, list_response
from service.web.problems import problem_responses
from service.web.request_models import RequestBody
from service.web.services import Services

router = APIRouter(tags=["batch"])
PATH = "/v1/schedules"
SCHEDULE_PATH = PATH + "/{schedule}"
ScheduleName = Annotated[str, Path(description="the schedule's name", pattern=NAME_PATTERN)]


@router.post(
    PATH,
    dependencies=[require_scope("batch")],
    status_code=201,
    response_model=CheckedScheduleRecord,
    responses=problem_responses(404, 409, 413, 422),
)
def create_schedule(
    body: ScheduleBody,
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a schedule that starts a job repeatedly, by cron or at an interval.

    The job is checked like any other. If its input does not exist yet, `warnings` contains a message, and
    each run checks again. Each run uses the version that the alias points to at that time.
    """
    new = body.new_schedule()
    require_start_access(caller, new.job)
    with db.reading(services.sessions) as session:
        is_repeated = is_repeat(session, idempotency_key, caller)
    warnings = [] if is_repeated else _examine(services, new.job)
    with write_transaction(services) as session:

        def create() -> IdempotentResult:
            _check(session, services, new.job)
            row = schedules.create(session, new, by=caller.name)
            return IdempotentResult(_checked_record(session, row, warnings), 201, f"{PATH}/{row.name}")

        return run_once(session, idempotency_key, caller, request, body, create)


@router.get(PATH, dependencies=[require_scope("batch")], responses=problem_responses(422))
def list_schedules(
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    query: Annotated[PageQuery, Query()],
) -> ListResponse[ScheduleRecord]:
    """List schedules by name. A key for some models lists only the schedules of these models."""
    page = schedules.search(
        session,
        models=caller.models,
        model_paths=job_kinds.model_paths(),
        page_size=query.page_size,
        page_token=query.page_token,
    )
    last_runs = schedules.last_runs(session, [s.name for s in page.items])
    follow_ups = _follow_up_jobs(session, last_runs.values())
    return list_response(
        page, lambda s: ScheduleRecord.of(s, last_runs.get(s.name), follow_ups), request, response
    )


@router.get(SCHEDULE_PATH, dependencies=[require_scope("batch")], responses=problem_responses(404, 422))
def get_schedule(schedule: ScheduleName, session: ReadDep, caller: CallerDep) -> ScheduleRecord:
    """Get the schedule with its next run and the outcome of its last run."""
    return _record(session, _schedule(session, schedule, caller))


@router.patch(
    SCHEDULE_PATH, dependencies=[require_scope("batch")], responses=problem_responses(404, 409, 413, 422)
)
def edit_schedule(
    schedule: ScheduleName, body: ScheduleEdit, services: ServicesDep, caller: CallerDep
) -> CheckedScheduleRecord:
    """Change any field except the name; pause or unpause. Runs due during a pause do not count as missed."""
    changes = body.changes()
    job = changes.get("job")
    with db.reading(services.sessions) as session:
        require_start_access(caller, _schedule(session, schedule, caller).job)
    if job is not None:
        require_start_access(caller, job)
    warnings = [] if job is None else _examine(services, job)
    with write_transaction(services) as session:
        require_start_access(caller, _schedule(session, schedule, caller, schedules.lock).job)
        if job is not None:
            _check(session, services, job)
        return _checked_record(session, schedules.edit(session, schedule, changes, by=caller.name), warnings)


@router.delete(
    SCHEDULE_PATH,
    dependencies=[require_scope("batch")],
    status_code=204,
    responses=problem_responses(404, 422),
)
def delete_schedule(schedule: ScheduleName, session: WriteDep, caller: CallerDep) -> None:
    """Delete the schedule and its history. Jobs that it started continue."""
    require_start_access(caller, _schedule(session, schedule, caller, schedules.lock).job)
    schedules.remove(session, schedule)


@router.post(
    SCHEDULE_PATH + "/run",
    dependencies=[require_scope("batch")],
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
    """Start the job now, also if the schedule is paused; poll `Location`. The next run stays as planned."""

    def run() -> IdempotentResult:
        require_start_access(caller, _schedule(session, schedule, caller, schedules.lock).job)
        start = job_kinds.scheduled_job_starter(services.store)
        job = schedules.run_now(session, schedule, start, by=caller.name)
        return IdempotentResult(job_record(job, None, []), 202, f"/v1/jobs/{job.id}")

    return run_once(session, idempotency_key, caller, request, RequestBody(), run)


@router.get(
    SCHEDULE_PATH + "/runs", dependencies=[require_scope("batch")], responses=problem_responses(404, 422)
)
def list_runs(
    schedule: ScheduleName,
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    query: Annotated[PageQuery, Query()],
) -> ListResponse[RunRecord]:
    """List the outcome of each run that was due, newest first."""
    _schedule(session, schedule, caller)
    page = schedules.runs(session, schedule, page_size=query.page_size, page_token=query.page_token)
    follow_ups = _follow_up_jobs(session, page.items)
    return list_response(page, lambda run: RunRecord.of(run, follow_ups), request, response)


def _schedule(
    session: Session,
    name: str,
    caller: Key,
    read: Callable[[Session, str], ScheduleRow] = schedules.get,
) -> ScheduleRow:
    """Return the schedule if the key has access to its model.

    Changes pass `schedules.lock`: otherwise the schedule could move to another model after this check.
    """
    row = read(session, name)
    require_model_access(caller, job_kinds.admission_of(row.job["kind"]).model_of(row.job))
    return row


def _examine(services: Services, job: JobSpec) -> list[str]:
    with prefixed_fields("job", job):
        return job_kinds.examine_scheduled(services.settings, services.sessions, services.store, job)


def _check(session: Session, services: Services, job: JobSpec) -> None:
    """Raise the error that a run of this job would raise; fields are named as in the schedule's body."""
    with prefixed_fields("job", job):
        job_kinds.admission_of(job["kind"]).check(session, services.settings, services.store, job)


def _checked_record(session: Session, row: ScheduleRow, warnings: list[str]) -> CheckedScheduleRecord:
    return CheckedScheduleRecord(**dict(_record(session, row)), warnings=warnings)


def _record(session: Session, row: ScheduleRow) -> ScheduleRecord:
    last_runs = schedules.last_runs(session, [row.name])
    return ScheduleRecord.of(row, last_runs.get(row.name), _follow_up_jobs(session, last_runs.values()))


def _follow_up_jobs(session: Session, runs: Iterable[ScheduleRunRow]) -> dict[int, jobs.FollowUpJob]:
    return jobs.follow_up_jobs(session, [run.job_id for run in runs if run.job_id is not None])
