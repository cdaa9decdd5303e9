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
from service.compiler.fit.check import seeded
from tests.service.compiler.fit.data import cancer, cut, diabetes, digits, rows
from tests.service.compiler.fit.trainer import Trainer


@pytest.mark.parametrize(
    ("scaler", "attributes"),
    [
        (StandardScaler(), ("mean_", "var_", "scale_")),
        (MinMaxScaler(), ("data_min_", "data_max_", "scale_")),
        (MaxAbsScaler(), ("max_abs_", "scale_")),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_scaler_fitted_over_partitions_is_the_one_fitted_over_all_rows(
    tmp_path: Path, scaler: Any, attributes: tuple[str, ...]
) -> None:
    table = cancer()
    model = Trainer(tmp_path, cut(table, 5)).fit(make_pipeline(scaler, SGDClassifier()), "partial_fit")
    whole = scaler.fit(rows(table))
    for name in attributes:
        np.testing.assert_allclose(getattr(model[0], name), getattr(whole, name), rtol=1e-12)
    assert list(model.feature_names_in_) == list(rows(table).columns)


def test_partial_fit_goes_over_the_partitions_in_their_order(tmp_path: Path) -> None:
    table = cancer()
    made = Trainer(tmp_path, cut(table, 4)).fit(
        make_pipeline(StandardScaler(), SGDClassifier()), "partial_fit"
    )
    scaler, model = StandardScaler().fit(rows(table)), SGDClassifier(random_state=0)
    for part in cut(table, 4):
        model.partial_fit(
            scaler.transform(rows(part)), part.y.to_numpy(object), classes=["benign", "malignant"]
        )
    np.testing.assert_allclose(made[1].coef_, model.coef_, rtol=1e-9)
    assert list(made.classes_) == ["benign", "malignant"]


def test_several_stages_are_fitted_one_after_the_other(tmp_path: Path) -> None:
    table = digits()
    pipeline = make_pipeline(StandardScaler(), IncrementalPCA(20), SGDClassifier(loss="log_loss"))
    trainer = Trainer(tmp_path, cut(table, 4), validation=0.2)
    model = trainer.fit(pipeline, "partial_fit")
    assert model[1].components_.shape == (20, 64)
    assert model[1].n_samples_seen_ == sum(trainer.used)
    assert abs(model[1].mean_).max() < 1e-9, "it saw scaled rows"
    assert trainer.figures["accuracy"] > 0.8
    assert set(trainer.figures) == {"accuracy", "f1", "log_loss"}


def test_an_unsupervised_step_is_fitted_over_all_partitions(tmp_path: Path) -> None:
    pipeline = make_pipeline(MinMaxScaler(), MiniBatchKMeans(8), LogisticRegression(max_iter=500))
    model = Trainer(tmp_path, cut(cancer(), 3)).fit(pipeline, "ensemble")
    assert model[1].cluster_centers_.shape == (8, 30)
    assert model.score(rows(cancer()), cancer().y) > 0.8


def test_a_merged_forest_is_the_average_of_its_members(tmp_path: Path) -> None:
    table = cancer()
    parts = cut(table, 4)
    forest = Trainer(tmp_path, parts).fit(RandomForestClassifier(7), "ensemble")
    assert len(forest.estimators_) == forest.n_estimators == 28
    members = [
        seeded(RandomForestClassifier(7, random_state=0), n).fit(rows(p), p.y.to_numpy(object))
        for n, p in enumerate(parts)
    ]
    average = np.mean([m.predict_proba(rows(table)) for m in members], axis=0)
    np.testing.assert_allclose(forest.predict_proba(rows(table)), average, rtol=0, atol=1e-12)


def test_a_merged_regression_forest_is_the_average_of_its_members() -> None:
    parts = cut(diabetes(), 3)
    members = [ExtraTreesRegressor(5, random_state=n).fit(rows(p), p.y) for n, p in enumerate(parts)]
    forest = merging.merge(members)
    average = np.mean([m.predict(rows(parts[0])) for m in members], axis=0)
    np.testing.assert_allclose(forest.predict(rows(parts[0])), average, rtol=1e-12)
    assert len(members[0].estimators_) == 5, "members are not changed"


def test_other_classifiers_are_averaged_by_their_probabilities(tmp_path: Path) -> None:
    table = cancer()
    trainer = Trainer(tmp_path, cut(table, 3), validation=0.25)
    model = trainer.fit(
        make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=20)), "ensemble"
    )
    X = model[0].transform(rows(table))
    average = np.mean([m.predict_proba(X) for m in model[1].estimators_], axis=0)
    np.testing.assert_allclose(model.predict_proba(rows(table)), average, atol=1e-12)
    assert set(model.predict(rows(table))) == {"benign", "malignant"}
    assert trainer.figures["roc_auc"] > 0.95


def test_other_regressors_are_averaged(tmp_path: Path) -> None:
    table = diabetes()
    trainer = Trainer(tmp_path, cut(table, 3), labelled=False, validation=0.2)
    model = trainer.fit(HistGradientBoostingRegressor(max_iter=20), "ensemble")
    average = np.mean([m.predict(rows(table)) for m in model.estimators_], axis=0)
    np.testing.assert_allclose(model.predict(rows(table)), average)
    assert set(trainer.figures) == {"r2", "mae", "rmse"}
    assert trainer.figures["r2"] > 0.2


def test_regression_by_parts(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, cut(diabetes(), 4), labelled=False, validation=0.2)
    model = trainer.fit(make_pipeline(StandardScaler(), SGDRegressor()), "partial_fit")
    assert model.predict(rows(diabetes())).shape == (442,)
    assert trainer.figures["rmse"] > 0


def test_single_is_one_fit_over_all_rows(tmp_path: Path) -> None:
    table = cancer()
    pipeline = make_pipeline(RobustScaler(), LogisticRegression())
    model = Trainer(tmp_path, cut(table, 3)).fit(pipeline, "single")
    whole = make_pipeline(RobustScaler(), LogisticRegression()).fit(rows(table), table.y.to_numpy(object))
    np.testing.assert_allclose(model[1].coef_, whole[1].coef_, rtol=1e-9)


def test_trained_twice_it_is_the_same_model(tmp_path: Path) -> None:
    table = digits()
    found = []
    for again in ("one", "two"):
        (tmp_path / again).mkdir()
        trainer = Trainer(tmp_path / again, cut(table, 3), validation=0.2, balanced=True)
        model = trainer.fit(RandomForestClassifier(5), "ensemble")
        found.append((model.predict_proba(rows(table)), trainer.figures))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def mixed(n: int = 600) -> pd.DataFrame:
    random = np.random.default_rng(0)
    age = random.normal(40, 12, n)
    age[::17] = np.nan
    city = random.choice(["Rome", "Oslo", "Bern"], n)
    paid = random.exponential(100, n)
    y = (np.nan_to_num(age, nan=40) > 40) ^ (city == "Oslo")
    return pd.DataFrame({"age": age, "city": city, "paid": paid, "y": np.where(y, "yes", "no")})


def by_columns() -> ColumnTransformer:
    return ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "paid"]),
            ("city", OneHotEncoder(handle_unknown="ignore"), ["city"]),
        ]
    )


def test_numbers_and_strings_with_missing_values_go_through_a_column_transformer(tmp_path: Path) -> None:
    table = mixed().sort_values("city", ignore_index=True)  # no partition has seen every city
    pipeline = make_pipeline(by_columns(), Normalizer(), RandomForestClassifier(10))
    model = Trainer(tmp_path, cut(table, 4), hands=4, by_class=True).fit(pipeline, "ensemble")
    whole = by_columns().fit(rows(table))
    np.testing.assert_allclose(
        model[0].transform(rows(table)), whole.transform(rows(table)), rtol=1e-12, atol=1e-12
    )
    assert list(model[0].get_feature_names_out()) == list(whole.get_feature_names_out())
    assert model.score(rows(table), table.y) > 0.8
