"""Jobs over HTTP: start, follow, cancel and resume them.

A job runs without a client. Following it survives lost connections and restarts of the server, and works
through proxies that block event streams: the record is read, then events are received while they come, then
the record is read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec

from registry.vocabulary import JOB_END_STATES
from service.client.client_errors import Record, ServerRefused, Unreachable, is_temporary
from service.client.http import Client
from service.client.refs import path

STREAM_TIMEOUT_S = 30.0
"""An event stream without data for this long is blocked or broken."""
MAX_OUTAGE_S = 600.0
"""A server that does not answer is waited for this long."""
PAUSES_S = (0.1, 2.0)
"""First and longest pause before a reconnect."""


def start(client: Client, request: Record) -> Record:
    """Create a job from the body of POST /v1/jobs; repeated sends create one job only."""
    return client.create(path("jobs"), request)


def get(client: Client, job_id: int) -> Record:
    record: Record = client.call("GET", path("jobs", job_id))
    return record


def cancel(client: Client, job_id: int) -> Record:
    record: Record = client.call("POST", path("jobs", job_id, "cancel"))
    return record


def resume(client: Client, job_id: int) -> Record:
    """Continue a failed or cancelled job with its unfinished partitions."""
    record: Record = client.call("POST", path("jobs", job_id, "resume"))
    return record


def wait(
    client: Client,
    job_id: int,
    on_record: Callable[[Record], None] = lambda record: None,
    on_problem: Callable[[str], None] = lambda message: None,
) -> Record:
    """Return the job's record when it has ended; `on_record` gets it whenever it changed.

    `on_problem` gets a message when the server does not answer. Raises `Unreachable` after `MAX_OUTAGE_S`.
    """
    min_pause, max_pause = PAUSES_S
    pause = min_pause
    while True:
        record = _get_patiently(client, job_id, on_problem)
        on_record(record)
        if record["state"] in JOB_END_STATES:
            return record
        for record in _events(client, job_id):
            on_record(record)
            if record["state"] in JOB_END_STATES:
                return record
            pause = min_pause
        time.sleep(pause)
        pause = min(pause * 2, max_pause)


def _get_patiently(client: Client, job_id: int, on_problem: Callable[[str], None]) -> Record:
    """Return the job's record, from a server that may be down for a while."""
    deadline, (pause, max_pause), reported = time.monotonic() + MAX_OUTAGE_S, PAUSES_S, False
    while True:
        try:
            return get(client, job_id)
        except (ServerRefused, Unreachable) as error:
            if not is_temporary(error) or time.monotonic() > deadline:
                raise
            if not reported:
                on_problem(f"{error}; waiting for the server, the job does not depend on this connection")
            reported = True
        time.sleep(pause)
        pause = min(pause * 2, max_pause)


def _events(client: Client, job_id: int) -> Iterator[Record]:
    """Yield the records of the event stream until the connection ends, for whatever reason."""
    headers = {"Accept": "text/event-stream"}
    try:
        with client.stream(
            path("jobs", job_id, "events"), headers=headers, timeout_s=STREAM_TIMEOUT_S
        ) as response:
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                return
            yield from _parse_events(response.iter_lines())
    except (ServerRefused, Unreachable):
        return  # reading the record shows whether anything is wrong


def _parse_events(lines: Iterator[str]) -> Iterator[Record]:
    """Yield the data of events named "job". Format: HTML standard, section 9.2.6."""
    name: str = ""
    data: list[str] = []
    for line in lines:
        if not line:
            if name == "job" and data:
                yield msgspec.json.decode("\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        if field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))
