from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import IncrementalPCA
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    RobustScaler,
    StandardScaler,
)

from service.compiler.fit import merging
from service.compiler.fit.training_plan import set_seeds
from tests.service.compiler.fit.datasets import cancer, diabetes, digits, split_frame, without_target
from tests.service.compiler.fit.in_process_training import TrainingRun


@pytest.mark.parametrize(
    ("scaler", "attributes"),
    [
        (StandardScaler(), ("mean_", "var_", "scale_")),
        (MinMaxScaler(), ("data_min_", "data_max_", "scale_")),
        (MaxAbsScaler(), ("max_abs_", "scale_")),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_scaler_fitted_over_partitions_equals_one_fitted_over_all_rows(
    tmp_path: Path, scaler: Any, attributes: tuple[str, ...]
) -> None:
    table = cancer()
    model = TrainingRun(tmp_path, split_frame(table, 5)).fit(
        make_pipeline(scaler, SGDClassifier()), "partial_fit"
    )
    expected = scaler.fit(without_target(table))
    for name in attributes:
        np.testing.assert_allclose(getattr(model[0], name), getattr(expected, name), rtol=1e-12)
    assert list(model.feature_names_in_) == list(without_target(table).columns)


def test_partial_fit_receives_the_partitions_in_their_order(tmp_path: Path) -> None:
    table = cancer()
    pipeline = TrainingRun(tmp_path, split_frame(table, 4)).fit(
        make_pipeline(StandardScaler(), SGDClassifier()), "partial_fit"
    )
    scaler, model = StandardScaler().fit(without_target(table)), SGDClassifier(random_state=0)
    for part in split_frame(table, 4):
        model.partial_fit(
            scaler.transform(without_target(part)), part.y.to_numpy(object), classes=["benign", "malignant"]
        )
    np.testing.assert_allclose(pipeline[1].coef_, model.coef_, rtol=1e-9)
    assert list(pipeline.classes_) == ["benign", "malignant"]


def test_transformers_are_fitted_one_after_the_other(tmp_path: Path) -> None:
    table = digits()
    pipeline = make_pipeline(StandardScaler(), IncrementalPCA(20), SGDClassifier(loss="log_loss"))
    run = TrainingRun(tmp_path, split_frame(table, 4), validation=0.2)
    model = run.fit(pipeline, "partial_fit")
    assert model[1].components_.shape == (20, 64)
    assert model[1].n_samples_seen_ == sum(run.fitted_rows)
    assert abs(model[1].mean_).max() < 1e-9, "it was fitted on scaled rows"
    assert run.metrics["accuracy"] > 0.8
    assert set(run.metrics) == {"accuracy", "f1", "log_loss"}


def test_an_unsupervised_step_is_fitted_over_all_partitions(tmp_path: Path) -> None:
    pipeline = make_pipeline(MinMaxScaler(), MiniBatchKMeans(8), LogisticRegression(max_iter=500))
    model = TrainingRun(tmp_path, split_frame(cancer(), 3)).fit(pipeline, "ensemble")
    assert model[1].cluster_centers_.shape == (8, 30)
    assert model.score(without_target(cancer()), cancer().y) > 0.8


def test_a_merged_forest_is_the_average_of_its_members(tmp_path: Path) -> None:
    table = cancer()
    parts = split_frame(table, 4)
    forest = TrainingRun(tmp_path, parts).fit(RandomForestClassifier(7), "ensemble")
    assert len(forest.estimators_) == forest.n_estimators == 28
    members = [
        set_seeds(RandomForestClassifier(7, random_state=0), n).fit(without_target(p), p.y.to_numpy(object))
        for n, p in enumerate(parts)
    ]
    average = np.mean([m.predict_proba(without_target(table)) for m in members], axis=0)
    np.testing.assert_allclose(forest.predict_proba(without_target(table)), average, rtol=0, atol=1e-12)


def test_a_merged_regression_forest_is_the_average_of_its_members() -> None:
    parts = split_frame(diabetes(), 3)
    members = [
        ExtraTreesRegressor(5, random_state=n).fit(without_target(p), p.y) for n, p in enumerate(parts)
    ]
    forest = merging.merge(members)
    average = np.mean([m.predict(without_target(parts[0])) for m in members], axis=0)
    np.testing.assert_allclose(forest.predict(without_target(parts[0])), average, rtol=1e-12)
    assert len(members[0].estimators_) == 5, "members are not changed"


def test_probabilities_of_other_classifiers_are_averaged(tmp_path: Path) -> None:
    table = cancer()
    run = TrainingRun(tmp_path, split_frame(table, 3), validation=0.25)
    model = run.fit(make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=20)), "ensemble")
    X = model[0].transform(without_target(table))
    average = np.mean([m.predict_proba(X) for m in model[1].estimators_], axis=0)
    np.testing.assert_allclose(model.predict_proba(without_target(table)), average, atol=1e-12)
    assert set(model.predict(without_target(table))) == {"benign", "malignant"}
    assert run.metrics["roc_auc"] > 0.95


def test_predictions_of_other_regressors_are_averaged(tmp_path: Path) -> None:
    table = diabetes()
    run = TrainingRun(tmp_path, split_frame(table, 3), labelled=False, validation=0.2)
    model = run.fit(HistGradientBoostingRegressor(max_iter=20), "ensemble")
    average = np.mean([m.predict(without_target(table)) for m in model.estimators_], axis=0)
    np.testing.assert_allclose(model.predict(without_target(table)), average)
    assert set(run.metrics) == {"r2", "mae", "rmse"}
    assert run.metrics["r2"] > 0.2


def test_partial_fit_trains_a_regressor(tmp_path: Path) -> None:
    run = TrainingRun(tmp_path, split_frame(diabetes(), 4), labelled=False, validation=0.2)
    model = run.fit(make_pipeline(StandardScaler(), SGDRegressor()), "partial_fit")
    assert model.predict(without_target(diabetes())).shape == (442,)
    assert run.metrics["rmse"] > 0


def test_strategy_single_fits_once_over_all_rows(tmp_path: Path) -> None:
    table = cancer()
    pipeline = make_pipeline(RobustScaler(), LogisticRegression())
    model = TrainingRun(tmp_path, split_frame(table, 3)).fit(pipeline, "single")
    expected = make_pipeline(RobustScaler(), LogisticRegression()).fit(
        without_target(table), table.y.to_numpy(object)
    )
    np.testing.assert_allclose(model[1].coef_, expected[1].coef_, rtol=1e-9)


def test_two_trainings_give_the_same_model(tmp_path: Path) -> None:
    table = digits()
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run = TrainingRun(tmp_path / name, split_frame(table, 3), validation=0.2, balanced=True)
        model = run.fit(RandomForestClassifier(5), "ensemble")
        results.append((model.predict_proba(without_target(table)), run.metrics))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def mixed_table(n: int = 600) -> pd.DataFrame:
    random = np.random.default_rng(0)
    age = random.normal(40, 12, n)
    age[::17] = np.nan
    city = random.choice(["Rome", "Oslo", "Bern"], n)
    income = random.exponential(100, n)
    y = (np.nan_to_num(age, nan=40) > 40) ^ (city == "Oslo")
    return pd.DataFrame({"age": age, "city": city, "income": income, "y": np.where(y, "yes", "no")})


def column_transformer() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
        ]
    )


def test_a_column_transformer_takes_numbers_and_strings_with_missing_values(tmp_path: Path) -> None:
    table = mixed_table().sort_values("city", ignore_index=True)  # no partition holds every city
    pipeline = make_pipeline(column_transformer(), Normalizer(), RandomForestClassifier(10))
    run = TrainingRun(tmp_path, split_frame(table, 4), training_slots=4, stratified=True)
    model = run.fit(pipeline, "ensemble")
    expected = column_transformer().fit(without_target(table))
    np.testing.assert_allclose(
        model[0].transform(without_target(table)),
        expected.transform(without_target(table)),
        rtol=1e-12,
        atol=1e-12,
    )
    assert list(model[0].get_feature_names_out()) == list(expected.get_feature_names_out())
    assert model.score(without_target(table), table.y) > 0.8
