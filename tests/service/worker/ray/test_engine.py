"""Jobs on a real Ray cluster of two nodes give the same output as on this machine, also after kills."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.ensemble import RandomForestClassifier

from registry import db, queue, versions
from registry.artifacts import Store
from registry.errors import Invalid, Unavailable
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.versions import NewVersion
from registry.vocabulary import SCORE
from service.batch.score_schemas import ScoreBody
from service.builds.task_kinds import BuildTasks
from service.config import Settings
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import BulkLoader, is_shared
from service.submit.score_admission import ScoreAdmission
from service.worker.job_work import WorkContext
from service.worker.lane_models import LaneModels
from service.worker.lanes import RunningTask, Worker
from service.worker.ray.engine import RayEngine
from service.worker.ray.messages import RayReport
from service.worker.score_work import ScoreWork
from tests.service.compiler.fit.datasets import cancer, split_frame, without_target
from tests.service.estimators import SLEEP_OFFSET, SleepingModel, numeric_rows
from tests.service.shared_template import SharedTemplate
from tests.service.worker.ray.ray_cluster import two_nodes
from tests.service.worker.train.trainings import Trainings

pytestmark = pytest.mark.slow
ROWS = 10  # per file; each file is one partition
WAIT_S = 90.0


class ObservedEngine(RayEngine):
    """An engine that calls `on_record` after each recorded report, while its driver and actors run."""

    on_record: Callable[[], None] | None = None

    def _record(self, running: RunningTask, report: RayReport, is_last: bool) -> None:
        super()._record(running, report, is_last)
        if self.on_record is not None:
            self.on_record()


class RayBench:
    """A registry with two models, a forest and one that sleeps for a given time, and workers on demand."""

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        self.data.mkdir()
        self.settings = Settings(home=home / "home", batch_roots=str(self.data), batch_lanes=1)
        engine = db.connect(self.settings.url)
        db.migrate(engine, self.settings.home)
        self.sessions, self.store = db.sessions(engine), Store(self.settings.blobs)
        self.forks = SharedTemplate()
        frame = numeric_rows()
        self.publish("forest", RandomForestClassifier(10, random_state=0).fit(frame, frame["x0"] > 0))

    @cached_property
    def sleeper(self) -> str:
        """The name of the model that sleeps, published on first use: only some tests use it."""
        frame = numeric_rows()
        self.publish("sleeper", SleepingModel().fit(frame, frame["x0"]))
        return "sleeper"

    def publish(self, name: str, model: Any) -> None:
        file = io.BytesIO()
        joblib.dump(model, file)
        blob = self.store.put([file.getvalue()]).sha256
        example = self.store.put([numeric_rows(5).to_csv(index=False).encode()]).sha256
        new = NewVersion(
            model=name,
            artifact=blob,
            format="sklearn-joblib",
            example={"artifact": example, "media_type": "text/csv"},
        )
        with self.sessions.begin() as session:
            versions.publish(session, self.store, new, by="tests")
        builds = BuildTasks(self.settings, self.sessions, self.store, self.forks)
        with self.sessions.begin() as session:
            task = queue.claim(session, [builds.kind], "tests", 60.0)
        assert task is not None
        with tempfile.TemporaryDirectory() as out:
            result = builds.run(int(task.subject), Path(out), lambda: None)
        assert result.state == "ready", result.report
        with self.sessions.begin() as session:
            queue.finish(session, task.id, task.fence)
            builds.record(session, int(task.subject), result)

    def write(self, name: str, parts: int, sleep_s: float = 0.0) -> Path:
        """Write a directory of CSV files. Every third file has a row without a number."""
        directory = self.data / name
        directory.mkdir()
        for part in range(parts):
            frame = numeric_rows(ROWS).astype(object)
            frame.insert(0, "id", [f"{part}-{row}" for row in range(ROWS)])
            if sleep_s:
                frame["x0"] = SLEEP_OFFSET + sleep_s
            if part % 3 == 1:
                frame.loc[4, "x1"] = "none"
            frame.to_csv(directory / f"{part}.csv", index=False)
        return directory

    def start(self, directory: Path, model: str = "forest", engine: str = "ray", **options: Any) -> int:
        fields = {"input": {"uri": str(directory)}, "id_column": "id", "version": 1, "engine": engine}
        body = ScoreBody.model_validate({"kind": "score", "model": model, **fields, **options})
        spec = body.model_dump(mode="json", exclude={"dry_run"})
        with db.reading(self.sessions) as session:
            version = ScoreAdmission().resolve_version(session, spec)
        ScoreAdmission().examine(self.settings, self.store, spec, version)
        with self.sessions.begin() as session:
            return ScoreAdmission().accept(session, self.store, spec, version, by="tests").id

    @contextmanager
    def worker(self, on_record: Callable[[], None] | None = None) -> Iterator[Worker]:
        """Yield a worker in this process that runs only when the test calls its steps."""
        isolation = Isolation(lambda: self.forks.fork("isolated"), self.settings.build_memory_mb, 30.0)
        models = LaneModels(BulkLoader(self.sessions, self.store, isolation), is_shared)
        context = WorkContext(self.settings, self.sessions, self.store, models, self.forks)
        works = {SCORE: ScoreWork(context)}
        engine = ObservedEngine(self.settings, self.sessions, works)
        engine.on_record = on_record
        try:
            yield Worker(self.settings, self.sessions, works, engine.run)
        finally:
            models.close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the threads of a worker in this process."""
        with self.worker() as worker:
            worker.start()
            try:
                yield
            finally:
                worker.stop(30.0)

    def worker_process(self) -> subprocess.Popen[bytes]:
        variables = {"TRIVIUM_HOME": str(self.settings.home), "TRIVIUM_BATCH_ROOTS": str(self.data)}
        trivium = Path(sys.executable).with_name("trivium")
        return subprocess.Popen([trivium, "worker"], env=os.environ | variables, stderr=subprocess.DEVNULL)

    def job(self, job_id: int) -> JobRow:
        with db.reading(self.sessions) as session:
            return jobs.get(session, job_id)

    def parts(self, job_id: int) -> list[PartitionRow]:
        with db.reading(self.sessions) as session:
            return jobs.partitions(session, job_id)

    def finished(self, job_id: int) -> dict[int, PartitionRow]:
        return {p.number: p for p in self.parts(job_id) if p.result is not None}

    def ended(self, job_id: int) -> JobRow:
        wait_for(lambda: self.job(job_id).state not in jobs.OPEN_STATES)
        return self.job(job_id)

    def wait_for_finished(self, job_id: int, count: int = 1) -> dict[int, PartitionRow]:
        wait_for(lambda: len(self.finished(job_id)) >= count)
        return self.finished(job_id)

    def output(self, job_id: int) -> pd.DataFrame:
        return pd.read_parquet(self.store.path(self.job(job_id).output or ""))


def wait_for(condition: Callable[[], object]) -> None:
    timer = threading.Event()
    for _ in range(int(WAIT_S / 0.05)):
        if condition():
            return
        timer.wait(0.05)
    raise AssertionError(f"the condition did not hold within {WAIT_S:g} s")


def pid_of(row: PartitionRow) -> int:
    assert row.worker is not None
    return int(row.worker.partition(":")[2])


def drivers() -> list[psutil.Process]:
    """Return the drivers that this process, or a worker that it started, has started."""
    return [p for p in psutil.Process().children(recursive=True) if "ray.driver" in command(p)]


def command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it is ending
        return ""


def check_once_each(bench: RayBench, job_id: int, parts: int) -> None:
    job, partitions = bench.job(job_id), bench.parts(job_id)
    assert (job.state, job.error) == (jobs.DONE, None)
    bad = {f"{part}-4" for part in range(parts) if part % 3 == 1}
    ids = [f"{part}-{row}" for part in range(parts) for row in range(ROWS)]
    assert bench.output(job_id)["id"].tolist() == [i for i in ids if i not in bad]
    assert [p.rows + p.failed for p in partitions] == [ROWS] * parts
    assert (job.manifest or {})["rows"] == ROWS * parts - len(bad)
    assert not bench.settings.job_directory(job_id).exists()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayBench]:
    bench = RayBench(tmp_path_factory.mktemp("ray"))
    yield bench
    bench.forks.stop()


@pytest.fixture(scope="module")
def two_node_cluster() -> Iterator[dict[str, str]]:
    with two_nodes() as environment:
        yield environment


@pytest.fixture
def cluster(two_node_cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in two_node_cluster.items():
        monkeypatch.setenv(name, value)
    return two_node_cluster


def test_ray_writes_the_same_bytes_as_the_local_engine(bench: RayBench, cluster: dict[str, str]) -> None:
    directory = bench.write("same", 6)
    local_id, ray_id = bench.start(directory, engine="local"), bench.start(directory)
    with bench.working():
        local, on_ray = bench.ended(local_id), bench.ended(ray_id)
    check_once_each(bench, ray_id, 6)
    assert (on_ray.output, on_ray.errors) == (local.output, local.errors)
    assert on_ray.errors is not None
    assert drivers() == []


@pytest.mark.fault
def test_each_partition_counts_once_if_an_actor_is_killed(bench: RayBench, cluster: dict[str, str]) -> None:
    job_id = bench.start(bench.write("actor", 6, sleep_s=1.0), bench.sleeper)
    with bench.working():
        killed_pid = pid_of(bench.wait_for_finished(job_id).popitem()[1])
        os.kill(killed_pid, signal.SIGKILL)
        bench.ended(job_id)
    check_once_each(bench, job_id, 6)
    assert len({pid_of(p) for p in bench.parts(job_id)}) > 2


@pytest.mark.fault
def test_another_worker_continues_if_a_worker_and_its_driver_are_killed(
    bench: RayBench, cluster: dict[str, str]
) -> None:
    job_id = bench.start(bench.write("worker", 6, sleep_s=1.5), bench.sleeper)
    worker = bench.worker_process()
    try:
        bench.wait_for_finished(job_id)
        [driver] = [p for p in drivers() if p.ppid() == worker.pid]
    finally:
        worker.kill()
        worker.wait()
    done = bench.finished(job_id)
    with bench.working():
        bench.ended(job_id)
    check_once_each(bench, job_id, 6)
    assert all(p.result == bench.finished(job_id)[n].result for n, p in done.items())
    assert not driver.is_running()
    assert len({(p.worker or "").partition(":")[0] for p in bench.parts(job_id)}) == 2


def test_a_job_that_is_cancelled_ends_its_driver_and_its_actors(
    bench: RayBench, cluster: dict[str, str]
) -> None:
    job_id = bench.start(bench.write("cancel", 6))
    done: dict[int, PartitionRow] = {}

    def cancel() -> None:
        assert len(drivers()) == 1
        done.update(bench.finished(job_id))
        assert all(psutil.pid_exists(pid_of(p)) for p in done.values())
        with bench.sessions.begin() as session:
            jobs.cancel(session, job_id)

    with bench.worker(cancel) as worker:
        worker.step()
        worker.ray_step()
    assert drivers() == []
    wait_for(lambda: not any(psutil.pid_exists(pid_of(p)) for p in done.values()))
    assert len(done) == 1
    assert bench.job(job_id).state == jobs.CANCELLED
    assert bench.finished(job_id).keys() == done.keys()


def test_a_failed_partition_fails_the_job_naming_the_partition(
    bench: RayBench, cluster: dict[str, str]
) -> None:
    directory = bench.write("gone", 2)
    job_id = bench.start(directory, max_attempts=1)
    with bench.worker() as worker:
        worker.step()
        with bench.sessions.begin() as session:  # one unfinished partition: Ray starts one actor only
            jobs.partition(session, job_id, jobs.SCORE_STAGE, 0).result = {}
        (directory / "1.csv").unlink()
        worker.ray_step()
    job = bench.job(job_id)
    assert job.state == jobs.FAILED
    assert "partition 1" in (job.error or "")
    assert "1.csv" in (job.error or "")


@pytest.mark.fault
def test_an_ensemble_fitted_on_ray_equals_one_fitted_locally(
    bench: RayBench, cluster: dict[str, str], tmp_path: Path
) -> None:
    trainings = Trainings(tmp_path, bench.forks)
    works = trainings.works()
    engine = RayEngine(trainings.settings, trainings.sessions, works)
    worker = Worker(trainings.settings, trainings.sessions, works, engine.run)
    answers = []
    for number, name in ((1, "local"), (2, "ray")):
        forest = RandomForestClassifier(5)
        job_id = trainings.start(forest, split_frame(cancer(), 3), strategy="ensemble", engine=name)
        while trainings.job(job_id).state in jobs.OPEN_STATES:
            worker.step()
            worker.ray_step()
            trainings.build()
        job = trainings.job(job_id)
        assert (job.state, job.version, job.error) == (jobs.DONE, number, None)
        answers.append(trainings.model(number).predict_proba(without_target(cancer())))
    np.testing.assert_array_equal(*answers)
    local_workers = {p.worker for p in trainings.partitions(job_id) if p.stage == jobs.READ_STAGE}
    assert local_workers.isdisjoint(p.worker for p in trainings.partitions(job_id) if p.stage.endswith("fit"))
    trainings.engine.dispose()


def test_without_a_cluster_ray_runs_on_loopback_and_ends_with_the_job(
    bench: RayBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    job_id = bench.start(bench.write("alone", 2))
    addresses: set[str] = set()
    found: dict[int, psutil.Process] = {}

    def observe() -> None:
        [driver] = drivers()
        found[driver.pid] = driver
        processes = started_by(driver)
        assert "ray::" in " ".join(map(command, processes))
        addresses.update(c.laddr.ip for p in processes for c in listening(p))

    with bench.worker(observe) as worker:
        worker.step()
        worker.ray_step()
        worker.step()  # the assembly
    [driver] = found.values()
    check_once_each(bench, job_id, 2)
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert addresses
    wait_for(lambda: not [p for p in started_by(driver) if command(p)])


def started_by(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the driver's session, which Ray's processes do not leave."""
    return [p for p in psutil.process_iter() if session_of(p) == driver.pid]


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def listening(process: psutil.Process) -> list[Any]:
    try:
        return [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


def test_without_ray_a_job_on_ray_is_rejected_naming_the_command_that_installs_it(
    bench: RayBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = bench.write("rejected", 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Invalid, match=r"uv pip install") as raised:
        bench.start(directory)
    assert raised.value.errors[0].field == "engine"
    assert bench.start(directory, engine="local")


def test_a_partition_fails_after_too_many_processes_died_on_it(tmp_path: Path) -> None:
    from service.worker.ray.actor import attempt  # imports Ray

    with attempt(tmp_path, "score-000001-1") as first, attempt(tmp_path, "score-000001-1") as second:
        assert first != second
    assert list(tmp_path.iterdir()) == []
    for number in range(jobs.MAX_LOST_WORKERS - 1):
        (tmp_path / f".score-000001-1-{number}.begun").touch()
    with attempt(tmp_path, "score-000001-1"):
        pass
    (tmp_path / ".score-000001-1-last.begun").touch()
    with attempt(tmp_path, "score-000002-1"):
        pass
    with (
        pytest.raises(Unavailable, match=f"{jobs.MAX_LOST_WORKERS} processes died on this partition"),
        attempt(tmp_path, "score-000001-1"),
    ):
        pass
