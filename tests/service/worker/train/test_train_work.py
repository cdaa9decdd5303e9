"""Partitions of a training, with their steps in this process: files are durable before they count as done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.jobs import jobs
from registry.vocabulary import TRAIN
from service.builds.forkserver import ForkServer
from service.compiler.fit import steps
from service.compiler.fit.fit_records import FitResult, FitStep
from service.worker.job_work import PermanentFailure
from service.worker.lanes import Worker
from service.worker.train.stages import ESTIMATOR
from service.worker.train.train_work import RunFit, TrainWork, run_step
from tests.harness.durability import DurabilityLog, Event, recorded
from tests.registry.helpers import build
from tests.service.worker.train.trainings import Trainings


def _fit_here(step: FitStep, heartbeat: Callable[[], None]) -> FitResult:
    heartbeat()
    return steps.run(step)


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[Trainings]:
    trainings = Trainings(tmp_path, ForkServer())
    works = trainings.works()
    train_work = works[TRAIN]
    assert isinstance(train_work, TrainWork)
    train_work._fit = _fit_here
    trainings.worker = Worker(trainings.settings, trainings.sessions, works)
    yield trainings
    trainings.engine.dispose()


def _frames() -> list[pd.DataFrame]:
    x = np.linspace(-1, 1, 60)
    frame = pd.DataFrame({"x0": x, "x1": x * x, "y": np.where(x > 0, "yes", "no")})
    return [frame[0::2], frame[1::2]]


def _start(trainings: Trainings) -> int:
    estimator = make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss"))
    return trainings.start(estimator, _frames())


def _until_published(trainings: Trainings, job_id: int) -> Iterator[None]:
    """Repeat until the job has a version. Raises `AssertionError` after too many steps."""
    for _ in range(40):
        if trainings.job(job_id).version is not None:
            return
        yield
    raise AssertionError(trainings.job(job_id).error)


def _last_commit(log: DurabilityLog) -> int:
    """Return the position of the commit that ends a task: the last one that changes its row."""
    return max(position for position, event in enumerate(log.events) if "tasks" in event.tables)


def _files(trainings: Trainings, job_id: int) -> set[str]:
    return {path.name for path in trainings.settings.job_directory(job_id).iterdir()}


def test_the_file_of_each_step_is_durable_before_the_transaction_that_marks_it_done(
    trainings: Trainings,
) -> None:
    job_id, checked = _start(trainings), set()
    directory = trainings.settings.job_directory(job_id)
    for _ in _until_published(trainings, job_id):
        with recorded() as log:
            trainings.worker.step()
        for partition in trainings.partitions(job_id):
            place, result = (partition.stage, partition.number), partition.result
            if result is not None and place not in checked:
                checked.add(place)
                if "file" in result:
                    assert log.synced(directory / result["file"]) < _last_commit(log)
                    assert result["bytes"] == (directory / result["file"]).stat().st_size
    assert {stage.partition("-")[2] for stage, _ in checked} == {
        "read", "transform", "fit", "merge", "predict", "measure",
    }  # fmt: skip
    results = [p.result or {} for p in trainings.partitions(job_id)]
    assert _files(trainings, job_id) == {ESTIMATOR, *(r["file"] for r in results if "file" in r)}


def test_the_estimator_is_durable_before_the_training_is_planned(trainings: Trainings) -> None:
    job_id = _start(trainings)
    directory = trainings.settings.job_directory(job_id)
    with recorded() as log:
        trainings.worker.step()
    assert trainings.job(job_id).plan is not None
    assert log.synced(directory / ESTIMATOR) < _last_commit(log)
    assert log.entry_synced(directory.parent) < log.entry_synced(directory) < _last_commit(log)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert _files(trainings, job_id) == {ESTIMATOR}


def test_the_estimator_is_never_opened_for_writing_at_its_path(trainings: Trainings) -> None:
    job_id = _start(trainings)
    with recorded() as log:
        trainings.worker.step()
    estimator = trainings.settings.job_directory(job_id) / ESTIMATOR
    assert estimator not in [event.path for event in log.events if event.kind == "open"]


@pytest.mark.parametrize("step", ["rename", "fsync"])
def test_a_failed_copy_of_the_estimator_leaves_no_other_file(trainings: Trainings, step: str) -> None:
    job_id = _start(trainings)
    directory = trainings.settings.job_directory(job_id)

    def break_disk(event: Event) -> None:
        if event.kind == step and event.path.parent == directory:
            raise OSError(28, "No space left on device")

    with recorded(break_disk):
        trainings.worker.step()
    assert trainings.job(job_id).plan is None
    assert _files(trainings, job_id) <= {ESTIMATOR}


def test_a_training_whose_estimator_was_deleted_fails_with_its_digest(trainings: Trainings) -> None:
    job_id = _start(trainings)
    sha256 = trainings.job(job_id).spec["estimator"]["artifact"]
    trainings.store.delete(sha256)
    trainings.worker.step()
    job = trainings.job(job_id)
    assert job.state == jobs.FAILED
    assert "the estimator: " in str(job.error)
    assert sha256 in str(job.error)


def test_the_blobs_of_a_version_are_durable_before_the_transaction_that_publishes_it(
    trainings: Trainings,
) -> None:
    job_id = _start(trainings)
    with recorded() as log:
        for _ in _until_published(trainings, job_id):
            trainings.worker.step()
    version = trainings.version()
    assert version.example is not None
    for blob in (version.artifact, version.example["artifact"]):
        assert log.saved(trainings.store.path(blob)) < log.committed("versions", "jobs")


def test_the_files_of_a_training_are_deleted_after_the_transaction_that_ends_it(trainings: Trainings) -> None:
    job_id = _start(trainings)
    for _ in _until_published(trainings, job_id):
        trainings.worker.step()
    build(trainings.sessions)
    files = _files(trainings, job_id)
    with recorded() as log:
        job = trainings.run(job_id)
    assert (job.state, job.error) == (jobs.DONE, None)
    directory = trainings.settings.job_directory(job_id)
    assert files
    for file in files:
        assert log.position("unlink", directory / file) > log.committed("jobs", "tasks")
    assert not directory.exists()


# ---- one step ----


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    return tmp_path / "job" / "03-fit-000002-1"


def _step(tmp_path: Path) -> FitStep:
    estimator = tmp_path / ESTIMATOR
    estimator.touch()
    return FitStep(do="fit", estimator=str(estimator), strategy="single", target="y", number=2)


def _writes(content: bytes, name: str = "result") -> RunFit:
    def fit(step: FitStep, heartbeat: Callable[[], None]) -> FitResult:
        (Path(step.out) / "result").write_bytes(content)
        return FitResult(state="ready", file=name, rows=7, metrics={"r2": 0.5})

    return fit


def test_a_step_returns_when_its_file_and_the_directory_are_fsynced(tmp_path: Path, path: Path) -> None:
    with recorded() as log:
        done = run_step(_step(tmp_path), _writes(b"model"), path, lambda: None)
    log.synced(path)
    assert log.steps(path.parent, "fsync") == [f"fsync {path.name}", "fsync ."]
    assert path.read_bytes() == b"model"
    assert (done.rows, done.failed, done.result["file"], done.result["bytes"]) == (7, 0, path.name, 5)
    assert 0 <= done.result["seconds"] < 60
    assert list(path.parent.iterdir()) == [path]


def test_a_step_without_a_file_names_none(tmp_path: Path, path: Path) -> None:
    def measure(step: FitStep, heartbeat: Callable[[], None]) -> FitResult:
        return FitResult(state="ready", rows=7, metrics={"r2": 0.5})

    done = run_step(_step(tmp_path), measure, path, lambda: None)
    assert "file" not in done.result
    assert done.result["metrics"] == {"r2": 0.5}
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("failed", ["fsync", "rename"])
def test_a_step_whose_file_is_not_durable_has_no_result(tmp_path: Path, path: Path, failed: str) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == failed:
            raise OSError(5, "Input/output error")

    step, fit = _step(tmp_path), _writes(b"model")
    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        run_step(step, fit, path, lambda: None)
    assert set(path.parent.iterdir()) <= {path}


def test_only_a_file_in_the_directory_of_the_step_is_used(tmp_path: Path, path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"another file")
    run_step(_step(tmp_path), _writes(b"model", str(tmp_path / "result")), path, lambda: None)
    assert path.read_bytes() == b"model"
    with pytest.raises(PermanentFailure, match="partition 2: the step reports a file that it did not write"):
        run_step(_step(tmp_path), _writes(b"model", str(tmp_path / "secret")), path, lambda: None)
    assert (tmp_path / "secret").exists()


def test_a_symbolic_link_is_not_a_file_of_the_step(tmp_path: Path, path: Path) -> None:
    def fit(step: FitStep, heartbeat: Callable[[], None]) -> FitResult:
        (Path(step.out) / "result").symlink_to(tmp_path / ESTIMATOR)
        return FitResult(state="ready", file="result")

    with pytest.raises(PermanentFailure, match="a file that it did not write"):
        run_step(_step(tmp_path), fit, path, lambda: None)
    assert list(path.parent.iterdir()) == []


def test_a_rejected_step_leaves_no_file(tmp_path: Path, path: Path) -> None:
    def fit(step: FitStep, heartbeat: Callable[[], None]) -> FitResult:
        _writes(b"model")(step, heartbeat)
        return FitResult(state="rejected", report={"reason": "no rows"}, file="result")

    with pytest.raises(PermanentFailure, match="partition 2: no rows"):
        run_step(_step(tmp_path), fit, path, lambda: None)
    assert list(path.parent.iterdir()) == []


def test_a_step_whose_input_is_missing_does_not_run(tmp_path: Path, path: Path) -> None:
    step = _step(tmp_path)
    Path(step.estimator).unlink()
    with pytest.raises(PermanentFailure, match=f"the file {ESTIMATOR} of an earlier step is missing"):
        run_step(step, _writes(b"model"), path, lambda: None)
    assert list(path.parent.iterdir()) == []
