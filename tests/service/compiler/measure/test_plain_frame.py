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

from service.compiler import example
from service.compiler.measure import plain_frame
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.signature.estimator import EstimatorRuntime
from tests.service.compiler.helpers import build_model

NUMBERS = np.arange(24.0)
IGNORING = OneHotEncoder(handle_unknown="ignore")


PARQUET = "application/vnd.apache.parquet"


def warnings_of(folder: Path, model: Any, frame: pd.DataFrame) -> list[str]:
    """Compare as a build does with this example; return the warnings."""
    path = folder / "e.parquet"
    frame.to_parquet(path)
    described = describe(model, example.read(path, PARQUET), Corrections())
    assert described.rows is not None
    assert described.usable is not None
    estimator = EstimatorRuntime(model, described.signature)
    warnings: list[str] = []
    plain_frame.compare(estimator, path, described.rows, described.usable, warnings)
    return warnings


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
    assert warnings_of(tmp_path, encoded(frame), frame) == []


def test_a_column_whose_own_type_overflows_is_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "b": np.arange(100, 124).astype(np.int8)})
    model = make_pipeline(FunctionTransformer(np.square), LinearRegression()).fit(frame, NUMBERS)
    frame.to_parquet(tmp_path / "b.parquet")
    options = {"example": str(tmp_path / "b.parquet"), "example_media_type": PARQUET}
    text = build_model(tmp_path, model, **options).report["reason"]
    assert "answers differently to the example as pandas reads it" in text
    assert 'because of "b", which is int8 there and int64 in requests; convert the column' in text


def test_missing_text_of_pandas_own_type_is_passed_as_the_model_was_fitted(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "c": pd.Series(["x", None, "y", "z"] * 6, dtype="string")})
    prepare = make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="constant", fill_value="?"), IGNORING), ["c"]),
        remainder="passthrough",
    )
    plain = frame.assign(c=frame.c.astype(object).fillna(np.nan))
    model = make_pipeline(prepare, LinearRegression()).fit(plain, NUMBERS)
    assert warnings_of(tmp_path, model, frame) == []


def test_a_feature_may_be_the_index_and_other_columns_do_not_matter(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "b": NUMBERS**2})
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2).fit(frame, NUMBERS)
    stored = frame.assign(when=pd.Timestamp("2026-01-01"), note="x").set_index("b")
    assert warnings_of(tmp_path, model, stored[::-1]) == []


def test_a_model_that_was_fitted_on_an_array_receives_an_array(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x0": NUMBERS, "x1": pd.array([1, None, 3, 4] * 6, dtype="Int64")})
    array = frame.to_numpy(np.float64, na_value=np.nan)
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2).fit(array, NUMBERS)
    assert warnings_of(tmp_path, model, frame) == []
