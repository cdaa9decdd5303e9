"""Waiting for jobs and builds: progress on stderr, and the choice at Ctrl-C.

Progress is a bar or a spinner on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typer import Abort, Exit, prompt

from registry.vocabulary import SCORE, TRAIN
from service.cli.descriptions import failure_lines
from service.cli.exit_codes import FAILURE, INTERRUPTED
from service.cli.output import print_message, print_record

if TYPE_CHECKING:
    from rich.progress import Progress

    from service.client import Client, Record

LINE_INTERVAL_S = 5.0
"""Without a terminal, a running job prints at most one line per phase in this time."""
TRAINING_STEPS = {
    "read": "reading",
    "transform": "fitting the transformers",
    "fit": "fitting the model",
    "merge": "merging",
    "predict": "predicting the held-out rows",
    "measure": "measuring",
}
"""Descriptions of the stages of a training, by the name after the number: `00-read`, `01-transform`."""
LEAVE, CANCEL, WAIT = CHOICES = ("leave", "cancel", "wait")


def follow_job(client: Client, job_id: int) -> Record:
    """Show a job's progress and return its record when it has ended.

    At Ctrl-C, offers on a terminal to leave, cancel or wait. Raises `Exit` unless the answer is to
    wait.
    """
    from service.client import jobs

    while True:
        try:
            with job_progress() as show:
                return jobs.wait(client, job_id, show, print_message)
        except KeyboardInterrupt:
            try:
                handle_interrupt(client, job_id)
            except KeyboardInterrupt:  # a second Ctrl-C, before or during the question
                print_message(f"interrupted; `trivium jobs watch {job_id}` follows job {job_id}")
                raise Exit(INTERRUPTED) from None


def require_done(record: Record, json: bool) -> None:
    """Raise `Exit` with an explanation unless an ended job is done."""
    if record["state"] != "done":
        print_record(json, record, lambda: None)
        print_message("\n".join(failure_lines(record)))
        raise Exit(FAILURE)


def handle_interrupt(client: Client, job_id: int) -> None:
    """Leave or cancel the job and raise `Exit`, or return to keep waiting."""
    from service.client import ServerRefused, jobs

    choice = _ask_choice() if sys.stdin.isatty() and sys.stderr.isatty() else LEAVE
    if choice == CANCEL:
        try:
            jobs.cancel(client, job_id)
        except ServerRefused as refused:
            if refused.status != 409:  # 409: the job has ended meanwhile, and waiting on shows its end
                raise
        else:
            print_message(f"job {job_id} is cancelled; continue it with `trivium jobs resume {job_id}`")
            raise Exit(INTERRUPTED)
    if choice == LEAVE:
        print_message(f"job {job_id} continues on the server; follow it with `trivium jobs watch {job_id}`")
        raise Exit(INTERRUPTED)


def _ask_choice() -> str:
    question = f"\nleave the job running, cancel it, or wait? ({', '.join(CHOICES)} or a first letter)"
    try:
        while True:
            answer = prompt(question, default=WAIT, err=True).strip().lower()
            for choice in CHOICES:
                if answer and choice.startswith(answer):
                    return choice
            print_message(f"{answer!r} is not one of {', '.join(CHOICES)}")
    except Abort:  # another Ctrl-C
        return LEAVE


@contextmanager
def build_progress(label: str) -> Iterator[Callable[[Record], None]]:
    """Show that a build runs; yields a function that takes the record at each look."""
    if not sys.stderr.isatty():
        print_message(label)
        yield lambda record: None
        return
    from rich.console import Console

    start = time.monotonic()
    with Console(stderr=True).status(label) as status:
        yield lambda record: status.update(f"{label}, {time.monotonic() - start:.0f} s")


@contextmanager
def job_progress(print_line: Callable[[str], None] = print_message) -> Iterator[Callable[[Record], None]]:
    """Show a job's progress; yields a function that takes the record whenever it changed.

    Without a terminal, `print_line` prints lines instead of the bar.
    """
    if not sys.stderr.isatty():
        yield _line_printer(print_line)
        return
    with _progress_bar() as bar:
        task = bar.add_task("", total=None, amount="", rate="", remaining="")

        def update(record: Record) -> None:
            completed, total, _ = _amount(record)
            bar.update(
                task,
                description=f"job {record['id']}: {phase(record)}",
                total=total,
                completed=completed,
                amount=_format_amount(record),
                rate=_format_rate(record),
                remaining=_format_remaining(record),
            )

        yield update


def _progress_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    texts = ("{task.fields[amount]}", "{task.fields[rate]}", "{task.fields[remaining]}")
    columns = (TextColumn("{task.description}"), BarColumn(), *map(TextColumn, texts))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _line_printer(print_line: Callable[[str], None]) -> Callable[[Record], None]:
    """Return a function that prints a line when the phase changes, and then every `LINE_INTERVAL_S`."""
    last_phase, last_time = "", 0.0

    def update(record: Record) -> None:
        nonlocal last_phase, last_time
        if phase(record) != last_phase or time.monotonic() - last_time > LINE_INTERVAL_S:
            print_line(f"job {record['id']}: {progress_line(record)}")
            last_phase, last_time = phase(record), time.monotonic()

    return update


def progress_line(record: Record) -> str:
    """Return `scoring, 400,000 of 1,000,000 rows (40%), 3 failed, 350,000 rows/s, 2 s left`."""
    parts = [phase(record), _format_amount(record), _format_rate(record), _format_remaining(record)]
    return ", ".join(part for part in parts if part)


def phase(record: Record) -> str:
    """Return what the job does at the moment, in a few words."""
    if record["state"] == "queued":
        return "waiting for a worker"
    if record["state"] != "running":
        return str(record["state"])
    if not record["partitions_total"]:
        return "planning"
    describe = _RUNNING_PHASES.get(record["kind"])
    return describe(record) if describe else str(record["state"])


def _scoring_phase(record: Record) -> str:
    return "assembling" if record["partitions_done"] == record["partitions_total"] else "scoring"


def _training_phase(record: Record) -> str:
    if record["version"] is not None:
        return f"building version {record['version']}"
    return TRAINING_STEPS[_stage_name(record)]


_RUNNING_PHASES = {SCORE: _scoring_phase, TRAIN: _training_phase}
"""What a planned, running job does, by its kind."""


def _stage_name(record: Record) -> str:
    """The name of the latest stage, without its number."""
    return str(_latest_stage(record).partition("-")[2])


def _latest_stage(record: Record) -> str:
    return max((str(p["stage"]) for p in record["partitions"]), default="")


def _amount(record: Record) -> tuple[int, int | None, str]:
    """How much is completed, the total if known, and the unit.

    The unit is rows; for a training whose rows are all read, it is the partitions of the latest stage.
    """
    if record["kind"] == TRAIN and _stage_name(record) != "read":
        parts = [p for p in record["partitions"] if p["stage"] == _latest_stage(record)]
        return sum(p["state"] == "done" for p in parts), len(parts), "partitions"
    return record["rows_done"] + record["rows_failed"], record["rows_total"], "rows"


def _format_amount(record: Record) -> str:
    if not record["partitions_total"]:
        return ""
    completed, total, unit = _amount(record)
    if unit == "partitions" and total == 1:
        return ""
    text = f"{completed:,} {unit}" if total is None else f"{completed:,} of {total:,} {unit}"
    if total and unit == "rows":
        text += f" ({completed / total:.0%})"
    return text + (f", {record['rows_failed']:,} failed" if record["rows_failed"] else "")


def _format_rate(record: Record) -> str:
    return f"{record['rate']:,.0f} rows/s" if record["rate"] and _amount(record)[2] == "rows" else ""


def _format_remaining(record: Record) -> str:
    seconds = record["eta_s"]
    if seconds is None or record["state"] != "running":
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s left" if minutes else f"{seconds} s left"
