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
from service.compiler.fit.fit_records import Strategy
from tests.service.compiler.fit.data import cancer, cut
from tests.service.compiler.fit.trainer import Trainer


@pytest.mark.parametrize(
    ("estimator", "strategy", "words"),
    [
        (make_pipeline(RobustScaler(), SGDClassifier()), "partial_fit", "robustscaler.* has no partial_fit"),
        (make_pipeline(RobustScaler(), LogisticRegression()), "ensemble", "RobustScaler"),
        (make_pipeline(PolynomialFeatures(), SGDClassifier()), "partial_fit", "PolynomialFeatures"),
        (make_pipeline(SimpleImputer(strategy="median"), SGDClassifier()), "partial_fit", "median"),
        (make_pipeline(OneHotEncoder(min_frequency=3), SGDClassifier()), "partial_fit", "Encoder.*counts"),
        (LogisticRegression(), "partial_fit", "LogisticRegression has no partial_fit"),
        (LinearSVC(), "ensemble", "LinearSVC gives no probabilities"),
        (SGDClassifier(), "ensemble", "SGDClassifier gives no probabilities"),
        (KMeans(), "single", "KMeans is neither a classifier nor a regressor"),
        (IsolationForest(), "ensemble", "IsolationForest is neither"),
        ({"no": "estimator"}, "single", "'dict' and no scikit-learn estimator"),
        (SGDClassifier, "single", "no scikit-learn estimator"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_trained_so_is_refused_by_name(
    tmp_path: Path, estimator: Any, strategy: Strategy, words: str
) -> None:
    with pytest.raises(Refused, match=words):
        Trainer(tmp_path, cut(cancer(), 3)).fit(estimator, strategy)


def test_a_partition_without_a_class_is_told_of_stratified_sampling(tmp_path: Path) -> None:
    table = cancer().sort_values("y", ignore_index=True)
    with pytest.raises(Refused, match=r"no rows of class 'malignant'.*stratified"):
        Trainer(tmp_path, cut(table, 3)).fit(RandomForestClassifier(3), "ensemble")


def test_stratified_sampling_gives_each_partition_every_class(tmp_path: Path) -> None:
    table = cancer().sort_values("y", ignore_index=True)
    trainer = Trainer(tmp_path, cut(table, 3), hands=3, by_class=True)
    assert len(trainer.fit(RandomForestClassifier(3), "ensemble").estimators_) == 9
    assert max(trainer.used) - min(trainer.used) <= 6
