from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from service.compiler.fit.sampling import Quota
from tests.service.compiler.fit.datasets import cancer, split_frame
from tests.service.compiler.fit.in_process_training import TrainingRun


def test_a_quota_takes_its_exact_share_for_any_block_sizes() -> None:
    for sizes in ([7] * 13, [91], [1] * 91, [90, 1]):
        quota = Quota(17, 91)
        assert sum(quota.take(n) for n in sizes) == 17


def test_a_quota_continues_after_the_rows_of_earlier_partitions() -> None:
    assert Quota(17, 91, before=0).take(40) + Quota(17, 91, before=40).take(51) == 17


def test_balanced_sampling_takes_the_same_number_of_rows_of_each_class(tmp_path: Path) -> None:
    table = cancer().assign(row=np.arange(569.0))
    run = TrainingRun(tmp_path, split_frame(table, 4), balanced=True)
    model = run.fit(KNeighborsClassifier(1), "single")  # keeps its training rows in _fit_X
    labels = table.y.to_numpy()[model._fit_X[:, -1].astype(int)]
    assert pd.Series(labels).value_counts().to_dict() == {"benign": 212, "malignant": 212}


def test_validation_rows_are_never_trained_on(tmp_path: Path) -> None:
    table = cancer().assign(row=np.arange(569.0))
    run = TrainingRun(tmp_path, split_frame(table, 4), validation=0.2, training_slots=4, stratified=True)
    model = run.fit(KNeighborsClassifier(1), "ensemble")
    trained = np.concatenate([m._fit_X[:, -1] for m in model.estimators_])
    assert len(set(trained)) == len(trained) == sum(run.fitted_rows)
    assert abs(len(trained) - 0.8 * 569) <= 8
    correct = run.metrics["accuracy"] * (569 - len(trained))
    assert correct == pytest.approx(round(correct)), "the accuracy is a share of the other rows"


def test_a_random_state_that_the_estimator_sets_stays(tmp_path: Path) -> None:
    model = TrainingRun(tmp_path, split_frame(cancer(), 2)).fit(
        LogisticRegression(random_state=7, max_iter=5000), "single"
    )
    assert model.random_state == 7
