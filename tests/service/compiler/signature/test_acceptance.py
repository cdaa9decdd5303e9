"""Which rows of the example a model accepts; the true values stay with their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import Input
from service.compiler.example import ExampleTable
from service.compiler.signature.acceptance import (
    FILL_VALUES,
    MAX_PROBED_ROWS,
    UNKNOWN_CATEGORY,
    Probe,
    made_up_rows,
    measure_closed,
)
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import Described, describe
from tests.service.compiler.helpers import build_model

COMPLETE = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0)[::-1] * 2})
LABELS = (np.arange(40) % 3 == 0).astype(int)


def sample(target: bool = True, **missing: list[int]) -> ExampleTable:
    """The rows with missing values at these rows of a column; the target is the number of the row."""
    columns = {}
    for name in COMPLETE:
        values = [None if i in missing.get(name, []) else v for i, v in enumerate(COMPLETE[name].tolist())]
        columns[str(name)] = pa.array(values, pa.float64())
    return ExampleTable(columns, pa.array(range(40)) if target else None)


def described(model: Any, table: ExampleTable, **corrections: Any) -> Described:
    return describe(model, table, Corrections.read(corrections))


def row_numbers(result: Described) -> tuple[list[float], list[int] | None]:
    """(rows by their b, which only b-complete rows have; true values)."""
    assert result.rows is not None
    assert result.rows.matrix is not None
    numbers = (39 - result.rows.matrix[:, 1] / 2).tolist()
    return numbers, None if result.truth is None else result.truth.to_pylist()


def linear() -> LogisticRegression:
    return LogisticRegression().fit(COMPLETE, LABELS)


def test_true_values_are_left_out_together_with_their_rows() -> None:
    result = described(linear(), sample(a=[0, 3, 39], b=[3, 7]))
    kept = [i for i in range(40) if i not in (0, 3, 7, 39)]
    assert row_numbers(result) == (kept, kept)
    assert [i.nullable for i in result.signature.inputs] == [False, False]
    assert result.warnings == [
        'missing values in "a", "b" are refused by the model or the given signature: rows left out'
    ]
    assert row_numbers(described(linear(), sample(target=False, a=[1]))) == ([0, *range(2, 40)], None)


def test_without_refused_values_all_rows_stay() -> None:
    for table in (sample(), sample(a=[0, 5], b=[39])):
        model = HistGradientBoostingClassifier(max_iter=1).fit(COMPLETE, LABELS)
        result = described(model, table)
        assert result.truth is not None
        assert (len(result.rows or ()), len(result.truth), result.warnings) == (40, 40, [])
        missing = [bool(column.null_count) for column in table.columns.values()]
        assert [i.nullable for i in result.signature.inputs] == missing


def imputes_a() -> Any:
    columns = ColumnTransformer([("a", SimpleImputer(), ["a"]), ("b", "passthrough", ["b"])])
    return make_pipeline(columns, LogisticRegression()).fit(COMPLETE, LABELS)


def test_only_rows_that_lack_a_value_the_model_needs_are_left_out() -> None:
    result = described(imputes_a(), sample(a=[2, 4], b=[4, 6]))
    kept = [i for i in range(40) if i not in (4, 6)]
    assert row_numbers(result) == (kept, kept)
    assert [i.nullable for i in result.signature.inputs] == [True, False]
    assert result.warnings == [
        'missing values in "b" are refused by the model or the given signature: rows left out'
    ]


def test_a_column_that_is_not_nullable_by_the_given_signature_has_no_missing_values() -> None:
    result = described(imputes_a(), sample(a=[2]), inputs=[{"name": "a", "nullable": False}])
    kept = [i for i in range(40) if i != 2]
    assert row_numbers(result) == (kept, kept)
    assert not any(i.nullable for i in result.signature.inputs)


def test_a_missing_value_after_the_probed_rows_is_tried() -> None:
    last = MAX_PROBED_ROWS + 20
    result = described(linear(), sample(b=[last, last + 1]))
    assert row_numbers(result)[1] == [i for i in range(40) if i not in (last, last + 1)]


def test_an_example_without_a_complete_row_is_refused() -> None:
    with pytest.raises(Refused, match='every row of the example lacks a value that the model needs, in "a"'):
        described(linear(), sample(a=list(range(40))))
    assert row_numbers(described(linear(), sample(a=list(range(39)))))[1] == [39]


@pytest.mark.parametrize("row", [0, 30])
def test_a_row_of_the_example_that_the_model_refuses_is_named_with_its_column(row: int) -> None:
    table = sample(b=[3])
    values = table.columns["a"].to_pylist()
    values[row] = float("inf")
    infinite = ExampleTable(table.columns | {"a": pa.array(values, pa.float64())}, table.target)
    model = LinearRegression().fit(COMPLETE, LABELS)
    subject = "the example's own rows" if row == 0 else rf"row {row} of the example \(the first is 0\)"
    with pytest.raises(Refused, match=f'cannot answer {subject}: .*; "a" has infinite values; replace'):
        described(model, infinite)


def test_infinite_values_of_an_example_that_the_model_accepts_are_a_warning() -> None:
    values = np.where(np.arange(40) % 4 == 0, np.inf, np.where(np.arange(40) % 4 == 1, np.nan, 1.0))
    frame = COMPLETE.assign(a=values)
    table = ExampleTable({str(n): pa.array(frame[n], pa.float64(), from_pandas=True) for n in frame})
    model = HistGradientBoostingClassifier(min_samples_leaf=1).fit(frame, values == np.inf)
    (warning,) = [w for w in described(model, table).warnings if "infinite" in w]
    assert warning == 'infinite values in "a" of the example: requests and jobs refuse them'


def test_boolean_columns_that_an_estimator_refuses_are_named() -> None:
    flags = pd.DataFrame({"a": [True, False], "b": [1, 2]})
    model = MissingIndicator().fit(flags.astype(float))
    table = ExampleTable({"a": pa.array([True, False]), "b": pa.array([True, True])})
    with pytest.raises(Refused, match='boolean columns of the example: "a", "b"; fit the model on numbers'):
        described(model, table)


@pytest.mark.parametrize("classifier", [True, False])
def test_the_metrics_of_a_build_belong_to_the_rows_that_the_model_accepts(
    tmp_path: Path, classifier: bool
) -> None:
    frame = COMPLETE.assign(a=np.random.default_rng(0).normal(size=40))
    target = (frame["a"] > 0).astype(int) if classifier else frame["a"] * 3 + np.arange(40) % 5
    model: Any = (LogisticRegression() if classifier else LinearRegression()).fit(frame, target)
    example = frame.assign(y=target)
    example.loc[[0, 1, 2, 20, 21], "b"] = np.nan
    example.loc[3, "y"] = np.nan
    built = build_model(tmp_path, model, example, target="y", convert=False)
    usable = example.dropna()
    expected = model.score(usable[["a", "b"]], usable["y"])
    assert len(usable) == 34
    assert list(built.metrics.values()) == pytest.approx([expected], rel=1e-12)


class Limited(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Accepts only rows of one number, and records the numbers that it was asked for."""

    def __init__(self, accepted: float = 0.0) -> None:
        self.accepted = accepted

    def fit(self, rows: Any, target: Any = None) -> Limited:
        self.n_features_in_ = 1
        self.tried_: list[float] = []
        return self

    def predict(self, rows: Any) -> Array:
        self.tried_.append(float(np.asarray(rows)[0, 0]))
        if (np.asarray(rows) != self.accepted).any():
            raise ValueError("out of range")
        return np.zeros(len(rows))


@pytest.mark.parametrize("accepted", FILL_VALUES)
def test_made_up_rows_are_tried_in_order_until_the_model_accepts_them(accepted: float) -> None:
    model = Limited(accepted).fit(None)
    rows = made_up_rows(Probe(model, "matrix", "regression"), (Input("a", "float64"),))
    assert rows.matrix is not None
    assert rows.matrix.tolist() == [[accepted], [accepted]]
    assert model.tried_ == list(FILL_VALUES[: FILL_VALUES.index(accepted) + 1])


def test_a_model_that_accepts_no_made_up_row_needs_an_example() -> None:
    probe = Probe(Limited(7.0).fit(None), "matrix", "regression")
    with pytest.raises(Refused, match="Limited answers none of the rows made up for it"):
        made_up_rows(probe, (Input("a", "float64"),))


def test_made_up_rows_hold_categories_text_and_whole_numbers() -> None:
    inputs = (
        Input("code", "int64", categories=(4, 5)),
        Input("city", "string", categories=("x", "y")),
        Input("text", "string"),
        Input("count", "int64"),
        Input("size", "float64"),
    )
    model = ColumnTransformer([("all", "passthrough", [i.name for i in inputs])])
    frame = pd.DataFrame({"code": [4], "city": ["x"], "text": ["t"], "count": [1], "size": [0.1]})
    rows = made_up_rows(Probe(model.fit(frame), "frame", "transform"), inputs)
    assert rows.columns is not None
    assert [c.tolist() for c in rows.columns] == [[4, 4], ["x", "x"], ["text"] * 2, [0, 0], [0.5, 0.5]]


@pytest.mark.parametrize("encoder", [OneHotEncoder, OrdinalEncoder])
def test_a_feature_is_closed_where_the_model_rejects_unknown_categories(encoder: Any) -> None:
    frame = pd.DataFrame({"city": ["x", "y"], "code": [3.0, 7.0], "size": [0.5, 1.5]})
    rejecting = ColumnTransformer([("e", encoder(), ["city", "code"]), ("s", "passthrough", ["size"])])
    inputs = (
        Input("city", "string", categories=("x", "y")),
        Input("code", "float64", categories=(3.0, 7.0)),
        Input("size", "float64", closed=True),
    )
    row = Rows(columns=(np.array(["x"], dtype=object), np.array([3.0]), np.array([0.5])))
    probe = Probe(rejecting.fit(frame), "frame", "transform")
    assert [i.closed for i in measure_closed(probe, inputs, row)] == [True, True, False]
    extended = frame.assign(city=["x", UNKNOWN_CATEGORY], code=[3.0, 8.0])
    knows = Probe(rejecting.fit(extended), "frame", "transform")
    assert [i.closed for i in measure_closed(knows, inputs, row)] == [False, False, False]


def test_rows_that_lack_a_text_are_left_out_with_their_true_values() -> None:
    cities = ["x", None, "y", "x", None, "y"]
    table = ExampleTable({"city": pa.array(cities)}, pa.array(range(6)))
    frame = pd.DataFrame({"city": ["x", "y"] * 3})
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(frame, [0, 1] * 3)
    result = described(model, table)
    assert result.rows is not None
    assert result.rows.columns is not None
    assert result.truth is not None
    assert (result.rows.columns[0].tolist(), result.truth.to_pylist()) == (list("xyxy"), [0, 2, 3, 5])
