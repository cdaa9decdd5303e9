"""Jobs over HTTP: start one, follow it to its end.

A job needs nobody who waits for it. Following one outlasts lost connections and restarts of the server, and
works through proxies that let no event stream pass: it asks, listens as long as events come, and asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import msgspec

from service.client.errors import Record, ServerRefused, Unreachable, is_away
from service.client.http import Client
from service.client.refs import path

OVER = ("done", "failed", "cancelled")
LISTEN_S = 30.0
"""An event stream that is silent for longer is held back by something, or dead."""
LOST_S = 600.0
"""How long a server that does not answer is waited for."""
PAUSES_S = (0.1, 2.0)
"""Before a connection is made again: at first, and at most."""


def start(client: Client, request: Record) -> Record:
    """The job that the server made of the body of POST /v1/jobs; one, however often it has to be sent."""
    return client.create(path("jobs"), request)


def get(client: Client, job_id: int) -> Record:
    record: Record = client.call("GET", path("jobs", job_id))
    return record


def cancel(client: Client, job_id: int) -> Record:
    record: Record = client.call("POST", path("jobs", job_id, "cancel"))
    return record


def resume(client: Client, job_id: int) -> Record:
    """Goes on with what a failed or cancelled job has not done."""
    record: Record = client.call("POST", path("jobs", job_id, "resume"))
    return record


def wait(
    client: Client,
    job_id: int,
    on_record: Callable[[Record], None] = lambda record: None,
    on_trouble: Callable[[str], None] = lambda words: None,
) -> Record:
    """The job's record once it has ended; `on_record` gets it whenever it changed.

    `on_trouble` is told when the server does not answer. Raises `Unreachable` when it stays so for `LOST_S`.
    """
    shortest, longest = PAUSES_S
    pause = shortest
    while True:
        record = _present(client, job_id, on_trouble)
        on_record(record)
        if record["state"] in OVER:
            return record
        for record in _events(client, job_id):
            on_record(record)
            if record["state"] in OVER:
                return record
            pause = shortest
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _present(client: Client, job_id: int, on_trouble: Callable[[str], None]) -> Record:
    """The job as it is, from a server that may be away for a while."""
    given_up, (pause, longest), told = time.monotonic() + LOST_S, PAUSES_S, False
    while True:
        try:
            return get(client, job_id)
        except (ServerRefused, Unreachable) as error:
            if not is_away(error) or time.monotonic() > given_up:
                raise
            if not told:
                on_trouble(f"{error}; the job needs no client, waiting for the server")
            told = True
        time.sleep(pause)
        pause = min(pause * 2, longest)


def _events(client: Client, job_id: int) -> Iterator[Record]:
    """The records that the server sends by itself, until the connection ends, for whatever reason."""
    try:
        with client.stream(
            path("jobs", job_id, "events"), headers={"Accept": "text/event-stream"}, timeout_s=LISTEN_S
        ) as response:
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                return
            yield from _records(response.iter_lines())
    except (ServerRefused, Unreachable):
        return  # what is wrong, if anything, comes out when the record is asked for


def _records(lines: Iterator[str]) -> Iterator[Record]:
    """The data of the events named "job" (HTML, 9.2.6: fields by line, a blank line ends an event)."""
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
