"""How far a job is: a bar on a terminal, plain lines elsewhere; and what Ctrl-C means to it.

Every command that waits for a job waits here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typer import Abort, Exit, prompt

from service.cli.record_lines import failure_lines
from service.cli.shared import emit, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from service.client import Client, Record

LINE_S = 5.0
"""Without a terminal, a job that is at work gets a line at most so often."""
STEPS = {
    "read": "reading",
    "transform": "fitting the transformers",
    "fit": "fitting the model",
    "merge": "merging",
    "predict": "answering the rows held out",
    "measure": "measuring",
}
INTERRUPTED = 130
LEAVE, CANCEL, WAIT = "leave", "cancel", "wait"


def follow(client: Client, job_id: int, tell: Callable[[str], None] = say) -> Record:
    """The job's record once it has ended. `tell` gets the lines that stand for a bar where there is none.

    Ctrl-C leaves the job to the server, after a question when there is somebody to ask. Raises `Exit` then.
    """
    from service.client import jobs

    while True:
        try:
            with showing(tell) as show:
                return jobs.wait(client, job_id, show, say)
        except KeyboardInterrupt:
            try:
                interrupted(client, job_id)
            except KeyboardInterrupt:  # once more, before or after the question
                say(f"`trivium jobs watch {job_id}` says what becomes of job {job_id}")
                raise Exit(INTERRUPTED) from None


def require_done(record: Record, json: bool) -> None:
    """Raises `Exit` with code 1, and says why, when a job that has ended made nothing."""
    if record["state"] != "done":
        emit(json, record, lambda: None)
        say("\n".join(failure_lines(record)))
        raise Exit(1)


@contextmanager
def showing(tell: Callable[[str], None] = say) -> Iterator[Callable[[Record], None]]:
    """What to call with a job's record whenever it changed."""
    if not sys.stderr.isatty():
        yield _lines(tell)
        return
    with _bar() as bar:
        task = bar.add_task("", total=None, done="", rate="", left="")
        yield lambda record: bar.update(
            task,
            description=f"job {record['id']}: {phase(record)}",
            total=_measure(record)[1],
            completed=_measure(record)[0],
            done=_done(record),
            rate=_rate(record),
            left=_left(record),
        )


def interrupted(client: Client, job_id: int) -> None:
    """Leave the job running, cancel it, or go on waiting: then it returns. Else raises `Exit`."""
    from service.client import ServerRefused, jobs

    choice = _asked() if sys.stdin.isatty() and sys.stderr.isatty() else LEAVE
    if choice == CANCEL:
        try:
            jobs.cancel(client, job_id)
        except ServerRefused as refused:
            if refused.status != 409:  # 409: it has ended meanwhile, and says how
                raise
        else:
            say(f"job {job_id} is cancelled; `trivium jobs resume {job_id}` goes on from there")
            raise Exit(INTERRUPTED)
    if choice == LEAVE:
        say(f"job {job_id} goes on without you; follow it with `trivium jobs watch {job_id}`")
        raise Exit(INTERRUPTED)


def _asked() -> str:
    words = "\nleave the job running, cancel it, or go on waiting? (leave, cancel, wait, or a first letter)"
    try:
        while True:
            answer = prompt(words, default=WAIT, err=True).strip().lower()
            for choice in (LEAVE, CANCEL, WAIT):
                if answer and choice.startswith(answer):
                    return choice
            say(f"{answer!r} is none of them")
    except Abort:  # Ctrl-C once more
        return LEAVE


def phase(record: Record) -> str:
    """What is being done, in a word or two."""
    if record["state"] == "queued":
        return "waiting for a worker"
    if record["state"] != "running":
        return str(record["state"])
    if not record["partitions_total"]:
        return "planning"
    if record["kind"] == "train":
        return _step(record)
    if record["partitions_done"] == record["partitions_total"]:
        return "assembling"
    return "scoring"


def _step(record: Record) -> str:
    """What a training is at: its stages are named `00-read`, `01-transform`, ..."""
    if record["version"] is not None:
        return f"building version {record['version']}"
    return STEPS[max(p["stage"] for p in record["partitions"]).partition("-")[2]]


def _measure(record: Record) -> tuple[int, int | None, str]:
    """How much is done, of how much, and of what: rows, of which a training reads all at first; then it is
    the partitions of one stage after the other that count."""
    stage = max((p["stage"] for p in record["partitions"]), default="")
    if record["kind"] == "train" and stage.partition("-")[2] != "read":
        parts = [p for p in record["partitions"] if p["stage"] == stage]
        return sum(p["state"] == "done" for p in parts), len(parts), "partitions"
    return record["rows_done"] + record["rows_failed"], record["rows_total"], "rows"


def progress_line(record: Record) -> str:
    """`scoring, 400,000 of 1,000,000 rows (40%), 350,000 rows/s, 2 s left, 3 failed`"""
    parts = [phase(record), _done(record), _rate(record), _left(record)]
    return ", ".join(part for part in parts if part)


def _lines(tell: Callable[[str], None]) -> Callable[[Record], None]:
    told_phase, told_at = "", 0.0

    def show(record: Record) -> None:
        nonlocal told_phase, told_at
        if phase(record) != told_phase or time.monotonic() - told_at > LINE_S:
            tell(f"job {record['id']}: {progress_line(record)}")
            told_phase, told_at = phase(record), time.monotonic()

    return show


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    texts = ("{task.fields[done]}", "{task.fields[rate]}", "{task.fields[left]}")
    columns = (TextColumn("{task.description}"), BarColumn(), *map(TextColumn, texts))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _done(record: Record) -> str:
    if not record["partitions_total"]:
        return ""
    done, total, what = _measure(record)
    if what == "partitions" and total == 1:
        return ""
    words = f"{done:,} {what}" if total is None else f"{done:,} of {total:,} {what}"
    if total and what == "rows":
        words += f" ({done / total:.0%})"
    return words + (f", {record['rows_failed']:,} failed" if record["rows_failed"] else "")


def _rate(record: Record) -> str:
    return f"{record['rate']:,.0f} rows/s" if record["rate"] and _measure(record)[2] == "rows" else ""


def _left(record: Record) -> str:
    seconds = record["eta_s"]
    if seconds is None or record["state"] != "running":
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s left" if minutes else f"{seconds} s left"
