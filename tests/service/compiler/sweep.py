"""Every estimator of scikit-learn, fitted on a small dataset, and the table in docs/runtimes.md.

Update the table with `python -m tests.service.compiler.sweep`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators
from threadpoolctl import threadpool_limits

from registry.build_messages import BuildResult
from tests.service.compiler.helpers import build_model

TABLE = Path(__file__).parents[3] / "docs" / "runtimes.md"
HEADER = "| estimator | runtime | why |\n|---|---|---|\n"
IRIS = load_iris(as_frame=True)
X: pd.DataFrame = IRIS.data
Y = IRIS.target.to_numpy()
REAL = (X.to_numpy() @ np.array([1.0, -2.0, 3.0, 0.5])) + 10.0
TEXTS = pd.DataFrame({"text": ["the cat sat", "a dog ran far", "cat and dog", "far far away"] * 10})
RECORDS = pd.DataFrame(
    {"city": ["Rome", "Oslo", "Lima", "Oslo"] * 10, "degrees": [20.5, 3.25, 15.0, 4.0] * 10}
)
COLOURS = pd.DataFrame({"value": ["red", "green", "blue", "green"] * 10})

logistic = LogisticRegression(max_iter=500)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ClassifierChain": {"estimator": logistic},
    "ColumnTransformer": {"transformers": [("scale", StandardScaler(), [X.columns[0], X.columns[2]])]},
    "FeatureUnion": {"transformer_list": [("scale", StandardScaler()), ("pca", PCA(2))]},
    "FixedThresholdClassifier": {"estimator": logistic},
    "FrozenEstimator": {"estimator": DecisionTreeClassifier(random_state=0).fit(X, Y)},
    "GridSearchCV": {"estimator": Ridge(), "param_grid": {"alpha": [0.1, 1.0]}},
    "MultiOutputClassifier": {"estimator": logistic},
    "MultiOutputRegressor": {"estimator": Ridge()},
    "OneVsOneClassifier": {"estimator": logistic},
    "OneVsRestClassifier": {"estimator": logistic},
    "OutputCodeClassifier": {"estimator": logistic, "random_state": 0},
    "Pipeline": {"steps": [("scale", StandardScaler()), ("classify", logistic)]},
    "RFE": {"estimator": logistic},
    "RFECV": {"estimator": logistic},
    "RandomizedSearchCV": {"estimator": Ridge(), "param_distributions": {"alpha": [0.1, 1.0]}, "n_iter": 2},
    "RegressorChain": {"estimator": Ridge()},
    "SelectFromModel": {"estimator": logistic},
    "SelfTrainingClassifier": {"estimator": logistic},
    "SequentialFeatureSelector": {"estimator": LinearRegression()},
    "SparseCoder": {"dictionary": np.eye(4)},
    "StackingClassifier": {
        "estimators": [("tree", DecisionTreeClassifier(random_state=0)), ("line", logistic)]
    },
    "StackingRegressor": {"estimators": [("ridge", Ridge()), ("line", LinearRegression())]},
    "TunedThresholdClassifierCV": {"estimator": logistic, "thresholds": 10, "cv": 2},
    "VotingClassifier": {
        "estimators": [("tree", DecisionTreeClassifier(random_state=0)), ("line", logistic)]
    },
    "VotingRegressor": {"estimators": [("ridge", Ridge()), ("line", LinearRegression())]},
    # the default number of components is for wide data and more than the four features here
    "GaussianRandomProjection": {"n_components": 2, "random_state": 0},
    "SparseRandomProjection": {"n_components": 2, "random_state": 0},
    "SelectKBest": {"k": 2},
    # with the default tol their answers depend on the rows of a call
    "MiniBatchNMF": {"n_components": 2, "tol": 1e-10, "max_iter": 300},
    "NMF": {"n_components": 2, "tol": 1e-10, "max_iter": 20_000},
    # with the defaults, each of these needs up to two seconds
    "CalibratedClassifierCV": {"cv": 2},
    "DictionaryLearning": {"n_components": 2, "max_iter": 10},
    "FeatureHasher": {"n_features": 64},
    "HashingVectorizer": {"n_features": 64},
    "HistGradientBoostingClassifier": {"max_iter": 20},
    "HistGradientBoostingRegressor": {"max_iter": 20},
    "LatentDirichletAllocation": {"n_components": 2, "max_iter": 2, "max_doc_update_iter": 10},
    "LogisticRegressionCV": {"Cs": 2, "cv": 2, "max_iter": 500},
    "MeanShift": {"bandwidth": 1.0, "bin_seeding": True},
    "MiniBatchDictionaryLearning": {"n_components": 2, "max_iter": 10},
    "TSNE": {"max_iter": 250},
    **{
        name: {"n_estimators": 20}
        for name in (
            *("AdaBoostClassifier", "AdaBoostRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor"),
            *("GradientBoostingClassifier", "GradientBoostingRegressor", "IsolationForest"),
            *("RandomForestClassifier", "RandomForestRegressor", "RandomTreesEmbedding"),
        )
    },
}
"""Arguments that estimators need for this dataset, or to be fitted soon; all others have the defaults."""

TWO_TARGETS = {
    "ClassifierChain": np.column_stack([Y > 0, Y > 1]).astype(int),
    "MultiOutputClassifier": np.column_stack([Y > 0, Y]).astype(int),
    "MultiOutputRegressor": np.column_stack([REAL, -REAL]),
    "RegressorChain": np.column_stack([REAL, -REAL]),
    "MultiTaskElasticNet": np.column_stack([REAL, -REAL]),
    "MultiTaskElasticNetCV": np.column_stack([REAL, -REAL]),
    "MultiTaskLasso": np.column_stack([REAL, -REAL]),
    "MultiTaskLassoCV": np.column_stack([REAL, -REAL]),
    "CCA": np.column_stack([REAL, X.to_numpy()[:, 0]]),
    "PLSCanonical": np.column_stack([REAL, X.to_numpy()[:, 0]]),
    "PLSSVD": np.column_stack([REAL, X.to_numpy()[:, 0]]),
}
NOT_ROWS = {"MultiLabelBinarizer", "PatchExtractor"}
"""Fitted on sets of labels and on images, not on rows of features."""
BINARY = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}
REGRESSION = {"GridSearchCV", "RandomizedSearchCV", "SequentialFeatureSelector", "TransformedTargetRegressor"}


@dataclass
class SweepCase:
    """A fitted estimator, its rows as a frame, and the same rows in the form that its methods take."""

    model: Any
    frame: pd.DataFrame
    rows: Any


@cache
def estimators() -> dict[str, Any]:
    """The classes by name. Searching scikit-learn for them takes long."""
    return dict(all_estimators())


def names() -> list[str]:
    return list(estimators())


def fit(name: str) -> SweepCase:
    """Raises the error of an estimator that cannot be fitted to the dataset."""
    estimator = estimators()[name]
    model = estimator(**ARGUMENTS.get(name, {}))
    if "random_state" in model.get_params() and model.get_params()["random_state"] is None:
        model.set_params(random_state=0)
    if name in ("CountVectorizer", "TfidfVectorizer", "HashingVectorizer"):
        return SweepCase(model.fit(TEXTS["text"]), TEXTS, TEXTS["text"])
    if name in ("DictVectorizer", "FeatureHasher"):
        records = RECORDS.to_dict("records")
        return SweepCase(model.fit(records), RECORDS, records)
    if name in ("LabelEncoder", "LabelBinarizer"):
        return SweepCase(model.fit(COLOURS["value"]), COLOURS, COLOURS["value"])
    if name == "MultiLabelBinarizer":
        return SweepCase(model.fit([("a", "b"), ("c",)]), COLOURS, None)
    if name == "PatchExtractor":
        return SweepCase(model.fit(np.zeros((3, 8, 8))), X, None)
    if name == "IsotonicRegression":
        column = X.iloc[:, :1].set_axis(["x0"], axis=1)
        return SweepCase(model.fit(column.to_numpy(), REAL), column, column.to_numpy())
    if name == "KernelCenterer":
        square = pd.DataFrame(X.to_numpy()[:30] @ X.to_numpy()[:30].T, columns=[f"k{i}" for i in range(30)])
        return SweepCase(model.fit(square), square, square)
    frame: pd.DataFrame = X
    if name == "CategoricalNB":
        frame = X.round().astype(int)
    elif name == "AdditiveChi2Sampler":
        frame = pd.DataFrame(MinMaxScaler().fit_transform(X), columns=X.columns)
    return SweepCase(_fit(model, name, frame), frame, frame)


def _fit(model: Any, name: str, frame: pd.DataFrame) -> Any:
    kind = model.__sklearn_tags__().estimator_type
    if name in TWO_TARGETS:
        return model.fit(frame, TWO_TARGETS[name])
    if name in BINARY:
        return model.fit(frame, (Y > 0).astype(int))
    if kind == "regressor" or name in REGRESSION:
        return model.fit(frame, REAL)
    return model.fit(frame, Y)


def fit_and_build(folder: Path, name: str) -> tuple[SweepCase, BuildResult]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = fit(name)
        return case, build_model(folder, case.model, case.frame)


def row(name: str, result: BuildResult) -> str:
    """The estimator's line of the table, without figures, which differ between machines."""
    if result.state == "rejected":
        return f"| {name} | refused | {result.report['reason'].removeprefix(name).strip()} |"
    reason = (result.runtime_reason or "").split(":")[0].split(" (")[0]
    return f"| {name} | {result.runtime} | {reason} |"


def table(build_estimator: Callable[[str], BuildResult]) -> str:
    """The page with a new table; the text before the table stays."""
    text, header, _ = TABLE.read_text().partition(HEADER)
    return text + header + "".join(f"{row(name, build_estimator(name))}\n" for name in names())


def _build_in_temporary_folder(name: str) -> BuildResult:
    with tempfile.TemporaryDirectory() as folder:
        return fit_and_build(Path(folder), name)[1]


if __name__ == "__main__":
    with threadpool_limits(limits=1):
        TABLE.write_text(table(_build_in_temporary_folder))
