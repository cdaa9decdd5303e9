"""Which type a column of many files has, and what text looks like a number and is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from registry.errors import Invalid
from service.batch import files
from service.batch.files import types
from service.batch.files.formats import schema_of
from tests.service.batch.files.inputs import CSV, LINES


def kinds(tmp_path: Path, media_type: str, *contents: str, **more: object) -> dict[str, str]:
    """By column, of files with these contents."""
    for number, content in enumerate(contents):
        suffix = "csv" if media_type == CSV else "jsonl"
        (tmp_path / f"{number}.{suffix}").write_text(content)
    dataset = files.open_dataset(str(tmp_path), media_type, **more)  # type: ignore[arg-type]
    return {f.name: str(f.type) for f in schema_of(dataset, dataset.columns)}


def test_a_file_that_is_only_a_header_says_nothing(tmp_path: Path) -> None:
    assert kinds(tmp_path, CSV, "a,b\n", "a,b\n1,x\n") == {"a": "int64", "b": "string"}


def test_whole_numbers_in_one_file_and_others_in_another_are_numbers(tmp_path: Path) -> None:
    found = kinds(tmp_path, CSV, "a,b,c\n1,1,\n", "a,b,c\n2.5,2,\n", alike=True)
    assert found == {"a": "double", "b": "int64", "c": "double"}


def test_text_beside_numbers_is_refused_where_files_must_be_alike(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r'column "a" is int64 in "0.csv" and string in "1.csv"'):
        kinds(tmp_path, CSV, "a\n1\n", "a\nx\n", alike=True)
    assert kinds(tmp_path, CSV, alike=True, dtypes={"a": "string"}) == {"a": "string"}
    assert kinds(tmp_path, CSV) == {"a": "string"}


@pytest.mark.parametrize("code", ["01067", " 007", "-01", "00"])
def test_digits_that_begin_with_a_zero_are_text(tmp_path: Path, code: str) -> None:
    assert kinds(tmp_path, CSV, f"a,b\n10115,0\n{code},0.5\n") == {"a": "string", "b": "double"}


def test_a_key_may_be_in_some_files_only_unless_they_must_be_alike(tmp_path: Path) -> None:
    contents = ('{"a": 1}\n', '{"a": 2, "note": "x"}\n')
    assert kinds(tmp_path, LINES, *contents) == {"a": "int64", "note": "string"}
    with pytest.raises(Invalid, match="note"):
        kinds(tmp_path, LINES, alike=True)


def test_a_schema_outlives_being_written_down() -> None:
    kinds = [
        pa.decimal128(12, 2),
        pa.timestamp("ns", "Europe/Berlin"),
        pa.large_string(),
        pa.uint64(),
        pa.null(),
    ]
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    assert types.unpack(types.pack(schema)).equals(schema)
