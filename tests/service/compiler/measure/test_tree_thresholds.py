"""Thresholds of trees behind transformers, in the features' own units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectFromModel
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)
from sklearn.tree import DecisionTreeClassifier

from registry.signature import Input
from service.compiler.example import read
from service.compiler.measure import comparison_rows, tree_thresholds
from service.compiler.signature.composites import ColumnSource
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from tests.service.compiler.helpers import build_model, runtime

RANDOM = np.random.default_rng(3)
FRAME = pd.DataFrame(
    {
        "port": RANDOM.choice(["Genova", "Le Havre", "Gdańsk"], 200),
        "age": np.round(RANDOM.uniform(1, 80, 200), 1),
        "fare": RANDOM.gamma(2.0, 20.0, 200),
        "tax": RANDOM.gamma(2.0, 20.0, 200),
    }
)
FRAME.loc[::9, "age"] = np.nan
BOUGHT = np.where((FRAME.fare > 35) ^ (FRAME.age.fillna(30) > 40), "yes", "no")
FOREST = RandomForestClassifier(10, random_state=0)


def columns(*transformers: Any, rest: Any = "drop") -> ColumnTransformer:
    return ColumnTransformer([("port", OneHotEncoder(), ["port"]), *transformers], remainder=rest)


def forest(before: Any, trees: Any = FOREST) -> Pipeline:
    return make_pipeline(before, clone(trees)).fit(FRAME, BOUGHT)


def numbers(*steps: Any) -> tuple[str, Any, list[str]]:
    return ("numbers", make_pipeline(SimpleImputer(), *steps), ["fare", "age"])


def kinds_of(model: Any, folder: Path) -> tuple[dict[str, Any], list[str]]:
    FRAME.to_csv(folder / "example.csv", index=False)
    described = describe(model, read(str(folder / "example.csv"), "text/csv", None), Corrections.read(None))
    kinds = comparison_rows.rows_by_kind(model, described.signature, described.rows)
    return kinds, [i.name for i in described.signature.inputs]


@pytest.mark.parametrize(
    ("model", "reached"),
    [
        (forest(columns(numbers())), {"age", "fare"}),
        (forest(columns(numbers(StandardScaler()), rest="passthrough")), {"age", "fare", "tax"}),
        (forest(columns(numbers(PCA(2)), rest="passthrough")), {"tax"}),
        (forest(columns(numbers(FunctionTransformer(np.log1p, np.expm1)))), {"age", "fare"}),
        (forest(columns(numbers(FunctionTransformer(np.log1p)))), set()),
        (forest(columns(("gaps", SimpleImputer(add_indicator=True), ["age"]))), {"age"}),
        (
            GridSearchCV(forest(columns(numbers(StandardScaler()))), {}, cv=2).fit(FRAME, BOUGHT),
            {"age", "fare"},
        ),
        (
            forest(columns(numbers(StandardScaler())), HistGradientBoostingClassifier(max_iter=5)),
            {"age", "fare"},
        ),
    ],
    ids=[
        "imputer",
        "scaler",
        "pca and a plain column",
        "function with an inverse",
        "function without an inverse",
        "indicator",
        "search",
        "boosting",
    ],
)
@pytest.mark.filterwarnings("ignore:Found unknown categories")
def test_threshold_rows_differ_from_example_rows_in_one_split_feature(
    model: Any, reached: set[str], tmp_path: Path
) -> None:
    kinds, names = kinds_of(model, tmp_path)
    assert ("threshold" in kinds) == bool(reached)
    if not reached:
        return
    rows = kinds["threshold"].columns
    assert rows is not None
    example_values = {n: set(FRAME[n].dropna()) for n in names}
    is_new = {
        n: np.array([v == v and v not in example_values[n] for v in column.tolist()])
        for n, column in zip(names, rows, strict=True)
    }
    assert {n for n, mask in is_new.items() if mask.any()} == reached
    assert (np.sum(list(is_new.values()), axis=0) <= 1).all()


def test_the_answer_of_a_stump_changes_at_its_threshold(tmp_path: Path) -> None:
    stump = forest(
        columns(numbers(StandardScaler())), RandomForestClassifier(1, max_depth=1, max_features=None)
    )
    signature = build_model(tmp_path, stump, FRAME).signature
    assert signature is not None
    points = tree_thresholds.split_points(stump, signature.inputs)
    [(feature, value)] = points.sample(10, RANDOM).tolist()
    name = signature.inputs[int(feature)].name
    neighbours = FRAME.iloc[[1, 1]].assign(**{name: [value - 1e-4, value + 1e-4]})
    below, above = stump.predict_proba(neighbours)
    assert below[0] != above[0]


def test_the_build_of_a_mixed_pipeline_compares_thresholds(tmp_path: Path) -> None:
    built = build_model(tmp_path, forest(columns(numbers(StandardScaler()), rest="passthrough")), FRAME)
    runtime(tmp_path, built)
    assert built.runtime == "onnx", built.runtime_reason
    assert built.report["parity"]["rows"]["threshold"] > 100
    assert "untried" not in built.report["parity"]


def test_the_report_states_that_thresholds_on_encoded_strings_were_not_compared(
    tmp_path: Path,
) -> None:
    model = make_pipeline(OrdinalEncoder(), RandomForestClassifier(5, random_state=0))
    built = build_model(tmp_path, model.fit(FRAME[["port"]], BOUGHT), FRAME[["port"]])
    assert built.runtime == "onnx", built.runtime_reason
    assert built.report["parity"]["untried"].startswith("thresholds were not tried")


def test_histogram_boosting_with_categories_keeps_the_source_of_its_numbers() -> None:
    frame = FRAME[["fare", "port"]].assign(port=FRAME.port.astype("category"))
    model = HistGradientBoostingClassifier(max_iter=3, categorical_features="from_dtype").fit(frame, BOUGHT)
    inputs = (Input(name="fare", dtype="float64"), Input(name="port", dtype="string"))
    points = tree_thresholds.split_points(model, inputs)
    assert points.sources == [ColumnSource(0)]
    assert len(points.threshold) > 0


def test_a_damaged_transformer_gives_no_thresholds_and_raises_nothing() -> None:
    model = forest(columns(numbers(StandardScaler())))
    inputs = tuple(Input(name=n, dtype="string" if n == "port" else "float64") for n in FRAME)
    scaler: BaseEstimator = model[0].named_transformers_["numbers"][-1]
    del scaler.scale_
    points = tree_thresholds.split_points(model, inputs)
    assert len(points.threshold) > 0
    assert len(points.sample(100, RANDOM)) == 0
    del model[0].output_indices_
    assert tree_thresholds.split_points(model, inputs).sources == []


NUMBERS = np.random.default_rng(0).normal(size=(60, 2))
ABOVE = (NUMBERS[:, 0] > 0.2).astype(int)
TWO_FLOATS = (Input("a", "float64"), Input("b", "float64"))


def stump() -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=1, random_state=0)


def tree_of(model: Any) -> Any:
    return model.fit(NUMBERS, ABOVE).tree_


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"inner": inner},
        lambda inner: np.array([inner, None], dtype=object),
    ],
    ids=["list", "tuple", "dict", "object array"],
)
@pytest.mark.parametrize(("levels", "found"), [(1, True), (15, True), (16, True), (17, False), (18, False)])
def test_trees_are_found_up_to_16_levels_deep(wrap: Any, levels: int, found: bool) -> None:
    value = tree_of(stump())
    for _ in range(levels):
        value = wrap(value)
    assert (len(tree_thresholds.tree_splits(value)) == 1) is found


def test_the_tree_of_an_estimator_is_one_level_below_it() -> None:
    value: Any = stump().fit(NUMBERS, ABOVE)
    for _ in range(15):
        value = [value]
    assert len(tree_thresholds.tree_splits(value)) == 1
    assert len(tree_thresholds.tree_splits([value])) == 0


def test_the_trees_of_a_forest_are_four_levels_below_it() -> None:
    """Its attributes, the list of its estimators, one of them, and its tree."""
    value: Any = RandomForestClassifier(1, max_depth=1, random_state=0).fit(NUMBERS, ABOVE)
    for _ in range(12):
        value = [value]
    assert len(tree_thresholds.tree_splits(value)) == 1
    assert len(tree_thresholds.tree_splits([value])) == 0


def test_splits_are_the_inner_nodes_and_each_is_listed_once() -> None:
    model = DecisionTreeClassifier(random_state=0).fit(NUMBERS, NUMBERS[:, 1] > NUMBERS[:, 0])
    inner = model.tree_.children_left >= 0
    expected = {
        (int(f), t) for f, t in zip(model.tree_.feature, model.tree_.threshold, strict=True) if f >= 0
    }
    splits = tree_thresholds.tree_splits([model, model.tree_, DecisionTreeClassifier()])
    assert {(int(f), t) for f, t in splits.tolist()} == expected
    assert len(splits) == len(expected) <= inner.sum()
    assert tree_thresholds.tree_splits("text").shape == (0, 2)


def test_splits_on_categories_and_leaves_of_histogram_boosting_are_not_numbers() -> None:
    rows = np.column_stack([np.arange(60) % 3, NUMBERS[:, 0]])
    model = HistGradientBoostingClassifier(max_iter=2, categorical_features=[0], min_samples_leaf=2)
    model.fit(rows, (rows[:, 0] == 1) ^ (rows[:, 1] > 0))
    nodes = np.concatenate([p.nodes for (p,) in model._predictors])
    numeric = nodes[(nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)]
    assert (nodes["is_categorical"] == 1).any()
    splits = tree_thresholds.tree_splits(model)
    assert {tuple(p) for p in splits.tolist()} == {
        (float(n["feature_idx"]), float(n["num_threshold"])) for n in numeric
    }


def nested() -> Any:
    """A search over a stack of a vote and a pipeline, in a pipeline, all behind a scaler."""
    vote = VotingClassifier([("plain", stump()), ("scaled", make_pipeline(MinMaxScaler(), stump()))])
    stack = StackingClassifier(
        [("vote", vote), ("pipeline", make_pipeline(StandardScaler(), stump()))],
        final_estimator=LogisticRegression(),
        cv=2,
    )
    search = GridSearchCV(make_pipeline(StandardScaler(), stack), {})
    search.best_estimator_ = search.estimator.fit(NUMBERS, ABOVE)  # as after a search
    return search


def test_thresholds_of_nested_trees_are_in_the_features_own_units() -> None:
    model = nested()
    points = tree_thresholds.split_points(model, TWO_FLOATS)
    assert sorted([type(t).__name__ for t, _ in s.steps] for s in points.sources) == [
        ["StandardScaler"],
        ["StandardScaler", "MinMaxScaler"],
        ["StandardScaler", "StandardScaler"],
    ]
    assert {s.feature for s in points.sources} == {0}
    values = points.sample(10, np.random.default_rng(0))[:, 1]
    low, high = NUMBERS[ABOVE == 0, 0].max(), NUMBERS[ABOVE == 1, 0].min()
    assert len(values) == 3
    assert ((values > low) & (values < high)).all()
    assert tree_thresholds.has_splits(model)


def test_the_final_estimator_of_a_stack_splits_features_that_are_passed_through() -> None:
    stack = StackingClassifier(
        [("linear", LogisticRegression())], final_estimator=stump(), passthrough=True, cv=2
    ).fit(NUMBERS, ABOVE)
    stack.final_estimator_.tree_.feature[0] = 1  # the answer of the member is column 0
    points = tree_thresholds.split_points(stack, TWO_FLOATS)
    assert points.sources == [ColumnSource(0)]
    stack.final_estimator_.tree_.feature[0] = 0
    assert tree_thresholds.split_points(stack, TWO_FLOATS).sources == []
    assert tree_thresholds.has_splits(stack)


def test_the_trees_of_a_selector_do_not_answer() -> None:
    selector = SelectFromModel(stump(), threshold=0.5)
    model = make_pipeline(selector, LogisticRegression()).fit(NUMBERS, ABOVE)
    assert not tree_thresholds.has_splits(model)
    assert len(tree_thresholds.split_points(model, TWO_FLOATS).threshold) == 0
    chosen = make_pipeline(selector, stump()).fit(NUMBERS, ABOVE)
    assert tree_thresholds.split_points(chosen, TWO_FLOATS).sources == [ColumnSource(0)]


def test_equal_thresholds_of_a_column_are_one_point_and_text_has_none() -> None:
    vote = VotingClassifier([("a", stump()), ("b", stump())]).fit(NUMBERS, ABOVE)
    points = tree_thresholds.split_points(vote, TWO_FLOATS)
    assert (len(points.sources), len(points.threshold), points.source.tolist()) == (1, 1, [0])
    assert points.on_features()[:, 0].tolist() == [0.0]
    assert points.on_features()[:, 1].tolist() == points.threshold.tolist()
    text = (Input("a", "string"), TWO_FLOATS[1])
    assert tree_thresholds.split_points(vote, text).sources == []


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3)])
def test_a_sample_has_at_most_the_requested_points(size: int, count: int) -> None:
    rows = np.arange(4.0).reshape(-1, 1)
    model = DecisionTreeClassifier().fit(rows, [0, 1, 0, 1])
    points = tree_thresholds.split_points(model, TWO_FLOATS[:1])
    sample = points.sample(size, np.random.default_rng(0))
    assert sample.shape == (count, 2)
    assert set(sample[:, 1]) <= {0.5, 1.5, 2.5}


def test_scaled_columns_are_not_plain_features() -> None:
    model = make_pipeline(StandardScaler(), stump()).fit(NUMBERS, ABOVE)
    points = tree_thresholds.split_points(model, TWO_FLOATS)
    assert points.on_features().shape == (0, 2)
    assert len(points.sample(5, np.random.default_rng(0))) == 1


def test_only_finite_inverses_are_points() -> None:
    function = FunctionTransformer(np.log, np.exp).fit(np.abs(NUMBERS) + 1)
    with np.errstate(over="ignore"):
        values = tree_thresholds.invert(ColumnSource(0, ((function, 1),)), np.array([0.0, 1e4]))
    assert values.tolist() == [1.0]
