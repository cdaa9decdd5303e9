"""Estimators and strategies that cannot be trained, and the messages that name the cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, RobustScaler
from sklearn.svm import LinearSVC

from registry.errors import Refused
from registry.vocabulary import Strategy
from tests.service.compiler.fit.datasets import cancer, split_frame
from tests.service.compiler.fit.in_process_training import TrainingRun


@pytest.mark.parametrize(
    ("estimator", "strategy", "message"),
    [
        (make_pipeline(RobustScaler(), SGDClassifier()), "partial_fit", "robustscaler.* has no partial_fit"),
        (make_pipeline(RobustScaler(), LogisticRegression()), "ensemble", "RobustScaler"),
        (make_pipeline(PolynomialFeatures(), SGDClassifier()), "partial_fit", "PolynomialFeatures"),
        (make_pipeline(SimpleImputer(strategy="median"), SGDClassifier()), "partial_fit", "median"),
        (make_pipeline(OneHotEncoder(min_frequency=3), SGDClassifier()), "partial_fit", "Encoder.*counts"),
        (LogisticRegression(), "partial_fit", "LogisticRegression has no partial_fit"),
        (LinearSVC(), "ensemble", "LinearSVC has no predict_proba"),
        (SGDClassifier(), "ensemble", "SGDClassifier has no predict_proba"),
        (KMeans(), "single", "KMeans is neither a classifier nor a regressor"),
        (IsolationForest(), "ensemble", "IsolationForest is neither"),
        ({"no": "estimator"}, "single", "'dict', not a scikit-learn estimator"),
        (SGDClassifier, "single", "not a scikit-learn estimator"),
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_training_is_refused_and_the_cause_named(
    tmp_path: Path, estimator: Any, strategy: Strategy, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        TrainingRun(tmp_path, split_frame(cancer(), 3)).fit(estimator, strategy)


def test_a_partition_without_a_class_is_refused_with_a_hint_at_stratified_sampling(tmp_path: Path) -> None:
    table = cancer().sort_values("y", ignore_index=True)
    with pytest.raises(Refused, match=r"no rows of class 'malignant'.*stratified"):
        TrainingRun(tmp_path, split_frame(table, 3)).fit(RandomForestClassifier(3), "ensemble")


def test_stratified_sampling_gives_each_partition_every_class(tmp_path: Path) -> None:
    table = cancer().sort_values("y", ignore_index=True)
    run = TrainingRun(tmp_path, split_frame(table, 3), training_slots=3, stratified=True)
    assert len(run.fit(RandomForestClassifier(3), "ensemble").estimators_) == 9
    assert max(run.fitted_rows) - min(run.fitted_rows) <= 6
