from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from service.compiler.fit.sampling import Quota
from tests.service.compiler.fit.data import cancer, cut
from tests.service.compiler.fit.trainer import Trainer


def test_a_quota_takes_its_share_exactly_however_the_rows_come() -> None:
    for sizes in ([7] * 13, [91], [1] * 91, [90, 1]):
        quota = Quota(17, 91)
        assert sum(quota.take(n) for n in sizes) == 17


def test_a_quota_goes_on_where_the_partitions_before_have_left_off() -> None:
    assert Quota(17, 91, before=0).take(40) + Quota(17, 91, before=40).take(51) == 17


def test_balanced_sampling_takes_as_many_of_each_class(tmp_path: Path) -> None:
    table = cancer().assign(row=np.arange(569.0))
    trainer = Trainer(tmp_path, cut(table, 4), balanced=True)
    model = trainer.fit(KNeighborsClassifier(1), "single")  # it keeps the rows that it was fitted on
    taken = table.y.to_numpy()[model._fit_X[:, -1].astype(int)]
    assert pd.Series(taken).value_counts().to_dict() == {"benign": 212, "malignant": 212}


def test_rows_held_out_are_never_trained_on(tmp_path: Path) -> None:
    table = cancer().assign(row=np.arange(569.0))
    trainer = Trainer(tmp_path, cut(table, 4), validation=0.2, hands=4, by_class=True)
    model = trainer.fit(KNeighborsClassifier(1), "ensemble")
    trained = np.concatenate([m._fit_X[:, -1] for m in model.estimators_])
    assert len(set(trained)) == len(trained) == sum(trainer.used)
    assert abs(len(trained) - 0.8 * 569) <= 8
    right = trainer.figures["accuracy"] * (569 - len(trained))
    assert right == pytest.approx(round(right)), "it is a share of the other rows"


def test_seeds_that_the_estimator_sets_are_kept(tmp_path: Path) -> None:
    model = Trainer(tmp_path, cut(cancer(), 2)).fit(
        LogisticRegression(random_state=7, max_iter=5000), "single"
    )
    assert model.random_state == 7
