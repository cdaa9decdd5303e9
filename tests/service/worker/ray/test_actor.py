"""An actor, called in this process without Ray: its files are durable before it reports them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pytest

from registry.errors import Changed, Unavailable
from registry.jobs import jobs
from service.formats.writing import PartWriter
from service.worker.job_work import PartitionResult, PermanentFailure
from service.worker.ray.messages import RayPartition, RayReport
from tests.harness.durability import Event, recorded

if TYPE_CHECKING:
    from service.worker.ray.actor import Actor

PARTITION = RayPartition("score", 7, 3, {"rows": [1.5, 2.5]})
BATCH = pa.record_batch({"value": [1.5, 2.5]})


def _write_rows(part: dict[str, list[float]], base: Path) -> PartitionResult:
    with PartWriter(base.with_name(base.name + ".csv"), "text/csv", BATCH.schema) as writer:
        writer.write(BATCH)
        written = writer.close()
    return PartitionResult(written.rows, 1, {"file": written.file})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The job's directory, which does not exist yet."""
    return tmp_path / "jobs" / "1"


@pytest.fixture
def actor(directory: Path) -> Actor:
    from service.worker.ray.actor import Actor  # imports Ray

    actor = Actor.__new__(Actor)  # the constructor needs a running node
    actor._directory, actor._run, actor._name = directory, _write_rows, "node:1"
    return actor


def _call(actor: Actor) -> RayReport:
    answer = actor({"partition": [msgspec.json.encode(PARTITION).decode()]})
    return msgspec.json.decode(answer["report"][0], type=RayReport)


def test_a_reported_file_and_the_directory_of_the_job_are_durable(actor: Actor, directory: Path) -> None:
    with recorded() as log:
        report = _call(actor)
    assert report.result is not None
    assert report.result["file"].startswith("score-000007-3-")
    written = directory / report.result["file"]
    assert log.entry_synced(directory.parent) < log.entry_synced(directory) < log.saved(written)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in directory.iterdir()] == [written.name]
    assert (report.rows, report.failed, report.worker, report.error) == (2, 1, "node:1", None)
    assert (report.stage, report.number) == ("score", 7)


def test_two_runs_of_a_partition_write_different_files(actor: Actor, directory: Path) -> None:
    """Ray may run a partition twice at the same time."""
    assert _call(actor).result != _call(actor).result
    assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_file_that_is_not_durable_is_reported_as_an_error(actor: Actor, directory: Path, step: str) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == step and event.path.is_relative_to(directory):
            raise OSError(5, "Input/output error")

    with recorded(break_disk):
        report = _call(actor)
    assert report.result is None
    assert "Input/output error" in str(report.error)
    assert not report.is_permanent
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "is_permanent"),
    [
        (PermanentFailure("rejected"), True),
        (Changed("rows.csv", "rejected"), True),
        (Unavailable("rejected"), False),
        (ValueError("rejected"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_errors_that_a_retry_cannot_help_are_permanent(
    actor: Actor, error: Exception, is_permanent: bool
) -> None:
    def fail(part: dict[str, list[float]], base: Path) -> PartitionResult:
        raise error

    actor._run = fail
    report = _call(actor)
    assert (report.result, report.rows, report.failed) == (None, 0, 0)
    assert report.is_permanent is is_permanent
    assert "rejected" in str(report.error)


def test_a_running_partition_has_a_marker_that_a_dead_process_leaves(actor: Actor, directory: Path) -> None:
    markers: list[str] = []

    def run(part: dict[str, list[float]], base: Path) -> PartitionResult:
        markers.extend(path.name for path in directory.iterdir())
        assert markers == [f".{base.name}.begun"]
        return PartitionResult(1, 0, {})

    actor._run = run
    assert _call(actor).error is None
    assert markers[0].startswith(".score-000007-3-")
    assert list(directory.iterdir()) == []


def test_a_partition_on_which_too_many_processes_died_is_not_run_again(actor: Actor, directory: Path) -> None:
    directory.mkdir(parents=True)
    for number in range(jobs.MAX_LOST_WORKERS):
        (directory / f".score-000007-3-{number}.begun").touch()
    report = _call(actor)
    assert f"{jobs.MAX_LOST_WORKERS} processes died on this partition" in str(report.error)
    assert report.result is None
