"""Example files of three formats, read into the same columns."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from registry.errors import Refused
from service.compiler.example import cast_column, read, to_numpy

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
    assert [example.missing(n) for n in example.columns] == [True, True, True, True, False]
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


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", "[", '[{"a": {"b": 1}}]', "[]"])
def test_json_that_is_not_a_list_of_flat_objects_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    with pytest.raises(Refused, match="example"):
        read(tmp_path / "e.json", "application/json")


def test_a_cast_that_changes_a_value_is_rejected_by_column(tmp_path: Path) -> None:
    example = read(write(tmp_path, "text/csv"), "text/csv")
    assert cast_column("count", example.columns["count"], "float64").to_pylist() == [1.0, None, 3.0]
    with pytest.raises(Refused, match="'price'"):
        cast_column("price", example.columns["price"], "int64")
    with pytest.raises(Refused, match="'count'"):
        cast_column("count", example.columns["count"], "bool")
