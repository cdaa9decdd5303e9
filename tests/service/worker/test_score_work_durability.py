"""The files of a scoring job are durable before a transaction counts them, and deleted after it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from sqlalchemy import update

from registry import db
from registry.artifacts import Store
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.tables import TaskRow, VersionRow, now
from registry.vocabulary import SCORE
from service.batch.score_schemas import ScoreBody
from service.builds.forkserver import ForkServer
from service.config import Settings
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import BulkLoader, is_shared
from service.submit.score_admission import ScoreAdmission
from service.worker.job_work import WorkContext
from service.worker.lane_models import LaneModels
from service.worker.lanes import Worker
from service.worker.score_work import ScoreWork
from tests.harness.durability import DurabilityLog, Event, recorded
from tests.registry.helpers import publish_ready

CSV = "text/csv"


class ScoreBench:
    """A registry on SQLite with an ONNX model that returns `x0`, and a worker that runs step by step."""

    def __init__(self, folder: Path, database: Path) -> None:
        """`database`: a migrated SQLite file to copy."""
        self.data = folder / "data"
        self.data.mkdir()
        self.settings = Settings(home=folder / "home", batch_roots=str(self.data), batch_lanes=1)
        self.settings.home.mkdir()
        shutil.copyfile(database, self.settings.home / database.name)
        self.engine = db.connect(self.settings.url)
        self.sessions, self.store = db.sessions(self.engine), Store(self.settings.blobs)
        publish_ready(self.sessions, self.store, content=_identity_model())
        isolation = Isolation(lambda: pytest.fail("ONNX models need no child"), 1024, 30.0)
        models = LaneModels(BulkLoader(self.sessions, self.store, isolation), is_shared)
        work = ScoreWork(WorkContext(self.settings, self.sessions, self.store, models, ForkServer()))
        self.worker = Worker(self.settings, self.sessions, {SCORE: work})

    def start(self, *parts: str, **fields: Any) -> int:
        """Start a job over one file per text of rows; return its id."""
        for number, rows in enumerate(parts):
            (self.data / f"{number}.csv").write_text(f"id,x0\n{rows}")
        body = {"kind": "score", "model": "fraud", "version": 1, "input": {"uri": str(self.data)}}
        body |= {"id_column": "id", "output": {"media_type": CSV}, **fields}
        spec = ScoreBody.model_validate(body).model_dump(mode="json")
        with self.sessions.begin() as session:
            version = session.get(VersionRow, 1)
            return ScoreAdmission().accept(session, self.store, spec, version, by="ann").id

    def step(self) -> None:
        """Run one task, without the pause before a retry."""
        with self.sessions.begin() as session:
            session.execute(update(TaskRow).values(not_before=now()))
        self.worker.step()

    def job(self, job_id: int) -> JobRow:
        with db.reading(self.sessions) as session:
            return jobs.get(session, job_id)

    def partition(self, job_id: int, number: int = 0) -> PartitionRow:
        with db.reading(self.sessions) as session:
            return jobs.partition(session, job_id, jobs.SCORE_STAGE, number)

    def files(self, job_id: int) -> list[str]:
        return sorted(path.name for path in self.settings.job_directory(job_id).iterdir())


def _identity_model() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, [None, 1]) for name in ("x0", "value")]
    graph = helper.make_graph([helper.make_node("Identity", ["x0"], ["value"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture
def bench(tmp_path: Path, sqlite_template: Path) -> Iterator[ScoreBench]:
    bench = ScoreBench(tmp_path, sqlite_template)
    yield bench
    bench.engine.dispose()


def _finished(log: DurabilityLog) -> int:
    """Return the position of the commit that ends a task: the last one that changes its row."""
    return max(position for position, event in enumerate(log.events) if "tasks" in event.tables)


def test_the_files_of_a_partition_are_durable_before_the_transaction_that_marks_it_done(
    bench: ScoreBench,
) -> None:
    job_id = bench.start("1,0.5\n2,none\n")
    bench.step()
    with recorded() as log:
        bench.step()
    result = bench.partition(job_id).result
    assert result is not None
    assert (result["rows"], result["failed"]) == (1, 1)
    directory = bench.settings.job_directory(job_id)
    for name in (result["file"], result["errors"]):
        assert log.saved(directory / name) < _finished(log)
    assert bench.files(job_id) == sorted([result["file"], result["errors"]])


def test_the_directory_of_a_job_is_durable_before_its_first_partition_is_done(bench: ScoreBench) -> None:
    job_id = bench.start("1,0.5\n")
    bench.step()
    with recorded() as log:
        bench.step()
    directory = bench.settings.job_directory(job_id)
    assert log.entry_synced(directory.parent) < log.entry_synced(directory) < _finished(log)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_output_is_durable_before_the_job_is_done_and_the_parts_are_deleted_after_it(
    bench: ScoreBench,
) -> None:
    job_id = bench.start("1,0.5\n2,none\n", "3,0.25\n")
    for _ in range(3):
        bench.step()
    parts = bench.files(job_id)
    assert len(parts) == 3
    with recorded() as log:
        bench.step()
    job = bench.job(job_id)
    assert (job.state, job.error) == (jobs.DONE, None)
    assert job.output is not None
    assert job.errors is not None
    done = _finished(log)
    for blob in (job.output, job.errors):
        assert log.saved(bench.store.path(blob)) < done
    directory = bench.settings.job_directory(job_id)
    assert all(log.position("unlink", directory / part) > done for part in parts)
    assert not directory.exists()
    assert bench.store.path(job.output).read_bytes().splitlines()[1:] == [b'"1",0.5', b'"3",0.25']


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_partition_whose_files_are_not_durable_is_not_done(bench: ScoreBench, step: str) -> None:
    job_id = bench.start("1,0.5\n2,none\n", max_attempts=2)
    bench.step()
    directory = bench.settings.job_directory(job_id)

    def break_disk(event: Event) -> None:
        if event.kind == step and event.path.is_relative_to(directory):
            raise OSError(5, "Input/output error")

    with recorded(break_disk):
        bench.step()
    assert bench.partition(job_id).result is None
    assert bench.files(job_id) == []
    bench.step()
    assert bench.partition(job_id).result is not None


def test_a_job_that_fails_for_its_rows_has_a_durable_errors_file(bench: ScoreBench) -> None:
    job_id = bench.start("1,0.5\n2,none\n", error_threshold=0.1)
    with recorded() as log:
        for _ in range(3):
            bench.step()
    job = bench.job(job_id)
    assert job.state == jobs.FAILED
    assert job.errors is not None
    assert job.output is None
    assert log.saved(bench.store.path(job.errors)) < _finished(log)
