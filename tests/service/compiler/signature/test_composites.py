"""The walker over composites, and the features of a build that depend on it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.ensemble import (
    BaggingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import RFE, SelectFromModel, SelectKBest
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import all_estimators

from registry.rows import Rows
from registry.signature import Input, Scalar
from service.compiler.measure.tree_thresholds import split_points
from service.compiler.signature import composites
from service.compiler.signature.composites import ColumnSource
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.signature.encoders import categories_by_feature, encoded_columns
from service.compiler.tflite.compose import supported_alternatives
from service.compiler.tflite.conversion import convert
from service.runtime.tflite_runtime import TfliteRuntime
from tests.service.compiler import sweep
from tests.service.compiler.helpers import build_model, runtime

GENERATOR = np.random.default_rng(5)
FRAME = pd.DataFrame(GENERATOR.normal(size=(120, 3)), columns=["a", "b", "c"])
LABELS = ((FRAME.a > 0).astype(int) + (FRAME.c > 0.5)).to_numpy()
INPUTS = tuple(Input(name, "float64") for name in FRAME)
CITIES = pd.DataFrame({"city": ["Bern", "Genève", "Zürich"] * 20, "size": [1.0, 2.0, 3.0, 4.0] * 15})
BOUGHT = np.arange(60) % 2

INNER_PARAMETERS = {"estimator", "estimators", "regressor", "transformers", "transformer_list"}
WITHOUT_PARTS = {
    "SelectFromModel",  # the inner estimator does not receive rows after fit
    "SequentialFeatureSelector",
}


def meta_estimators() -> list[str]:
    return [
        name for name, kind in all_estimators() if INNER_PARAMETERS & set(inspect.signature(kind).parameters)
    ]


def tree() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=3, random_state=0)


def encoded(encoder: Any) -> Pipeline:
    columns = ColumnTransformer([("city", encoder, [0])], remainder="passthrough")
    return make_pipeline(columns, LogisticRegression())


def only_size() -> Pipeline:
    return make_pipeline(ColumnTransformer([("size", "passthrough", ["size"])]), LogisticRegression())


def encoder_categories(model: Any, names: list[str]) -> dict[str, tuple[Scalar, ...]]:
    return categories_by_feature(list(encoded_columns(model, len(names))), names)


@pytest.mark.parametrize("name", meta_estimators())
@pytest.mark.filterwarnings("ignore")
def test_every_meta_estimator_of_scikit_learn_has_fitted_parts(name: str) -> None:
    parts = composites.parts(sweep.fit(name).model)
    assert bool(parts) != (name in WITHOUT_PARTS)
    for part in parts:
        assert part.estimator is None or not isinstance(part.estimator, type)


def test_walk_visits_all_estimators_that_receive_rows() -> None:
    scaled = make_pipeline(StandardScaler(), tree())
    voting = VotingClassifier([("scaled", scaled), ("plain", tree()), ("off", "drop")])
    model = GridSearchCV(voting, {}, cv=2).fit(FRAME, LABELS)
    visited = [(type(v.estimator).__name__, v.is_composite) for v in composites.walk(model)]
    assert visited == [
        ("GridSearchCV", True),
        ("VotingClassifier", True),
        ("Pipeline", True),
        ("StandardScaler", False),
        ("DecisionTreeClassifier", False),
        ("DecisionTreeClassifier", False),
    ]


def test_chain_looks_through_nested_pipelines_searches_and_frozen_estimators() -> None:
    before = make_pipeline(SimpleImputer(), StandardScaler())
    search = GridSearchCV(make_pipeline(before, MinMaxScaler(), tree()), {}, cv=2).fit(FRAME, LABELS)
    transformers, last = composites.chain(FrozenEstimator(search))
    names = [type(t).__name__ for t in transformers]
    assert names == ["SimpleImputer", "StandardScaler", "MinMaxScaler"]
    assert isinstance(last, DecisionTreeClassifier)


def test_a_class_outside_scikit_learn_has_the_estimator_in_its_usual_attribute_as_its_part() -> None:
    class Wrapper:
        __module__ = "custom.models"

        def __init__(self, inner: Any) -> None:
            self.best_estimator_ = inner

    [part] = composites.parts(Wrapper(tree()))
    assert isinstance(part.estimator, DecisionTreeClassifier)


@pytest.mark.parametrize(
    ("transformer", "sources"),
    [
        (SelectKBest(k=2), [0, 2]),
        (SelectFromModel(tree()), [0, 2]),
        (RFE(tree(), n_features_to_select=2), [0, 2]),
        (FeatureUnion([("same", "passthrough"), ("imputed", SimpleImputer())]), [0, 1, 2, 0, 1, 2]),
        (FeatureUnion([("same", "passthrough")], transformer_weights={"same": 2.0}), [None, None, None]),
        (
            ColumnTransformer([("two", "passthrough", ["c", "a"])], transformer_weights={"two": 3.0}),
            [None] * 2,
        ),
        (ColumnTransformer([("two", SimpleImputer(), ["c", "a"])], remainder="passthrough"), [2, 0, 1]),
        (FrozenEstimator(SimpleImputer().fit(FRAME)), [0, 1, 2]),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_columns_keep_their_source_through_transformers(transformer: Any, sources: list[int | None]) -> None:
    transformer.fit(FRAME, LABELS)
    after = composites.sources_after(transformer, [ColumnSource(i) for i in range(3)])
    assert [s if s is None else s.feature for s in after] == sources


def scaled_trees() -> dict[str, Any]:
    scaled = make_pipeline(StandardScaler(), tree())
    passthrough = StackingClassifier([("line", LogisticRegression())], tree(), passthrough=True, cv=2)
    return {
        "frozen": FrozenEstimator(tree().fit(FRAME, LABELS)),
        "one-vs-rest": OneVsRestClassifier(scaled),
        "voting": VotingClassifier([("line", LogisticRegression()), ("scaled", scaled)], voting="soft"),
        "calibrated": CalibratedClassifierCV(scaled, cv=2),
        "stacking with passthrough": passthrough,
        "bagging of columns": BaggingClassifier(scaled, 4, max_features=2, random_state=0),
        "union": make_pipeline(FeatureUnion([("s", StandardScaler()), ("p", "passthrough")]), tree()),
        "selection": make_pipeline(SelectKBest(k=2), StandardScaler(), tree()),
    }


@pytest.mark.parametrize("name", scaled_trees())
def test_an_answer_changes_at_each_threshold_found_inside_a_composite(name: str) -> None:
    model = scaled_trees()[name].fit(FRAME, LABELS)
    points = split_points(model, INPUTS).sample(50, np.random.default_rng(0))
    assert len(points)
    for feature, value in points.tolist():
        base = FRAME.copy()
        below, above = base.copy(), base.copy()
        below[base.columns[int(feature)]] = value - 1e-6
        above[base.columns[int(feature)]] = value + 1e-6
        assert (model.predict_proba(below) != model.predict_proba(above)).any(), (feature, value)


def test_thresholds_behind_a_transformed_target_are_those_of_its_regressor() -> None:
    regressor = make_pipeline(StandardScaler(), DecisionTreeRegressor(max_depth=2))
    model = TransformedTargetRegressor(regressor, func=np.log1p, inverse_func=np.expm1)
    model.fit(FRAME, np.exp(FRAME.b))
    points = split_points(model, INPUTS).sample(50, np.random.default_rng(0))
    assert set(points[:, 0]) <= {0.0, 1.0, 2.0}
    assert len(points) == 3


def test_trees_that_only_select_features_have_no_thresholds_to_compare() -> None:
    model = make_pipeline(SelectFromModel(tree()), Ridge()).fit(FRAME, LABELS)
    assert len(split_points(model, INPUTS).threshold) == 0


@pytest.mark.parametrize(
    "model",
    [
        BaggingClassifier(encoded(OneHotEncoder(handle_unknown="ignore")), 3, random_state=0),
        VotingClassifier([("size", only_size()), ("city", encoded(OneHotEncoder()))]),
        CalibratedClassifierCV(encoded(OrdinalEncoder()), cv=2),
        OneVsRestClassifier(encoded(OneHotEncoder())),
    ],
    ids=lambda model: type(model).__name__,
)
def test_encoders_inside_a_composite_name_the_categories(model: Any) -> None:
    model.fit(CITIES, BOUGHT)
    assert encoder_categories(model, list(CITIES)) == {"city": ("Bern", "Genève", "Zürich")}


def vote_of_encoders(*encoders: Any) -> VotingClassifier:
    members = [(f"encoder{number}", encoded(encoder)) for number, encoder in enumerate(encoders)]
    return VotingClassifier(members).fit(CITIES, BOUGHT)


def test_categories_that_one_encoder_rejects_are_left_out() -> None:
    cities = ["Bern", "Genève", "Paris", "Zürich"]
    model = vote_of_encoders(OneHotEncoder(categories=[cities]), OneHotEncoder())
    assert encoder_categories(model, list(CITIES)) == {"city": ("Bern", "Genève", "Zürich")}


@pytest.mark.parametrize("strict", [True, False])
def test_categories_that_only_some_encoders_were_fitted_on_are_listed_if_all_accept_them(
    tmp_path: Path, strict: bool
) -> None:
    two_cities = OneHotEncoder(categories=[["Bern", "Zürich"]], handle_unknown="ignore")
    three_cities = OneHotEncoder(handle_unknown="error" if strict else "ignore")
    model = vote_of_encoders(two_cities, three_cities)
    built = build_model(tmp_path, model, CITIES)
    assert built.signature is not None
    city = built.signature.inputs[0]
    assert (set(city.categories or ()), city.closed) == ({"Bern", "Genève", "Zürich"}, strict)


def test_scaled_values_are_not_the_categories_of_a_feature() -> None:
    model = make_pipeline(StandardScaler(), OrdinalEncoder(), LogisticRegression())
    model.fit(CITIES[["size"]], BOUGHT)
    assert encoder_categories(model, ["size"]) == {}


def test_a_vote_of_text_classifiers_takes_one_string(tmp_path: Path) -> None:
    texts = ["good film", "bad film", "very good", "very bad"] * 5
    members = [
        (name, make_pipeline(TfidfVectorizer(), LogisticRegression(C=c))) for name, c in (("a", 1), ("b", 9))
    ]
    model = VotingClassifier(members, voting="soft").fit(texts, [1, 0, 1, 0] * 5)
    built = build_model(tmp_path, model)
    assert built.state == "ready", built.report
    assert built.signature is not None
    assert [(i.name, i.dtype) for i in built.signature.inputs] == [("text", "string")]
    answered = runtime(tmp_path, built).run(Rows(columns=(np.array(["good", "bad"], dtype=object),)))
    assert answered["label"].tolist() == [1, 0]


def test_a_search_over_a_soft_vote_converts_to_onnx(tmp_path: Path) -> None:
    members = [("tree", tree()), ("line", LogisticRegression())]
    search = GridSearchCV(VotingClassifier(members, voting="soft"), {}, cv=2).fit(FRAME, LABELS)
    built = build_model(tmp_path, search, FRAME)
    assert built.runtime == "onnx", built.runtime_reason


@pytest.mark.parametrize("wrap", [FrozenEstimator, lambda model: make_pipeline("passthrough", model)])
def test_a_forest_inside_a_wrapper_gets_its_table_of_nodes(tmp_path: Path, wrap: Any) -> None:
    scaled = make_pipeline(make_pipeline(SimpleImputer(), StandardScaler()), RandomForestRegressor(3))
    built = build_model(tmp_path, wrap(scaled.fit(FRAME, FRAME.a)), FRAME)
    assert built.forest == "forest.nodes", built.report["forest"]


def test_a_classifier_in_a_frozen_estimator_keeps_its_labels(tmp_path: Path) -> None:
    model = FrozenEstimator(RandomForestClassifier(5, random_state=0).fit(FRAME, LABELS))
    built = build_model(tmp_path, model, FRAME)
    answered = runtime(tmp_path, built).run(Rows(matrix=FRAME.to_numpy()))
    assert answered["label"].tolist() == model.predict(FRAME).tolist()


def self_trained(model: Any) -> SelfTrainingClassifier:
    partly_labelled = np.where(np.arange(len(LABELS)) % 5 == 0, -1, LABELS)
    return SelfTrainingClassifier(model).fit(FRAME, partly_labelled)


@pytest.mark.parametrize(
    "wrap",
    [FrozenEstimator, self_trained],
    ids=["frozen", "self-training"],
)
def test_a_wrapper_with_the_answers_of_its_inner_estimator_converts_to_tflite(
    tmp_path: Path, wrap: Any
) -> None:
    model = wrap(LogisticRegression().fit(FRAME, LABELS))
    signature = describe(model, None, Corrections()).signature
    file = tmp_path / "model.tflite"
    file.write_bytes(convert(model, signature))
    answers = TfliteRuntime(file, signature).run(Rows(matrix=FRAME.to_numpy()))
    assert answers["label"].tolist() == model.predict(FRAME).tolist()


def test_a_refusal_lists_the_wrappers_that_are_converted() -> None:
    searches = {"GridSearchCV", "RandomizedSearchCV"}
    assert {"FrozenEstimator", *searches} <= set(supported_alternatives(StandardScaler()))
    assert "SelfTrainingClassifier" in supported_alternatives(LogisticRegression())
    assert "RANSACRegressor" in supported_alternatives(Ridge())
