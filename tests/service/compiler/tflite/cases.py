"""All kinds of estimators with a .tflite form, on data of realistic ranges, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn import (
    cluster,
    compose,
    cross_decomposition,
    decomposition,
    discriminant_analysis,
    ensemble,
    feature_selection,
    impute,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    naive_bayes,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)
from sklearn.datasets import make_classification

from registry.rows import Array

FEATURES = 8


@dataclass(frozen=True)
class Data:
    """Rows that float32 represents exactly. `with_missing` has missing values, `counts` small integers."""

    x: Array
    with_missing: Array
    counts: Array
    three: Array  # three classes
    two: Array  # two classes
    names: Array  # classes as text
    value: Array
    positive: Array
    values: Array  # two targets
    labels: Array  # two outputs
    flags: Array  # two outputs, 0 or 1


def data(rows: int, seed: int = 0) -> Data:
    random = np.random.default_rng(seed)
    x, three = make_classification(
        rows, FEATURES, n_informative=6, n_classes=3, random_state=seed, class_sep=0.8, flip_y=0.05
    )
    x = x * 10.0 ** np.linspace(-2, 3, FEATURES) + np.linspace(-5, 5, FEATURES) * 10.0 ** np.linspace(
        -2, 3, FEATURES
    )
    x = x.astype(np.float32).astype(np.float64)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    value = (
        40.0
        + z @ np.linspace(-3, 3, FEATURES)
        + 2 * np.sin(2 * z[:, 0]) * z[:, 3]
        + random.normal(0, 0.3, rows)
    )
    with_missing = np.where(random.random(x.shape) < 0.1, np.nan, x)
    counts = np.clip(np.rint(z * 1.5 + 3), 0, 6)
    two = (value > 40).astype(int)
    values = np.column_stack([value, -0.5 * value + z[:, 1]])
    labels = np.column_stack([three, two])
    flags = np.column_stack([two, three > 0]).astype(int)
    names = np.array(["low", "middle", "high"])[three]
    return Data(x, with_missing, counts, three, two, names, value, np.exp(value / 20), values, labels, flags)


Make = Callable[[Data], tuple[Any, Array, Array | None]]
"""Returns the unfitted model, its training rows and its target."""


def _three_classes(model: Any) -> Make:
    return lambda d: (model, d.x, d.three)


def _two_classes(model: Any) -> Make:
    return lambda d: (model, d.x, d.two)


def _values(model: Any) -> Make:
    return lambda d: (model, d.x, d.value)


def _without_target(model: Any) -> Make:
    return lambda d: (model, d.x, None)


def _on_missing(model: Any) -> Make:
    return lambda d: (model, d.with_missing, d.three)


def _counts(model: Any) -> Make:
    return lambda d: (model, d.counts, d.three)


def _scaled(model: Any) -> Any:
    return pipeline.make_pipeline(preprocessing.StandardScaler(), model)


def _mixed(model: Any) -> Any:
    """Other transformers for other columns, with missing values and small integers."""
    numbers = pipeline.make_pipeline(impute.SimpleImputer(strategy="median"), preprocessing.RobustScaler())
    return pipeline.make_pipeline(
        compose.ColumnTransformer(
            [
                ("numbers", numbers, [4, 0, 2]),
                ("codes", preprocessing.OneHotEncoder(handle_unknown="ignore"), [1, 3]),
            ],
            remainder="passthrough",
        ),
        model,
    )


def _mixed_rows(d: Data) -> Array:
    rows = d.x.copy()
    rows[:, [1, 3]] = d.counts[:, [1, 3]]
    rows[:, [4, 0, 2]] = d.with_missing[:, [4, 0, 2]]
    return rows


R: dict[str, Any] = {"random_state": 0}
forest_c, forest_r = ensemble.RandomForestClassifier, ensemble.RandomForestRegressor
tree_c, tree_r = tree.DecisionTreeClassifier, tree.DecisionTreeRegressor
logistic = linear_model.LogisticRegression

TREES: dict[str, Make] = {
    "DecisionTreeClassifier": _three_classes(tree_c(**R)),
    "DecisionTreeClassifier, missing values": _on_missing(tree_c(max_depth=9, **R)),
    "DecisionTreeClassifier, a single leaf": _three_classes(tree_c(max_depth=1, min_samples_leaf=0.9, **R)),
    "DecisionTreeRegressor": _values(tree_r(max_depth=12, **R)),
    "ExtraTreeClassifier": _three_classes(tree.ExtraTreeClassifier(max_depth=12, **R)),
    "ExtraTreeRegressor": _values(tree.ExtraTreeRegressor(max_depth=12, **R)),
    "RandomForestClassifier, 100 trees of depth 10": _three_classes(forest_c(100, max_depth=10, **R)),
    "RandomForestClassifier, 20 full trees": _three_classes(forest_c(20, **R)),
    "RandomForestClassifier, 2 trees (many ties)": _two_classes(forest_c(2, **R)),
    "RandomForestClassifier, missing values": _on_missing(forest_c(20, max_depth=10, **R)),
    "RandomForestClassifier, classes are text": lambda d: (forest_c(10, max_depth=8, **R), d.x, d.names),
    "RandomForestClassifier, two outputs": lambda d: (forest_c(20, max_depth=8, **R), d.x, d.labels),
    "RandomForestRegressor": _values(forest_r(50, max_depth=10, **R)),
    "RandomForestRegressor, two targets": lambda d: (forest_r(20, max_depth=8, **R), d.x, d.values),
    "ExtraTreesClassifier": _three_classes(ensemble.ExtraTreesClassifier(50, max_depth=10, **R)),
    "ExtraTreesRegressor": _values(ensemble.ExtraTreesRegressor(50, max_depth=10, **R)),
    "BaggingClassifier of trees": _three_classes(
        ensemble.BaggingClassifier(tree_c(max_depth=8), 20, max_features=0.7, **R)
    ),
    "BaggingRegressor of trees": _values(
        ensemble.BaggingRegressor(tree_r(max_depth=8), 20, max_features=0.7, **R)
    ),
    "GradientBoostingClassifier": _three_classes(ensemble.GradientBoostingClassifier(n_estimators=50, **R)),
    "GradientBoostingClassifier, two classes": _two_classes(ensemble.GradientBoostingClassifier(**R)),
    "GradientBoostingClassifier, exponential": _two_classes(
        ensemble.GradientBoostingClassifier(n_estimators=50, loss="exponential", **R)
    ),
    "GradientBoostingRegressor": _values(ensemble.GradientBoostingRegressor(loss="huber", **R)),
    "HistGradientBoostingClassifier": _on_missing(ensemble.HistGradientBoostingClassifier(max_iter=50, **R)),
    "HistGradientBoostingClassifier, two classes": lambda d: (
        ensemble.HistGradientBoostingClassifier(**R),
        d.with_missing,
        d.two,
    ),
    "HistGradientBoostingRegressor": lambda d: (
        ensemble.HistGradientBoostingRegressor(**R),
        d.with_missing,
        d.value,
    ),
    "HistGradientBoostingRegressor, poisson": lambda d: (
        ensemble.HistGradientBoostingRegressor(loss="poisson", max_iter=50, **R),
        d.x,
        d.positive,
    ),
    "IsolationForest": _without_target(ensemble.IsolationForest(**R)),
    "IsolationForest, contamination": _without_target(
        ensemble.IsolationForest(contamination=0.1, max_features=0.8, **R)
    ),
    "AdaBoostClassifier": _three_classes(
        ensemble.AdaBoostClassifier(tree_c(max_depth=3), n_estimators=50, **R)
    ),
    "AdaBoostClassifier, two classes": _two_classes(ensemble.AdaBoostClassifier(n_estimators=50, **R)),
    "StandardScaler + RandomForestClassifier": _three_classes(_scaled(forest_c(50, max_depth=10, **R))),
    "MinMaxScaler + GradientBoostingRegressor": _values(
        pipeline.make_pipeline(preprocessing.MinMaxScaler(clip=True), ensemble.GradientBoostingRegressor(**R))
    ),
    "RobustScaler + HistGradientBoostingClassifier": _three_classes(
        pipeline.make_pipeline(
            preprocessing.RobustScaler(), ensemble.HistGradientBoostingClassifier(max_iter=50, **R)
        )
    ),
    "SimpleImputer + MaxAbsScaler + ExtraTreesClassifier": _on_missing(
        pipeline.make_pipeline(
            impute.SimpleImputer(),
            preprocessing.MaxAbsScaler(),
            ensemble.ExtraTreesClassifier(50, max_depth=10, **R),
        )
    ),
    "ColumnTransformer + RandomForestClassifier": lambda d: (
        _mixed(forest_c(50, max_depth=10, **R)),
        _mixed_rows(d),
        d.three,
    ),
    "OrdinalEncoder + RandomForestClassifier": _counts(
        pipeline.make_pipeline(preprocessing.OrdinalEncoder(), forest_c(20, max_depth=8, **R))
    ),
    "GridSearchCV of RandomForestClassifier": _three_classes(
        model_selection.GridSearchCV(forest_c(10, max_depth=6, **R), {"max_features": [2, 4]}, cv=2)
    ),
    "MultiOutputClassifier of trees": lambda d: (
        multioutput.MultiOutputClassifier(tree_c(max_depth=8, **R)),
        d.x,
        d.labels,
    ),
    "VotingClassifier, hard, of trees": _three_classes(
        ensemble.VotingClassifier([(f"t{i}", tree_c(max_depth=5 + i, random_state=i)) for i in range(5)])
    ),
}
"""Tree ensembles: the labels of the .tflite must equal the estimator's on every row."""

LINEAR: dict[str, Make] = {
    "LogisticRegression": _three_classes(_scaled(logistic())),
    "LogisticRegression, two classes": _two_classes(_scaled(logistic())),
    "LogisticRegression, unscaled": _two_classes(logistic(max_iter=2000)),
    "LinearDiscriminantAnalysis": _three_classes(discriminant_analysis.LinearDiscriminantAnalysis()),
    "RidgeClassifier": _three_classes(linear_model.RidgeClassifier()),
    "RidgeClassifier, several outputs": lambda d: (linear_model.RidgeClassifier(), d.x, d.flags),
    "SGDClassifier, log_loss": _three_classes(_scaled(linear_model.SGDClassifier(loss="log_loss", **R))),
    "SGDClassifier, modified_huber": _three_classes(
        _scaled(linear_model.SGDClassifier(loss="modified_huber", **R))
    ),
    "SGDClassifier, hinge": _two_classes(_scaled(linear_model.SGDClassifier(**R))),
    "Perceptron": _three_classes(_scaled(linear_model.Perceptron(**R))),
    "LinearSVC": _three_classes(_scaled(svm.LinearSVC(**R))),
    "LinearRegression": _values(linear_model.LinearRegression()),
    "LinearRegression, two targets": lambda d: (linear_model.LinearRegression(), d.x, d.values),
    "Ridge": _values(_scaled(linear_model.Ridge())),
    "Lasso": _values(_scaled(linear_model.Lasso())),
    "ElasticNet": _values(_scaled(linear_model.ElasticNet())),
    "BayesianRidge": _values(linear_model.BayesianRidge()),
    "HuberRegressor": _values(_scaled(linear_model.HuberRegressor())),
    "SGDRegressor": _values(_scaled(linear_model.SGDRegressor(**R))),
    "LinearSVR": _values(_scaled(svm.LinearSVR(**R))),
    "PoissonRegressor": lambda d: (_scaled(linear_model.PoissonRegressor()), d.x, d.positive),
    "GammaRegressor": lambda d: (_scaled(linear_model.GammaRegressor()), d.x, d.positive),
    "PLSRegression": _values(cross_decomposition.PLSRegression()),
    "MLPClassifier": _three_classes(_scaled(neural_network.MLPClassifier((32, 16), max_iter=60, **R))),
    "MLPClassifier, two classes, tanh": _two_classes(
        _scaled(neural_network.MLPClassifier((16,), activation="tanh", max_iter=60, **R))
    ),
    "MLPClassifier, several outputs": lambda d: (
        _scaled(neural_network.MLPClassifier((16,), activation="logistic", max_iter=60, **R)),
        d.x,
        d.flags,
    ),
    "MLPRegressor": _values(
        _scaled(neural_network.MLPRegressor(hidden_layer_sizes=(32, 16), max_iter=60, **R))
    ),
    "GaussianNB": _three_classes(naive_bayes.GaussianNB()),
    "MultinomialNB": _counts(naive_bayes.MultinomialNB()),
    "ComplementNB": _counts(naive_bayes.ComplementNB()),
    "BernoulliNB": _three_classes(naive_bayes.BernoulliNB(binarize=0.1)),
    "OneVsRestClassifier": _three_classes(_scaled(multiclass.OneVsRestClassifier(logistic()))),
    "BaggingClassifier of LogisticRegression": _three_classes(
        _scaled(ensemble.BaggingClassifier(logistic(), 5, **R))
    ),
    "MultiOutputRegressor": lambda d: (
        multioutput.MultiOutputRegressor(ensemble.GradientBoostingRegressor(n_estimators=20, **R)),
        d.x,
        d.values,
    ),
    "VotingClassifier, soft": _three_classes(
        ensemble.VotingClassifier(
            [("line", _scaled(logistic())), ("forest", forest_c(10, max_depth=6, **R))],
            voting="soft",
            weights=[1, 2],
        )
    ),
    "VotingRegressor": _values(
        ensemble.VotingRegressor([("line", linear_model.Ridge()), ("forest", forest_r(10, max_depth=6, **R))])
    ),
    "StackingClassifier": _three_classes(
        ensemble.StackingClassifier(
            [("line", _scaled(logistic())), ("forest", forest_c(10, max_depth=6, **R))],
            passthrough=True,
            final_estimator=tree_c(max_depth=6, **R),
            cv=2,
        )
    ),
    "StackingClassifier, two classes": _two_classes(
        ensemble.StackingClassifier(
            [("svm", _scaled(svm.LinearSVC(**R))), ("tree", tree_c(max_depth=6, **R))], cv=2
        )
    ),
    "StackingRegressor": _values(
        ensemble.StackingRegressor([("line", linear_model.Ridge()), ("tree", tree_r(max_depth=6, **R))], cv=2)
    ),
    "ColumnTransformer + LogisticRegression": lambda d: (
        _mixed(logistic(max_iter=500)),
        _mixed_rows(d),
        d.three,
    ),
    "FeatureUnion + LogisticRegression": _three_classes(
        _scaled(
            pipeline.make_pipeline(
                pipeline.FeatureUnion(
                    [("pca", decomposition.PCA(3, whiten=True)), ("same", "passthrough")],
                    transformer_weights={"pca": 2.0},
                ),
                logistic(max_iter=500),
            )
        )
    ),
    "PolynomialFeatures + Ridge": _values(
        _scaled(pipeline.make_pipeline(preprocessing.PolynomialFeatures(3), linear_model.Ridge()))
    ),
    "Normalizer + LogisticRegression": _three_classes(
        pipeline.make_pipeline(preprocessing.Normalizer(), logistic(max_iter=500))
    ),
    "PCA + RandomForestClassifier": _three_classes(
        _scaled(pipeline.make_pipeline(decomposition.PCA(5), forest_c(20, max_depth=8, **R)))
    ),
    "SelectKBest + LogisticRegression": _three_classes(
        _scaled(pipeline.make_pipeline(feature_selection.SelectKBest(k=4), logistic()))
    ),
    "KMeans": _without_target(_scaled(cluster.KMeans(5, n_init=2, **R))),
}
"""Estimators whose .tflite computes in float32, not in float64: answers are close, not equal."""

TRANSFORMS: dict[str, Make] = {
    "StandardScaler": _without_target(preprocessing.StandardScaler()),
    "MinMaxScaler": _without_target(preprocessing.MinMaxScaler((-1, 2), clip=True)),
    "MaxAbsScaler": _without_target(preprocessing.MaxAbsScaler()),
    "RobustScaler": _without_target(preprocessing.RobustScaler(unit_variance=True)),
    "Normalizer, l1": _without_target(preprocessing.Normalizer("l1")),
    "Normalizer, max": _without_target(preprocessing.Normalizer("max")),
    "Binarizer": _without_target(preprocessing.Binarizer(threshold=0.1)),
    "SimpleImputer, indicator": lambda d: (impute.SimpleImputer(add_indicator=True), d.with_missing, None),
    "SimpleImputer, indicator of nothing": lambda d: (
        impute.SimpleImputer(add_indicator=True),
        d.counts,
        None,
    ),
    "SimpleImputer, pd.NA": lambda d: (impute.SimpleImputer(missing_values=pd.NA), d.with_missing, None),
    "SimpleImputer, 0 is missing": lambda d: (impute.SimpleImputer(missing_values=0), d.counts, None),
    "PCA": _without_target(decomposition.PCA(4)),
    "TruncatedSVD": _without_target(decomposition.TruncatedSVD(4)),
    "PolynomialFeatures, interactions": _without_target(
        preprocessing.PolynomialFeatures((2, 3), interaction_only=True, include_bias=False)
    ),
    "OneHotEncoder": lambda d: (
        preprocessing.OneHotEncoder(sparse_output=False, drop="first"),
        d.counts,
        None,
    ),
    "OrdinalEncoder": lambda d: (
        preprocessing.OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-7, encoded_missing_value=-3
        ),
        np.where(np.isnan(d.with_missing), np.nan, d.counts),
        None,
    ),
    "OrdinalEncoder, missing stays missing": lambda d: (
        preprocessing.OrdinalEncoder(),
        np.where(np.isnan(d.with_missing), np.nan, d.counts),
        None,
    ),
    "VarianceThreshold": _without_target(feature_selection.VarianceThreshold(1.0)),
}

ALL: dict[str, Make] = TREES | LINEAR | TRANSFORMS


def fitted(name: str, d: Data) -> tuple[Any, Array]:
    """The fitted model and its training rows."""
    model, rows, target = ALL[name](d)
    return model.fit(rows, target), rows
