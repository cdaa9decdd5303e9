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
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler

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
