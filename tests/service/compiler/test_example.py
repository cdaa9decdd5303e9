"""Example files of three formats, read into the same columns."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Refused
from registry.signature import MAX_SAFE_INTEGER, DType
from service.compiler.example import (
    MAX_ROWS,
    ExampleTable,
    cast_column,
    read,
    require_exact_in_float64,
    to_numpy,
)

FRAME = pd.DataFrame(
    {
        "count": pd.array([1, None, 3], dtype="Int64"),
        "price": [1.5, None, 2.0],
        "city": ["Zürich", None, "Lima"],
        "open": pd.array([True, None, False], dtype="boolean"),
        "day": ["2024-01-01", "2024-01-02", "2024-01-03"],
    }
)


def write(folder: Path, media_type: str) -> Path:
    path = folder / "example"
    if media_type == "text/csv":
        FRAME.to_csv(path, index=False)
    elif media_type == "application/json":
        FRAME.to_json(path, orient="records", force_ascii=False)
    else:
        FRAME.to_parquet(path)
    return path


@pytest.mark.parametrize("media_type", ["text/csv", "application/json", "application/vnd.apache.parquet"])
def test_every_file_format_gives_the_same_columns(tmp_path: Path, media_type: str) -> None:
    example = read(write(tmp_path, media_type), media_type)
    dtypes = {name: example.dtype(name) for name in example.columns}
    assert dtypes == {"count": "int64", "price": "float64", "city": "string", "open": "bool", "day": "string"}
    assert [bool(c.null_count) for c in example.columns.values()] == [True, True, True, True, False]
    assert to_numpy(example.columns["city"], "string").tolist() == ["Zürich", None, "Lima"]
    assert to_numpy(example.columns["count"], "int64")[[0, 2]].tolist() == [1.0, 3.0]
    assert example.columns["day"].to_pylist()[0] == "2024-01-01"


def test_a_column_with_leading_zeros_is_text(tmp_path: Path) -> None:
    (tmp_path / "example").write_text("plz,n,day\n10115,1,2024-01-01\n01067,0,2024-01-02\n,,\n")
    example = read(tmp_path / "example", "text/csv")
    assert {n: example.dtype(n) for n in example.columns} == {"plz": "string", "n": "int64", "day": "string"}
    assert example.columns["plz"].to_pylist() == ["10115", "01067", None]


def test_a_header_without_commas_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "example").write_text("a;b;y\n1;2;3\n")
    with pytest.raises(Refused, match="has no commas"):
        read(tmp_path / "example", "text/csv", "y")


def test_the_target_is_not_a_feature(tmp_path: Path) -> None:
    example = read(write(tmp_path, "text/csv"), "text/csv", target="price")
    assert "price" not in example.columns
    assert example.target is not None
    assert example.target.to_pylist() == [1.5, None, 2.0]


def test_an_unknown_media_type_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="application/zip"):
        read(write(tmp_path, "text/csv"), "application/zip")


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", "[", "[]"])
def test_json_that_is_not_a_list_of_objects_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(Refused, match="example"):
        read(tmp_path / "e.json", "application/json")


def test_a_cast_that_changes_a_value_is_rejected_by_column(tmp_path: Path) -> None:
    example = read(write(tmp_path, "text/csv"), "text/csv")
    assert cast_column("count", example.columns["count"], "float64").to_pylist() == [1.0, None, 3.0]
    with pytest.raises(Refused, match='"price"'):
        cast_column("price", example.columns["price"], "int64")
    with pytest.raises(Refused, match='"count"'):
        cast_column("count", example.columns["count"], "bool")


PARQUET = "application/vnd.apache.parquet"


def parquet(folder: Path, *columns: tuple[str, pa.Array]) -> Path:
    table = pa.table([array for _, array in columns], names=[name for name, _ in columns])
    pq.write_table(table, folder / "example.parquet")
    return folder / "example.parquet"


@pytest.mark.parametrize("size", [1, MAX_ROWS, MAX_ROWS + 1])
def test_the_first_ten_thousand_rows_are_read_with_their_true_values(tmp_path: Path, size: int) -> None:
    path = parquet(tmp_path, ("a", pa.array(np.arange(size))), ("y", pa.array(np.arange(size) * 2)))
    example = read(path, PARQUET, "y")
    count = min(size, MAX_ROWS)
    assert example.target is not None
    assert len(example) == len(example.target) == count
    assert example.columns["a"].to_pylist() == list(range(count))
    assert example.target.to_pylist() == list(range(0, 2 * count, 2))


def test_an_example_has_at_least_one_row_and_one_column(tmp_path: Path) -> None:
    for columns in ([("a", pa.array([], pa.int64()))], []):
        with pytest.raises(Refused, match="the example has no rows"):
            read(parquet(tmp_path, *columns), PARQUET)
    assert len(ExampleTable({})) == 0


def test_a_repeated_column_is_rejected_by_name(tmp_path: Path) -> None:
    for values in ("1,2,3", "1,x,y"):
        (tmp_path / "example.csv").write_text(f"b,a,a\n{values}\n")
        with pytest.raises(Refused, match='the column "a" more than once'):
            read(tmp_path / "example.csv", "text/csv")


def test_a_target_that_is_not_a_column_is_rejected_with_the_columns(tmp_path: Path) -> None:
    (tmp_path / "example.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Refused, match='the target "y" is not a column of the example; it has a, b'):
        read(tmp_path / "example.csv", "text/csv", "y")


@pytest.mark.parametrize(
    ("content", "media_type", "remedy"),
    [
        (
            "a;b\n1,5;2\n",
            "text/csv",
            "has semicolons: separate columns by commas, .* with a point",
        ),
        ("a,ä\n1,2\n".encode("latin-1"), "text/csv", "is not UTF-8, perhaps Latin-1 .*: save it as UTF-8"),
        ('[{"a": "ä"}]'.encode("latin-1"), "application/json", "is not UTF-8, .*: save it as UTF-8"),
        ('{"a": 1}\n{"a": 2}\n', "application/json", "write the rows as one list of objects"),
    ],
)
def test_a_file_of_text_that_cannot_be_read_is_refused_with_the_remedy(
    tmp_path: Path, content: str | bytes, media_type: str, remedy: str
) -> None:
    path = tmp_path / "example"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(Refused, match=f"not readable as {media_type}: .*{remedy}"):
        read(path, media_type)


def test_times_in_a_csv_file_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "example.csv").write_text("at,n\n2024-01-01T10:00:00Z,1\n,2\n")
    assert read(tmp_path / "example.csv", "text/csv").columns["at"].to_pylist() == [
        "2024-01-01T10:00:00Z",
        None,
    ]


def test_json_integers_beside_floats_are_floats(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(
        '[{"f": 1, "i": 1, "b": true}, {"f": 1.5, "i": 2, "b": null}, {"f": null, "c": "x"}]'
    )
    example = read(tmp_path / "e.json", "application/json")
    assert {n: example.dtype(n) for n in example.columns} == {
        "f": "float64",
        "i": "int64",
        "b": "bool",
        "c": "string",
    }
    assert example.columns["f"].to_pylist() == [1.0, 1.5, None]
    assert example.columns["c"].to_pylist() == [None, None, "x"]


def test_dictionaries_and_nan_become_values_and_missing_values(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        ("city", pa.array(["x", "y", "x"]).dictionary_encode()),
        ("size", pa.array([1.0, np.nan, np.inf])),
        ("small", pa.array([0.5, np.nan, 1.0], pa.float32())),
        ("price", pa.array([Decimal("0.10"), Decimal("2.35"), None])),
    )
    example = read(path, PARQUET)
    assert {n: example.dtype(n) for n in example.columns} == {
        "city": "string",
        "size": "float64",
        "small": "float32",
        "price": "float64",
    }
    assert example.column("city").to_pylist() == ["x", "y", "x"]
    assert example.column("size").to_pylist() == [1.0, None, np.inf]
    assert example.column("small").to_pylist() == [0.5, None, 1.0]
    assert example.column("price").to_pylist() == [0.1, 2.35, None]


def test_a_type_that_is_no_feature_is_rejected_only_where_it_is_one(tmp_path: Path) -> None:
    columns = {
        "days": pa.array([0], pa.date32()),
        "at": pa.array([0], pa.timestamp("us", "UTC")),
        "wait": pa.array([0], pa.duration("s")),
        "parts": pa.array([[1]]),
        "raw": pa.array([b"x"]),
        "large": pa.array([2**63], pa.uint64()),
    }
    example = read(parquet(tmp_path, ("a", pa.array([1])), *columns.items()), PARQUET)
    assert example.column("a").to_pylist() == [1]
    for name in ("days", "at", "wait", "parts", "raw"):
        with pytest.raises(Refused, match=f'the example\'s column "{name}" is of type .* are not features; '):
            example.column(name)
    with pytest.raises(Refused, match='"large" does not fit the dtype int64'):
        example.column("large")


def test_a_period_of_pandas_is_rejected_by_name(tmp_path: Path) -> None:
    periods = pd.Series(pd.period_range("2026-01", periods=3, freq="M"))
    pd.DataFrame({"month": periods}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(Refused, match=r'"month" is of type extension<pandas\.period'):
        read(tmp_path / "e.parquet", PARQUET).column("month")


def test_an_index_without_a_name_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [1, 2, 3]})
    frame[frame.a != 2].to_parquet(tmp_path / "e.parquet")
    assert list(read(tmp_path / "e.parquet", PARQUET).columns) == ["a", "b"]


def csv(folder: Path, column: list[str]) -> ExampleTable:
    (folder / "example.csv").write_text("n,c\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(column)))
    return read(folder / "example.csv", "text/csv")


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["1", "NA", " 3"], "int64", [1, None, 3]),
        (["1.50", "N/A", "", "#N/A"], "float64", [1.5, None, None, None]),
        (["+5", "null", "NULL", "None"], "int64", [5, None, None, None]),
        (["TRUE", "nan", "False"], "bool", [True, None, False]),
        (["NA", "ZA", ""], "string", ["NA", "ZA", None]),
        (["1", "NA", "unknown"], "string", ["1", "NA", "unknown"]),
        (["007", "NA"], "string", ["007", "NA"]),
        (["NA", "NA"], "string", ["NA", "NA"]),
        (["", ""], "float64", [None, None]),
        (['"a\nb"', "x"], "string", ["a\nb", "x"]),
    ],
)
def test_words_of_missing_values_are_missing_only_beside_numbers_and_booleans(
    tmp_path: Path, cells: list[str], dtype: DType, values: list[object]
) -> None:
    example = csv(tmp_path, cells)
    assert (example.dtype("c"), example.column("c").to_pylist()) == (dtype, values)


@pytest.mark.parametrize("cells", [["1.50", "2"], ["True", "NA"], ["01", "null"]])
def test_text_of_a_csv_is_as_it_is_written(tmp_path: Path, cells: list[str]) -> None:
    assert csv(tmp_path, cells).column("c", "string").to_pylist() == cells


def test_codes_may_be_read_as_numbers(tmp_path: Path) -> None:
    assert csv(tmp_path, ["01", "NA"]).column("c", "int64").to_pylist() == [1, None]


def test_true_values_of_a_csv_have_their_text_too(tmp_path: Path) -> None:
    (tmp_path / "example.csv").write_text("a,y\n1,1.0\n2,NA\n")
    example = read(tmp_path / "example.csv", "text/csv", "y")
    assert example.target is not None
    assert example.target_text is not None
    assert example.target.to_pylist() == [1.0, None]
    assert example.target_text.to_pylist() == ["1.0", "NA"]


def test_a_json_column_of_texts_and_numbers_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('[{"a": 1, "c": "x"}, {"a": 2, "c": 3}]')
    with pytest.raises(Refused, match='the example\'s column "c" holds integers and strings'):
        read(tmp_path / "e.json", "application/json")


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 1, None], "bool", [False, True, None]),
        ([0, 2], "bool", None),
        ([0, -1], "bool", None),
        ([True, False], "bool", [True, False]),
        ([0.0, 1.0], "bool", [False, True]),
        ([0.5], "bool", None),
        ([1.0, 2.0], "int64", [1, 2]),
        ([1.5], "int64", None),
        ([0.1], "float32", [float(np.float32(0.1))]),
        ([2**53], "float64", [2.0**53]),
        ([2**53 + 1], "float64", None),
        ([1, 2], "string", ["1", "2"]),
        ([1.5], "string", None),
        ([True], "string", None),
        (["x"], "float64", None),
    ],
)
def test_a_cast_keeps_every_value_or_is_rejected(
    values: list[object], dtype: DType, expected: list[object] | None
) -> None:
    if expected is None:
        with pytest.raises(Refused, match=f'"a" does not fit the dtype {dtype}'):
            cast_column("a", pa.array(values), dtype)
    else:
        assert cast_column("a", pa.array(values), dtype).to_pylist() == expected


def test_integers_that_float64_holds_exactly_end_below_2_to_the_53() -> None:
    require_exact_in_float64("a", pa.array([MAX_SAFE_INTEGER, -MAX_SAFE_INTEGER, None]))
    for beyond in (MAX_SAFE_INTEGER + 1, -MAX_SAFE_INTEGER - 1):
        with pytest.raises(Refused, match=f'"a" holds {beyond}'):
            require_exact_in_float64("a", pa.array([1, beyond]))


def test_columns_become_arrays_with_nan_and_none_for_missing_values() -> None:
    cases: list[tuple[pa.Array, DType, str, list[object]]] = [
        (pa.array([1, 2]), "int64", "int64", [1, 2]),
        (pa.array([1, None]), "int64", "float64", [1.0, np.nan]),
        (pa.array([True, False]), "bool", "bool", [True, False]),
        (pa.array([True, None]), "bool", "float64", [1.0, np.nan]),
        (pa.array([0.5, None]), "float64", "float64", [0.5, np.nan]),
        (pa.array([0.5, None], pa.float32()), "float32", "float32", [0.5, np.nan]),
        (pa.array(["x", None]), "string", "object", ["x", None]),
    ]
    for column, dtype, numpy_dtype, expected in cases:
        array = to_numpy(column, dtype)
        assert (str(array.dtype), str(array.tolist())) == (numpy_dtype, str(expected))
        assert array.flags.writeable


def test_a_json_row_that_repeats_a_key_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "example.json"
    path.write_text('[{"a": 1, "b": ": "}, {"a": 1, "a": 2, "b": "x"}]')
    with pytest.raises(Refused, match='row 1 of the example repeats the key "a"; write it once'):
        read(path, "application/json")
