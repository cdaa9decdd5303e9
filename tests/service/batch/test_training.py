from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import IncrementalPCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler

from service.builds.forkserver import ForkServer
from tests.registry.build.fit.data import cancer, cut, diabetes, digits, rows
from tests.service.batch.trainings import Trainings


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    forks = ForkServer()
    forks.start()
    yield forks
    forks.stop()


@pytest.fixture
def trainings(tmp_path: Path, forks: ForkServer) -> Iterator[Trainings]:
    made = Trainings(tmp_path, forks)
    yield made
    made.engine.dispose()


def test_a_pipeline_is_trained_over_files_and_published(trainings: Trainings) -> None:
    pipeline = make_pipeline(StandardScaler(), IncrementalPCA(20), SGDClassifier(loss="log_loss"))
    job = trainings.run(
        trainings.start(
            pipeline, cut(digits(), 4), ".csv",
            publish={"name": "m", "alias": "champion", "tags": {"from": "batch"}},
        )
    )  # fmt: skip
    assert (job.state, job.version, job.error) == ("done", 1, None)
    version = trainings.version()
    assert version.state == "ready", version.report
    assert version.description == f"trained by job {job.id}"
    assert version.metrics["accuracy"] > 0.8
    assert set(version.metrics) == {"accuracy", "f1", "log_loss"}
    training = version.lineage["training"]
    assert (training["job"], training["partitions"], training["strategy"]) == (job.id, 4, "partial_fit")
    assert training["rows"] + training["held_out"] == 1797
    assert [f["name"] for f in training["input"]] == [f"part-{n}.csv" for n in range(4)]
    found = trainings.progress(job.id)
    assert (found.rows_done, found.rows_total, found.rows_failed) == (1797, 1797, 0)
    assert [p.stage for p in trainings.partitions(job.id)][::4][:4] == [
        "00-read", "01-transform", "02-transform", "03-fit",
    ]  # fmt: skip


def test_an_ensemble_has_a_forest_for_each_partition(trainings: Trainings) -> None:
    job = trainings.run(trainings.start(RandomForestClassifier(5), cut(cancer(), 4), strategy="ensemble"))
    assert job.state == "done", job.error
    assert len(trainings.model().estimators_) == 20
    assert trainings.version().metrics["roc_auc"] > 0.9


def test_a_training_that_is_done_again_gives_the_same_model(trainings: Trainings) -> None:
    answers = []
    for number in (1, 2):
        start = trainings.start(
            RandomForestClassifier(5), cut(cancer(), 3),
            strategy="ensemble", sampling="stratified", partitions=4,
        )  # fmt: skip
        assert trainings.run(start).version == number
        answers.append(trainings.model(number).predict_proba(rows(cancer())))
    np.testing.assert_array_equal(*answers)
    assert trainings.version(1).metrics == trainings.version(2).metrics


def test_a_regression_is_measured_by_its_errors(trainings: Trainings) -> None:
    job = trainings.run(trainings.start(make_pipeline(StandardScaler(), SGDRegressor()), cut(diabetes(), 3)))
    assert job.state == "done", job.error
    assert set(trainings.version().metrics) == {"r2", "mae", "rmse"}


def test_what_cannot_be_trained_fails_at_once_and_by_name(trainings: Trainings) -> None:
    job = trainings.run(trainings.start(make_pipeline(RobustScaler(), SGDClassifier()), cut(cancer(), 3)))
    assert job.state == "failed"
    assert "RobustScaler (step 'robustscaler') has no partial_fit" in str(job.error)
    assert trainings.partitions(job.id) == []
