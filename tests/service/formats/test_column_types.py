"""Which type a column of many files has, and what text looks like a number and is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid
from service.formats import column_types, reading
from service.formats.column_types import schema_of
from tests.service.formats.inputs import CSV, LINES, PARQUET


def kinds(tmp_path: Path, media_type: str, *contents: str, **more: object) -> dict[str, str]:
    """By column, of files with these contents."""
    for number, content in enumerate(contents):
        suffix = "csv" if media_type == CSV else "jsonl"
        (tmp_path / f"{number}.{suffix}").write_text(content)
    dataset = reading.open_dataset(str(tmp_path), media_type, **more)  # type: ignore[arg-type]
    return {f.name: str(f.type) for f in schema_of(dataset, dataset.columns)}


def test_a_file_that_is_only_a_header_says_nothing(tmp_path: Path) -> None:
    assert kinds(tmp_path, CSV, "a,b\n", "a,b\n1,x\n") == {"a": "int64", "b": "string"}


def test_whole_numbers_in_one_file_and_others_in_another_are_numbers(tmp_path: Path) -> None:
    found = kinds(tmp_path, CSV, "a,b,c\n1,1,\n", "a,b,c\n2.5,2,\n", uniform=True)
    assert found == {"a": "double", "b": "int64", "c": "double"}


def test_text_beside_numbers_is_refused_where_files_must_be_alike(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r'column "a" is int64 in "0.csv" and string in "1.csv"'):
        kinds(tmp_path, CSV, "a\n1\n", "a\nx\n", uniform=True)
    assert kinds(tmp_path, CSV, uniform=True, dtypes={"a": "string"}) == {"a": "string"}
    assert kinds(tmp_path, CSV) == {"a": "string"}


@pytest.mark.parametrize("code", ["01067", " 007", "-01", "00", "0x1F", "9" * 19, "0049171"])
def test_digits_that_begin_with_a_zero_are_text(tmp_path: Path, code: str) -> None:
    assert kinds(tmp_path, CSV, f"a,b\n10115,0\n{code},0.5\n") == {"a": "string", "b": "double"}


@pytest.mark.parametrize("numbers", ["1.5", "nan"])
def test_codes_beside_numbers_that_are_not_whole_are_text_too(tmp_path: Path, numbers: str) -> None:
    assert kinds(tmp_path, CSV, f"a,b\n{numbers},00.5\n01067,-0.5\n") == {"a": "string", "b": "double"}


def test_a_code_far_behind_is_refused_and_told_unless_somebody_said_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("plz,y\n" + "10115,1\n" * 200_000 + "01067,0\n")

    def read(**more: object) -> list[object]:
        dataset = reading.open_dataset(str(tmp_path), CSV, uniform=True, **more)  # type: ignore[arg-type]
        parts = reading.split(dataset)
        return [
            b.column(0)[-1].as_py()
            for p in parts
            for b in reading.read_record_batches(dataset, p, ["plz", "y"])
        ][-1:]

    with pytest.raises(Invalid, match=r"column .plz. of '0\.csv' contains '01067', but numbers in the"):
        read()
    assert read(dtypes={"plz": "string"}) == ["01067"]
    assert read(dtypes={"plz": "float64"}) == [1067.0]


def merge(alike: bool, *kinds: pa.DataType) -> str:
    schemas = {f"{i}.parquet": pa.schema([("a", kind)]) for i, kind in enumerate(kinds)}
    return str(column_types.unify_schemas(schemas, ["a"], alike, {}).field("a").type)


def test_what_no_number_holds_is_text_where_it_is_handed_on_and_float64_where_it_is_learnt_from() -> None:
    for pair in ((pa.decimal128(12, 2), pa.int64()), (pa.decimal128(12, 2), pa.float32())):
        assert (merge(False, *pair), merge(True, *pair)) == ("string", "double")
    assert merge(False, pa.int64(), pa.uint64()) == "string"
    assert merge(False, pa.int8(), pa.uint16(), pa.null()) == "int32"


def test_columns_that_nobody_reads_may_hold_what_they_like() -> None:
    lists = pa.list_(pa.string())
    assert merge(False, pa.string(), lists) == str(lists)
    assert merge(False, pa.int64(), pa.binary(16)) == str(pa.binary(16))
    assert column_types.is_opaque(lists)
    assert column_types.is_opaque(pa.uuid())
    with pytest.raises(Invalid, match=r"string in \"0.parquet\" and list"):
        merge(True, pa.string(), lists)


def test_whole_floats_as_text_are_the_integers_that_they_were() -> None:
    texts = column_types.to_text(pa.array([123456789012.0, 0.5, None, float("nan"), 1e300, -3.0]))
    assert texts.to_pylist() == ["123456789012", "0.5", None, "nan", "1e+300", "-3"]


def test_what_somebody_said_of_json_lines_is_so(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"sku": 7, "n": "1", "f": true}\n\n{"sku": "x", "n": 2, "f": null}\n')
    dtypes = {"sku": "string", "n": "int64", "f": "bool"}
    dataset = reading.open_dataset(str(tmp_path), LINES, uniform=True, dtypes=dtypes)
    (batch,) = reading.read_record_batches(dataset, reading.split(dataset)[0], ["f", "sku", "n"])
    assert batch.to_pydict() == {"f": [True, None], "sku": ["7", "x"], "n": [1, 2]}
    dataset = reading.open_dataset(str(tmp_path), LINES, uniform=True, dtypes={"sku": "string", "n": "int64"})
    (batch,) = reading.read_record_batches(dataset, reading.split(dataset)[0], ["f", "sku"])
    assert batch.to_pydict() == {"f": [True, None], "sku": ["7", "x"]}
    dataset = reading.open_dataset(str(tmp_path), LINES, uniform=True, dtypes=dtypes | {"sku": "int64"})
    with pytest.raises(Invalid, match=r"column 'sku' of '0\.jsonl' cannot be converted to int64"):
        list(reading.read_record_batches(dataset, reading.split(dataset)[0], ["sku"]))


def test_numbers_are_flags_only_when_each_is_0_or_1(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [0, 1, None], "b": [0.0, 2.0, 1.0]}), tmp_path / "0.parquet")
    dataset = reading.open_dataset(str(tmp_path), PARQUET, dtypes={"a": "bool", "b": "bool"})
    (part,) = reading.split(dataset)
    assert next(iter(reading.read_record_batches(dataset, part, ["a"]))).column(0).to_pylist() == [
        False,
        True,
        None,
    ]
    with pytest.raises(Invalid, match=r"2\.0 is neither 0 nor 1"):
        list(reading.read_record_batches(dataset, part, ["b"]))


def test_a_key_may_be_in_some_files_only_unless_they_must_be_alike(tmp_path: Path) -> None:
    contents = ('{"a": 1}\n', '{"a": 2, "note": "x"}\n')
    assert kinds(tmp_path, LINES, *contents) == {"a": "int64", "note": "string"}
    with pytest.raises(Invalid, match="note"):
        kinds(tmp_path, LINES, uniform=True)


def test_a_schema_outlives_being_written_down() -> None:
    kinds = [
        pa.decimal128(12, 2),
        pa.timestamp("ns", "Europe/Berlin"),
        pa.large_string(),
        pa.uint64(),
        pa.null(),
    ]
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    assert column_types.unpack_schema(column_types.pack_schema(schema)).equals(schema)
