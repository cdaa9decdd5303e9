"""HTTP routes of jobs: create, list, watch, cancel and resume them, and download their files."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, Any, NamedTuple

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BeforeValidator, Field
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from registry import db, media_types
from registry.errors import Conflict, NotFound
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.keys import Key, is_active
from registry.media_types import CSV
from registry.tables import VersionRow
from service.batch.job_records import job_record, job_summary
from service.batch.job_schemas import (
    DryRunReport,
    JobBody,
    JobQuery,
    JobRecord,
    JobSummary,
    is_dry_run,
    job_spec,
)
from service.submit.admission import HeadReport, JobSpec
from service.submit.job_kinds import admission_of
from service.web.auth import denial_reason
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, require_scope, write_transaction
from service.web.file_response import ConditionalFileResponse
from service.web.idempotency import IdempotencyKey, IdempotentResult, is_repeat, run_once
from service.web.listing import ListResponse, PageQuery, list_response
from service.web.problems import problem_responses
from service.web.request_models import MAX_NUMBER, require_digits
from service.web.services import Services

router = APIRouter(tags=["batch"])
JobId = Annotated[
    int, Field(ge=1, le=MAX_NUMBER), BeforeValidator(require_digits), Path(description="the job's id")
]
FIRST_WATCH_S, WATCH_S = 0.05, 0.5
"""First and longest pause between two reads of a watched job's record, unless reading takes long."""
WATCH_GROWTH = 1.3
PAUSE_PER_READ = 9
"""Each pause is at least this many times the last read, so a watcher uses at most a tenth of a core."""
KEEP_ALIVE_READS = 30
"""Unchanged reads until a comment line is sent, which shows that the connection is alive."""
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {t: {"schema": {"type": "string", "format": "binary"}} for t in media_types.OUTPUT_TYPES},
    },
    206: {"description": "The part of the file that Range names"},
    304: {"description": "The caller's copy is current"},
    **problem_responses(404, 406, 409, 412, 416, 422),
}


class JobListQuery(PageQuery, JobQuery):
    """Filters and page of a list of jobs."""


@router.post(
    "/v1/jobs",
    dependencies=[require_scope("batch")],
    status_code=202,
    response_model=JobRecord,
    responses={
        200: {"model": DryRunReport, "description": "Result of a dry run"},
        **problem_responses(404, 409, 413, 422),
    },
)
def create_job(
    body: Annotated[JobBody, Body()],
    request: Request,
    services: ServicesDep,
    caller: CallerDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Start a job. Its first rows are checked before it is accepted; poll `Location` for its progress.

    With `dry_run` only this check is made, and nothing is enqueued. A training publishes a new version when
    it ends.
    """
    spec = job_spec(body)
    require_start_access(caller, spec)
    admission = admission_of(spec["kind"])
    version = None
    with db.reading(services.sessions) as session:
        is_new = is_dry_run(body) or not is_repeat(session, idempotency_key, caller)
        if is_new:
            version = admission.resolve_version(session, spec)
    if is_new:
        report = admission.examine(services.settings, services.store, spec, version)
        if is_dry_run(body):
            return _dry_run_response(spec, version, report)
    with write_transaction(services) as session:

        def start() -> IdempotentResult:
            # `version` is also None if the stored answer of the key expired a moment ago.
            current = version or admission.resolve_version(session, spec)
            job = admission.accept(session, services.store, spec, current, by=caller.name)
            return IdempotentResult(job_record(job, None, []), 202, f"/v1/jobs/{job.id}")

        return run_once(session, idempotency_key, caller, request, body, start)


def _dry_run_response(spec: JobSpec, version: VersionRow | None, head: HeadReport) -> Response:
    assert version is not None, "kinds without a version have no dry run"
    report = DryRunReport(
        model=spec["model"],
        version=version.number,
        columns=head.columns,
        rows_checked=head.rows,
        rows_failed=head.failed,
        warnings=head.warnings,
    )
    return Response(report.model_dump_json(), media_type="application/json")


@router.get("/v1/jobs", dependencies=[require_scope("batch")], responses=problem_responses(422))
def list_jobs(
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    query: Annotated[JobListQuery, Query()],
) -> ListResponse[JobSummary]:
    """List jobs, newest first."""
    page = jobs.search(
        session,
        state=query.state,
        model=query.model,
        models=caller.models,
        page_size=query.page_size,
        page_token=query.page_token,
    )
    progress = jobs.progress(session, [j.id for j in page.items])
    return list_response(page, lambda j: job_summary(j, progress.get(j.id)), request, response)


@router.get(
    "/v1/jobs/{job_id}",
    dependencies=[require_scope("batch")],
    response_model=JobRecord,
    responses=problem_responses(404, 422),
)
def get_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> Response:
    """Get the job's record with the state of each partition."""
    return Response(_read_record(services, job_id, caller).text, media_type="application/json")


@router.post(
    "/v1/jobs/{job_id}/cancel",
    dependencies=[require_scope("batch")],
    responses=problem_responses(404, 409, 422),
)
def cancel_job(job_id: JobId, session: WriteDep, caller: CallerDep) -> JobRecord:
    """Stop the job. Finished partitions are kept, and `resume` continues from there."""
    _job(session, job_id, caller)
    return _record(session, jobs.cancel(session, job_id))


@router.post(
    "/v1/jobs/{job_id}/resume",
    dependencies=[require_scope("batch")],
    responses=problem_responses(404, 409, 422),
)
def resume_job(job_id: JobId, session: WriteDep, caller: CallerDep) -> JobRecord:
    """Continue a failed or cancelled job. Finished partitions are not run again."""
    require_start_access(caller, _job(session, job_id, caller).spec)
    return _record(session, jobs.resume(session, job_id))


@router.get(
    "/v1/jobs/{job_id}/events",
    dependencies=[require_scope("batch")],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The record as a server-sent event after each change; ends with the job",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problem_responses(404, 422),
    },
)
async def watch_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """Stream the job's record after each change until the job has ended."""
    first = await run_sync(_read_record, services, job_id, caller)
    stream = _events(services, first, job_id, caller)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.head(
    "/v1/jobs/{job_id}/output",
    dependencies=[require_scope("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/jobs/{job_id}/output",
    dependencies=[require_scope("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
def output(job_id: JobId, services: ServicesDep, session: ReadDep, caller: CallerDep) -> Response:
    """Download the output, in the order of the input. Resumable, with a strong ETag."""
    job = _job(session, job_id, caller)
    admission = admission_of(job.kind)
    if admission.output_stage is None:
        raise NotFound("output of job", job_id, admission.output_hint(job))
    if job.output is None:
        raise Conflict(
            f"job {job_id} is {job.state} and has no output yet; "
            f"download finished partitions at /v1/jobs/{job_id}/partitions/N/output"
        )
    media_type = job.spec["output"]["media_type"]
    # Only the size is checked here: hashing gigabytes would delay the first byte. Clients check Repr-Digest.
    find = partial(services.store.path, size=(job.manifest or {}).get("bytes"))
    return _deliver(find, job.output, media_type, f"{job.model}-job-{job.id}")


@router.head(
    "/v1/jobs/{job_id}/errors",
    dependencies=[require_scope("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/jobs/{job_id}/errors",
    dependencies=[require_scope("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
def errors(job_id: JobId, services: ServicesDep, session: ReadDep, caller: CallerDep) -> Response:
    """Download the list of failed rows: `row,id,field,message,file,file_row`.

    `row` counts in the whole input, `file_row` in its file, both from 0.
    """
    job = _job(session, job_id, caller)
    hint = admission_of(job.kind).errors_hint
    if hint is not None:
        raise NotFound("errors file of job", job_id, hint)
    if job.errors is None and job.state == jobs.DONE:
        raise NotFound("errors file of job", job_id, "no row failed")
    if job.errors is None:
        raise Conflict(f"job {job_id} is {job.state}; its errors file is written together with its output")
    return _deliver(services.store.verified_path, job.errors, CSV, f"{job.model}-job-{job.id}-errors")


@router.head(
    "/v1/jobs/{job_id}/partitions/{number}/output",
    dependencies=[require_scope("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/jobs/{job_id}/partitions/{number}/output",
    dependencies=[require_scope("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
def partition_output(
    job_id: JobId,
    number: Annotated[int, Field(ge=0, le=MAX_NUMBER), BeforeValidator(require_digits), Path()],
    services: ServicesDep,
    session: ReadDep,
    caller: CallerDep,
) -> Response:
    """Download the output of a finished partition of an unfinished job. Resumable, with a strong ETag."""
    job = _job(session, job_id, caller)
    admission = admission_of(job.kind)
    if admission.output_stage is None:
        raise NotFound("output of job", job_id, admission.output_hint(job))
    result = jobs.partition(session, job.id, admission.output_stage, number).result
    hint = f"the whole output is at /v1/jobs/{job_id}/output" if job.output else "the partition is unfinished"
    missing = NotFound("output of partition", f"{job_id}/{number}", hint)
    if result is None:
        raise missing
    file: FilePath = services.settings.job_directory(job.id) / result["file"]

    def find(_: str) -> FilePath:
        if not file.is_file():
            raise missing
        return file

    find("")  # a conditional request is answered without opening the file, which must exist nevertheless
    media_type = job.spec["output"]["media_type"]
    return _deliver(find, result["sha256"], media_type, f"{job.model}-job-{job.id}-partition-{number}")


def require_start_access(caller: Key, spec: JobSpec) -> None:
    """Answer 403 if the key may not start or resume the job."""
    admission = admission_of(spec["kind"])
    require_model_access(caller, admission.model_of(spec))
    scope = admission.required_scope
    if scope is not None and denial_reason(caller, scope) is not None:
        raise HTTPException(403, f"this key lacks the scope {scope}, which a {spec['kind']} job also needs")


def require_model_access(caller: Key, model: str | None) -> None:
    """Answer 403 if the key may not use batch jobs of this model, or has a list of models and it is None."""
    if model is None and caller.models is not None:
        raise HTTPException(403, "this key is limited to some models, and this job names none")
    if model is not None and (reason := denial_reason(caller, "batch", model=model)) is not None:
        raise HTTPException(403, reason)


def _job(session: Session, job_id: int, caller: Key) -> JobRow:
    job = jobs.get(session, job_id)
    require_model_access(caller, job.model)
    return job


def _record(session: Session, job: JobRow) -> JobRecord:
    session.flush()
    progress = jobs.progress(session, [job.id]).get(job.id)
    follow_up = jobs.follow_up_jobs(session, [job.id]).get(job.id) if "then" in job.spec else None
    return job_record(job, progress, jobs.partition_summaries(session, job.id), follow_up)


class _RecordText(NamedTuple):
    """A record in JSON. A job with thousands of partitions must not be encoded on the event loop."""

    state: str
    text: str
    seconds: float  # that reading and encoding took


def _read_record(services: Services, job_id: int, caller: Key) -> _RecordText:
    started = time.monotonic()
    with db.reading(services.sessions) as session:
        record = _record(session, _job(session, job_id, caller))
    return _RecordText(record.state, record.model_dump_json(), time.monotonic() - started)


async def _events(services: Services, record: _RecordText, job_id: int, caller: Key) -> AsyncIterator[str]:
    sent_text, unchanged_reads, pause = "", 0, min(FIRST_WATCH_S, WATCH_S)
    while True:
        if record.text != sent_text:
            yield f"event: job\ndata: {record.text}\n\n"
            sent_text, unchanged_reads = record.text, 0
        elif (unchanged_reads := unchanged_reads + 1) % KEEP_ALIVE_READS == 0:
            yield ": still here\n\n"
        if record.state not in jobs.OPEN_STATES:
            return
        await asyncio.sleep(max(pause, PAUSE_PER_READ * record.seconds))
        pause = min(pause * WATCH_GROWTH, WATCH_S)
        if services.shutting_down.is_set():  # the shutdown waits for this stream; clients reconnect
            return
        if not is_active(caller, services.snapshot.state.keys):
            return
        try:
            record = await run_sync(_read_record, services, job_id, caller)
        except NotFound:  # the job expired and was deleted
            return


def _deliver(
    find: Callable[[str], FilePath], sha256: str, media_type: str, name: str
) -> ConditionalFileResponse:
    return ConditionalFileResponse(
        find,
        sha256,
        None,
        validators={"Cache-Control": "private, no-cache"},
        headers={
            "Content-Type": media_type,
            "Content-Disposition": f'attachment; filename="{name}{media_types.SUFFIXES[media_type][0]}"',
        },
    )
