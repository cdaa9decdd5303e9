from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from registry.errors import Refused
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.compiler.tflite import calibration

SIGNATURE = Signature(
    "regression", (Input("a", "float64"), Input("b", "int64")), (Output("value", "float64", (-1,)),)
)


def read(folder: Path, rows: pd.DataFrame) -> Rows:
    file = folder / "rows.csv"
    rows.to_csv(file, index=False)
    return calibration.read_calibration_rows(str(file), "text/csv", SIGNATURE)


def test_rows_have_the_columns_of_the_signature_in_its_order(tmp_path: Path) -> None:
    got = read(tmp_path, pd.DataFrame({"y": ["x", "x"], "b": [1, 2], "a": [0.5, 1.5]}))
    assert got.matrix is not None
    assert got.matrix.tolist() == [[0.5, 1.0], [1.5, 2.0]]


def test_rows_with_missing_values_are_left_out(tmp_path: Path) -> None:
    assert len(read(tmp_path, pd.DataFrame({"a": [0.5, None, 1.5], "b": [1, 2, 3]}))) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame({"a": [0.5]}), "lack the column 'b'; the model has 2 features"),
        (pd.DataFrame({"a": [0.5], "b": ["x"]}), "column 'b' holds string, which does not fit"),
        (pd.DataFrame({"a": [0.5], "b": [0.5]}), "column 'b' holds float64, which does not fit"),
        (pd.DataFrame({"a": [None], "b": [1]}), "missing value"),
        (pd.DataFrame({"a": [], "b": []}), "no rows"),
    ],
    ids=["missing column", "text", "fraction for an integer", "only missing values", "empty"],
)
def test_rows_that_do_not_fit_are_refused_and_the_column_named(
    tmp_path: Path, rows: pd.DataFrame, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        read(tmp_path, rows)


def test_a_file_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"not one")
    with pytest.raises(Refused, match="calibration rows cannot be read"):
        calibration.read_calibration_rows(str(file), "application/vnd.apache.parquet", SIGNATURE)


def test_a_large_example_is_split_and_a_small_one_is_not() -> None:
    rows = Rows(np.zeros((100, 2)))
    first, second = calibration.split_example(rows)
    assert sorted([*first, *second]) == list(range(100))
    small = Rows(np.zeros((10, 2)))
    first, second = calibration.split_example(small)
    assert first is second
    assert len(first) == 10


def test_indices_are_evenly_spaced() -> None:
    assert calibration.evenly_spaced(1000, 5).tolist() == [0, 249, 499, 749, 999]
    assert calibration.evenly_spaced(3, 5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("size", [1, calibration.MIN_SPLIT_ROWS - 1, calibration.MIN_SPLIT_ROWS, 41])
def test_an_example_of_forty_rows_is_split_into_even_and_odd_rows(size: int) -> None:
    first, second = calibration.split_example(Rows(np.zeros((size, 1))))
    if size < calibration.MIN_SPLIT_ROWS:
        assert first is second
        assert first.tolist() == list(range(size))
    else:
        assert first.tolist() == list(range(0, size, 2))
        assert second.tolist() == list(range(1, size, 2))


def test_rows_that_are_not_finite_are_not_complete() -> None:
    rows = Rows(np.array([[1.0, 2.0], [np.nan, 1.0], [1.0, np.inf], [3.0, -np.inf], [5.0, 6.0]]))
    complete = calibration.complete_rows(rows).matrix
    assert complete is not None
    assert complete.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    with pytest.raises(Refused, match="hold text"):
        calibration.complete_rows(Rows(columns=(np.array(["x"], dtype=object),)))


@pytest.mark.parametrize(
    ("count", "limit", "expected"),
    [(1, 1, [0]), (5, 5, [0, 1, 2, 3, 4]), (6, 5, [0, 1, 2, 3, 5]), (5, 2, [0, 4]), (5, 1, [0]), (0, 5, [])],
)
def test_evenly_spaced_indices_begin_and_end_with_the_first_and_the_last(
    count: int, limit: int, expected: list[int]
) -> None:
    assert calibration.evenly_spaced(count, limit).tolist() == expected
