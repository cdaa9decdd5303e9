"""The estimator answers the example as pandas reads it as it answers the rows that are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from registry.build_messages import BuildResult
from tests.service.compiler.helpers import build_model

NUMBERS = np.arange(24.0)
IGNORING = OneHotEncoder(handle_unknown="ignore")


def built_with(folder: Path, model: Any, frame: pd.DataFrame) -> BuildResult:
    frame.to_parquet(folder / "e.parquet")
    options = {"example": str(folder / "e.parquet"), "example_media_type": "application/vnd.apache.parquet"}
    return build_model(folder, model, **options)


def encoded(frame: pd.DataFrame) -> Any:
    prepare = make_column_transformer((IGNORING, ["c"]), remainder="passthrough")
    return make_pipeline(prepare, LinearRegression()).fit(frame, NUMBERS)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(["x", None, "y", "z"] * 6),
        pd.Series(["x", None, "y", "z"] * 6, dtype=object),
        pd.Series(["x", None, "y", "z"] * 6, dtype="category"),
        pd.Series([1, 2, 3, 4] * 6, dtype="category"),
        pd.Series([1, None, 3, 4] * 6, dtype="Int64"),
        pd.Series([True, None, False, True] * 6, dtype="boolean"),
        pd.Series([True, None, False, True] * 6, dtype=object),
        pd.Series([1, 2, 3, 4] * 6, dtype="uint8"),
        pd.Series([0.5, 1.5, 2.5, None] * 6, dtype="float32"),
    ],
    ids=lambda values: f"{values.dtype} {values.iloc[0]}",
)
def test_columns_of_every_type_are_answered_as_pandas_reads_them(tmp_path: Path, values: pd.Series) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "c": values})
    built = built_with(tmp_path, encoded(frame), frame)
    assert (built.state, built.report["warnings"]) == ("ready", [])
    assert "plain frame" in built.report["seconds"]


def test_a_column_whose_own_type_overflows_is_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "b": np.arange(100, 124).astype(np.int8)})
    model = make_pipeline(FunctionTransformer(np.square), LinearRegression()).fit(frame, NUMBERS)
    text = built_with(tmp_path, model, frame).report["reason"]
    assert "answers differently to the example as pandas reads it" in text
    assert 'because of "b", which is int8 there and int64 in requests; convert the column' in text


def test_a_column_that_the_estimator_takes_only_as_it_is_served_is_a_warning(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "c": pd.Series(["x", None, "y", "z"] * 6, dtype="string")})
    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), IGNORING), ["c"]),
        remainder="passthrough",
    )
    plain = frame.assign(c=frame.c.astype(object).fillna(np.nan))
    model = make_pipeline(prepare, LinearRegression()).fit(plain, NUMBERS)
    assert built_with(tmp_path, model, frame).state == "ready"


def test_a_feature_may_be_the_index_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "b": NUMBERS**2})
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2).fit(frame, NUMBERS)
    stored = frame.assign(when=pd.Timestamp("2026-01-01"), note="x").set_index("b")
    built = built_with(tmp_path, model, stored[::-1])
    assert built.state == "ready", built.report["reason"]


def test_a_model_that_was_fitted_on_an_array_receives_an_array(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x0": NUMBERS, "x1": pd.array([1, None, 3, 4] * 6, dtype="Int64")})
    array = frame.to_numpy(np.float64, na_value=np.nan)
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2).fit(array, NUMBERS)
    assert built_with(tmp_path, model, frame).report["warnings"] == []
