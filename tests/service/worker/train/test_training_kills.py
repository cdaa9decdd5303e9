"""Trainings whose worker processes are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import IncrementalPCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.jobs import jobs
from service.builds.forkserver import ForkServer
from tests.service.compiler.fit.datasets import digits, split_frame, without_target
from tests.service.worker.train.trainings import Trainings

TRIVIUM = Path(sys.executable).with_name("trivium")
TIMEOUT_S = 120.0


@pytest.fixture
def forks(shared_forks: ForkServer) -> ForkServer:
    return shared_forks


@contextmanager
def worker(trainings: Trainings) -> Iterator[subprocess.Popen[bytes]]:
    settings = trainings.settings
    environment = os.environ | {
        "TRIVIUM_HOME": str(settings.home),
        "TRIVIUM_BATCH_ROOTS": settings.batch_roots,
        "TRIVIUM_BATCH_LANES": "2",
    }
    process = subprocess.Popen([TRIVIUM, "worker"], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def count_finished(trainings: Trainings, job_id: int) -> int:
    return sum(p.result is not None for p in trainings.partitions(job_id))


def work(trainings: Trainings, job_id: int, until: int) -> None:
    """Build versions until `until` partitions are finished or the job has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while trainings.job(job_id).state in jobs.OPEN_STATES and count_finished(trainings, job_id) < until:
        assert time.monotonic() < deadline, trainings.partitions(job_id)
        trainings.build()
        time.sleep(0.02)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("estimator", "fields"),
    [
        (make_pipeline(StandardScaler(), IncrementalPCA(20), SGDClassifier(loss="log_loss")), {}),
        (RandomForestClassifier(20), {"strategy": "ensemble", "sampling": "stratified"}),
    ],
    ids=["partial_fit", "ensemble"],
)
def test_killed_workers_train_the_same_model_as_an_undisturbed_worker(
    tmp_path: Path, forks: ForkServer, estimator: object, fields: dict[str, object]
) -> None:
    results = []
    for name, kills in (("undisturbed", 0), ("killed", 2)):
        (tmp_path / name).mkdir()
        trainings = Trainings(tmp_path / name, forks)
        job_id = trainings.start(estimator, split_frame(digits(), 4), **fields)
        for kill in range(kills):
            with worker(trainings):  # killed at the end of the block
                work(trainings, job_id, until=2 + 7 * kill)
        with worker(trainings):
            work(trainings, job_id, until=1_000)
        job = trainings.job(job_id)
        assert job.state == "done", job.error
        places = Counter((p.stage, p.number) for p in trainings.partitions(job_id) if p.result)
        assert set(places.values()) == {1}
        assert trainings.progress(job_id).rows_done == 1797
        assert trainings.version().number == job.version == 1
        results.append(
            (trainings.model().predict_proba(without_target(digits())), trainings.version().metrics)
        )
        trainings.engine.dispose()
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
