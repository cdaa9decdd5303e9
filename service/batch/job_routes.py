"""Jobs over HTTP: start one, see how far it is, stop it, go on with it, fetch what it made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path as FilePath
from typing import Annotated, Any, NamedTuple

from anyio.to_thread import run_sync
from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import BeforeValidator
from sqlalchemy.orm import Session
from starlette.responses import StreamingResponse

from registry import db
from registry.errors import Conflict, NotFound
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.keys import Key, is_live
from registry.vocabulary import TRAIN
from service.batch import starting
from service.batch.bodies import JobBody
from service.batch.job_records import record, summary
from service.batch.schemas import Checkup, JobQuery, JobRecord, JobSummary
from service.batch.train_schemas import TrainBody
from service.formats import media_types
from service.web.deps import CallerDep, ReadDep, ServicesDep, WriteDep, guarded
from service.web.fields import MAX_NUMBER, digits
from service.web.file_response import Delivery
from service.web.idempotency import IdempotencyKey
from service.web.pages import Listed, PageQuery, listed
from service.web.problems import problem_responses
from service.web.services import Services

router = APIRouter(tags=["batch"])
JobId = Annotated[int, BeforeValidator(digits), Path(ge=1, le=MAX_NUMBER, description="the job's id")]
WATCH_S = 0.5
REST = 9  # times what a look took, until the next: who watches a large job takes a tenth of a core at most
KEEP_ALIVE = 30  # looks without a change until a comment line shows that the connection is alive
FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file",
        "content": {t: {"schema": {"type": "string", "format": "binary"}} for t in media_types.OUTPUTS},
    },
    206: {"description": "The part of the file that Range names"},
    304: {"description": "It is what the caller has already"},
    **problem_responses(404, 406, 409, 412, 416, 422),
}


class ListQuery(PageQuery, JobQuery):
    """Which jobs."""


@router.post(
    "/v1/jobs",
    dependencies=[guarded("batch")],
    status_code=202,
    response_model=JobRecord,
    responses={
        200: {"model": Checkup, "description": "What a dry run found"},
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
    """Start a job. It is checked against the first rows before it is accepted; ask `Location` how far it is.

    With `dry_run` that check is all, and nothing is enqueued. A training publishes a new version at its end.
    """
    start = starting.train if isinstance(body, TrainBody) else starting.score
    return start(body, request, services, caller, idempotency_key)  # type: ignore[arg-type]


@router.get("/v1/jobs", dependencies=[guarded("batch")], responses=problem_responses(422))
def list_jobs(
    request: Request,
    response: Response,
    session: ReadDep,
    caller: CallerDep,
    query: Annotated[ListQuery, Query()],
) -> Listed[JobSummary]:
    """Jobs, newest first."""
    page = jobs.search(
        session,
        state=query.state,
        model=query.model,
        models=caller.models,
        page_size=query.page_size,
        page_token=query.page_token,
    )
    found = jobs.progress(session, [j.id for j in page.items])
    return listed(page, lambda j: summary(j, found.get(j.id)), request, response)


@router.get(
    "/v1/jobs/{job_id}",
    dependencies=[guarded("batch")],
    response_model=JobRecord,
    responses=problem_responses(404, 422),
)
def get_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> Response:
    """How far it is, partition by partition."""
    return Response(_look(services, job_id, caller).text, media_type="application/json")


@router.post(
    "/v1/jobs/{job_id}/cancel", dependencies=[guarded("batch")], responses=problem_responses(404, 409, 422)
)
def cancel_job(job_id: JobId, session: WriteDep, caller: CallerDep) -> JobRecord:
    """Stop it. What is done is kept: `resume` goes on from there."""
    _job(session, job_id, caller)
    return _record(session, jobs.cancel(session, job_id))


@router.post(
    "/v1/jobs/{job_id}/resume", dependencies=[guarded("batch")], responses=problem_responses(404, 409, 422)
)
def resume_job(job_id: JobId, session: WriteDep, caller: CallerDep) -> JobRecord:
    """Go on with a failed or cancelled job; partitions that are done are not done again."""
    starting.check_may_start(caller, _job(session, job_id, caller).spec)
    return _record(session, jobs.resume(session, job_id))


@router.get(
    "/v1/jobs/{job_id}/events",
    dependencies=[guarded("batch")],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The record, as server-sent events, whenever it changed; ends with the job",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **problem_responses(404, 422),
    },
)
async def watch_job(job_id: JobId, services: ServicesDep, caller: CallerDep) -> StreamingResponse:
    """The job's record again and again until it has ended."""
    first = await run_sync(_look, services, job_id, caller)
    stream = _events(services, first, job_id, caller)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.head(
    "/v1/jobs/{job_id}/output",
    dependencies=[guarded("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/jobs/{job_id}/output",
    dependencies=[guarded("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
def output(job_id: JobId, services: ServicesDep, session: ReadDep, caller: CallerDep) -> Response:
    """All that was scored, in the order of the input: resumable, with a strong ETag."""
    job = _job(session, job_id, caller)
    if job.kind == TRAIN:
        made = "" if job.version is None else f", {job.model}:{job.version}"
        raise NotFound("output of job", job_id, f"a training makes a version{made}")
    if job.output is None:
        raise Conflict(f"job {job_id} is {job.state} and has no output; its done partitions have theirs")
    return _deliver(
        services.store.path, job.output, job.spec["output"]["media_type"], f"{job.model}-job-{job.id}"
    )


@router.head(
    "/v1/jobs/{job_id}/errors",
    dependencies=[guarded("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/jobs/{job_id}/errors",
    dependencies=[guarded("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
def errors(job_id: JobId, services: ServicesDep, session: ReadDep, caller: CallerDep) -> Response:
    """The rows that were not scored, and why: `row,id,field,message,file,file_row`. `row` counts in the
    whole input, `file_row` in its file, both from 0."""
    job = _job(session, job_id, caller)
    if job.kind == TRAIN:
        hint = "a training counts the rows that have no target, and lists none"
        raise NotFound("errors file of job", job_id, hint)
    if job.errors is None and job.state == jobs.DONE:
        raise NotFound("errors file of job", job_id, "no row failed")
    if job.errors is None:
        raise Conflict(f"job {job_id} is {job.state}; its errors file comes with its output")
    return _deliver(services.store.path, job.errors, media_types.CSV, f"{job.model}-job-{job.id}-errors")


@router.head(
    "/v1/jobs/{job_id}/partitions/{number}/output",
    dependencies=[guarded("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
@router.get(
    "/v1/jobs/{job_id}/partitions/{number}/output",
    dependencies=[guarded("batch")],
    response_class=Response,
    responses=FILE_RESPONSES,
)
def partition_output(
    job_id: JobId,
    number: Annotated[int, BeforeValidator(digits), Path(ge=0, le=MAX_NUMBER)],
    services: ServicesDep,
    session: ReadDep,
    caller: CallerDep,
) -> Response:
    """A part that is done, while the job is not: resumable, with a strong ETag."""
    job = _job(session, job_id, caller)
    made = jobs.partition(session, job.id, jobs.SCORE_STAGE, number).result
    hint = f"the whole output is at /v1/jobs/{job_id}/output" if job.output else "the partition is not done"
    missing = NotFound("output of partition", f"{job_id}/{number}", hint)
    if made is None:
        raise missing
    file: FilePath = services.settings.job_directory(job.id) / made["file"]

    def find(_: str) -> FilePath:
        if not file.is_file():
            raise missing
        return file

    find("")  # also a condition, which is answered without the file, is about one that is there
    media_type = job.spec["output"]["media_type"]
    return _deliver(find, made["sha256"], media_type, f"{job.model}-job-{job.id}-partition-{number}")


def _job(session: Session, job_id: int, caller: Key) -> JobRow:
    job = jobs.get(session, job_id)
    starting.check_reach(caller, job.model)
    return job


def _record(session: Session, job: JobRow) -> JobRecord:
    session.flush()
    found = jobs.progress(session, [job.id]).get(job.id)
    then = jobs.follow_up_jobs(session, [job.id] if job.kind == TRAIN else [])
    return record(job, found, jobs.partition_summaries(session, job.id), then.get(job.id))


class _Look(NamedTuple):
    """A record as it is sent: thousands of partitions are not written out on the event loop."""

    state: str
    text: str
    seconds: float


def _look(services: Services, job_id: int, caller: Key) -> _Look:
    started = time.monotonic()
    with db.reading(services.sessions) as session:
        found = _record(session, _job(session, job_id, caller))
    return _Look(found.state, found.model_dump_json(), time.monotonic() - started)


async def _events(services: Services, found: _Look, job_id: int, caller: Key) -> AsyncIterator[str]:
    said, silent = "", 0
    while True:
        if found.text != said:
            yield f"event: job\ndata: {found.text}\n\n"
            said, silent = found.text, 0
        elif (silent := silent + 1) % KEEP_ALIVE == 0:
            yield ": still here\n\n"
        if found.state not in jobs.OPEN_STATES:
            return
        await asyncio.sleep(max(WATCH_S, REST * found.seconds))
        if services.leaving.is_set():  # the shutdown waits for us; who listens asks the next server
            return
        if not is_live(caller, services.snapshot.state.keys):
            return
        try:
            found = await run_sync(_look, services, job_id, caller)
        except NotFound:  # it was forgotten: its end was told, or nobody was to see it
            return


def _deliver(find: Callable[[str], FilePath], sha256: str, media_type: str, name: str) -> Delivery:
    return Delivery(
        find,
        sha256,
        None,
        validators={"Cache-Control": "private, no-cache"},
        headers={
            "Content-Type": media_type,
            "Content-Disposition": f'attachment; filename="{name}{media_types.SUFFIXES[media_type][0]}"',
        },
    )
