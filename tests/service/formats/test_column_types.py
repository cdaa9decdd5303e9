"""Types of columns over several files, and texts that look like numbers but are codes."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Invalid
from registry.media_types import ARROW, CSV, NDJSON, PARQUET
from registry.signature import Input
from service.formats import column_types, reading
from service.formats.column_types import schema_of
from service.runtime.codec.arrow_types import FAMILIES, TypeFamily
from service.runtime.codec.columns import Column
from tests.service.column_samples import SAMPLES


def column_types_of(tmp_path: Path, media_type: str, *contents: str, **options: object) -> dict[str, str]:
    """Return the type of each column of files with these contents."""
    for number, content in enumerate(contents):
        suffix = "csv" if media_type == CSV else "jsonl"
        (tmp_path / f"{number}.{suffix}").write_text(content)
    dataset = reading.open_dataset(str(tmp_path), media_type, **options)  # type: ignore[arg-type]
    return {f.name: str(f.type) for f in schema_of(dataset, dataset.columns)}


def test_a_file_with_only_a_header_does_not_influence_types(tmp_path: Path) -> None:
    assert column_types_of(tmp_path, CSV, "a,b\n", "a,b\n1,x\n") == {"a": "int64", "b": "string"}


def test_integers_in_one_file_and_floats_in_another_are_floats(tmp_path: Path) -> None:
    types = column_types_of(tmp_path, CSV, "a,b,c\n1,1,\n", "a,b,c\n2.5,2,\n", uniform=True)
    assert types == {"a": "double", "b": "int64", "c": "double"}


def test_text_next_to_numbers_is_rejected_for_uniform_files(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r'column "a" is int64 in "0.csv" and string in "1.csv"'):
        column_types_of(tmp_path, CSV, "a\n1\n", "a\nx\n", uniform=True)
    assert column_types_of(tmp_path, CSV, uniform=True, dtypes={"a": "string"}) == {"a": "string"}
    assert column_types_of(tmp_path, CSV) == {"a": "string"}


@pytest.mark.parametrize("code", ["01067", " 007", "-01", "00", "0x1F", "9" * 19, "0049171"])
def test_digits_with_a_leading_zero_are_text(tmp_path: Path, code: str) -> None:
    assert column_types_of(tmp_path, CSV, f"a,b\n10115,0\n{code},0.5\n") == {"a": "string", "b": "double"}


@pytest.mark.parametrize("numbers", ["1.5", "nan"])
def test_codes_next_to_floats_are_text(tmp_path: Path, numbers: str) -> None:
    assert column_types_of(tmp_path, CSV, f"a,b\n{numbers},00.5\n01067,-0.5\n") == {
        "a": "string",
        "b": "double",
    }


def test_a_code_after_the_sample_is_rejected_unless_dtypes_sets_the_type(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("plz,y\n" + "10115,1\n" * 200_000 + "01067,0\n")

    def last_value(**options: object) -> list[object]:
        dataset = reading.open_dataset(str(tmp_path), CSV, uniform=True, **options)  # type: ignore[arg-type]
        parts = reading.split(dataset)
        return [
            b.column(0)[-1].as_py()
            for p in parts
            for b in reading.read_record_batches(dataset, p, ["plz", "y"])
        ][-1:]

    with pytest.raises(Invalid, match=r"column .plz. of '0\.csv' contains '01067', but numbers in the"):
        last_value()
    assert last_value(dtypes={"plz": "string"}) == ["01067"]
    assert last_value(dtypes={"plz": "float64"}) == [1067.0]


def unified_type(uniform: bool, *types: pa.DataType) -> str:
    schemas = {f"{i}.parquet": pa.schema([("a", kind)]) for i, kind in enumerate(types)}
    return str(column_types.unify_schemas(schemas, ["a"], uniform, {}).field("a").type)


def test_numbers_without_a_common_type_are_text_for_scoring_and_float64_for_training() -> None:
    for pair in ((pa.decimal128(12, 2), pa.int64()), (pa.decimal128(12, 2), pa.float32())):
        assert (unified_type(False, *pair), unified_type(True, *pair)) == ("string", "double")
    assert unified_type(False, pa.int64(), pa.uint64()) == "string"
    assert unified_type(False, pa.int8(), pa.uint16(), pa.null()) == "int32"


def test_unused_columns_may_have_opaque_types() -> None:
    lists = pa.list_(pa.string())
    assert unified_type(False, pa.string(), lists) == str(lists)
    assert unified_type(False, pa.int64(), pa.binary(16)) == str(pa.binary(16))
    assert column_types.is_opaque(lists)
    assert column_types.is_opaque(pa.uuid())
    with pytest.raises(Invalid, match=r"string in \"0.parquet\" and list"):
        unified_type(True, pa.string(), lists)


def test_integral_floats_are_written_as_integers_in_text() -> None:
    texts = column_types.to_text(pa.array([123456789012.0, 0.5, None, float("nan"), 1e300, -3.0]))
    assert texts.to_pylist() == ["123456789012", "0.5", None, "nan", "1e+300", "-3"]


def test_dtypes_set_the_types_of_json_lines_columns(tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text('{"sku": 7, "n": "1", "f": true}\n\n{"sku": "x", "n": 2, "f": null}\n')
    dtypes = {"sku": "string", "n": "int64", "f": "bool"}
    dataset = reading.open_dataset(str(tmp_path), NDJSON, uniform=True, dtypes=dtypes)
    (batch,) = reading.read_record_batches(dataset, reading.split(dataset)[0], ["f", "sku", "n"])
    assert batch.to_pydict() == {"f": [True, None], "sku": ["7", "x"], "n": [1, 2]}
    dataset = reading.open_dataset(
        str(tmp_path), NDJSON, uniform=True, dtypes={"sku": "string", "n": "int64"}
    )
    (batch,) = reading.read_record_batches(dataset, reading.split(dataset)[0], ["f", "sku"])
    assert batch.to_pydict() == {"f": [True, None], "sku": ["7", "x"]}
    dataset = reading.open_dataset(str(tmp_path), NDJSON, uniform=True, dtypes=dtypes | {"sku": "int64"})
    with pytest.raises(Invalid, match=r"column 'sku' of '0\.jsonl' cannot be converted to int64"):
        list(reading.read_record_batches(dataset, reading.split(dataset)[0], ["sku"]))


def test_numbers_become_booleans_only_if_each_is_0_or_1(tmp_path: Path) -> None:
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


def test_a_key_may_be_missing_in_some_files_unless_files_must_be_uniform(tmp_path: Path) -> None:
    contents = ('{"a": 1}\n', '{"a": 2, "note": "x"}\n')
    assert column_types_of(tmp_path, NDJSON, *contents) == {"a": "int64", "note": "string"}
    with pytest.raises(Invalid, match="note"):
        column_types_of(tmp_path, NDJSON, uniform=True)


def test_an_unpacked_schema_equals_the_original() -> None:
    types = [
        pa.decimal128(12, 2),
        pa.timestamp("ns", "Europe/Berlin"),
        pa.large_string(),
        pa.uint64(),
        pa.null(),
    ]
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(types)])
    assert column_types.unpack_schema(column_types.pack_schema(schema)).equals(schema)


def test_whole_floats_become_integers_in_text_up_to_the_largest_safe_one() -> None:
    numbers = [2.0**53 - 1, 1 - 2.0**53, 2.0**53, -(2.0**53), 0.0, -0.0, 0.5]
    assert column_types.to_text(pa.array(numbers)).to_pylist() == [
        "9007199254740991",
        "-9007199254740991",
        "9.007199254740992e+15",
        "-9.007199254740992e+15",
        "0",
        "0",
        "0.5",
    ]


@pytest.mark.parametrize("digits", [18, 19])
def test_integers_of_nineteen_digits_are_codes(digits: int) -> None:
    texts = pa.array(["1", None, "1" * digits])
    assert column_types.find_code(texts) == ("1" * 19 if digits == 19 else None)
    block = b"a\n1\n" + b"1" * digits + b"\n"
    assert (column_types.MAYBE_CODE.search(block) is not None) == (digits == 19)


def test_the_message_about_a_cell_names_its_column() -> None:
    def described(number: int) -> str:
        error = pa.ArrowInvalid(
            f"In CSV column #{number}: Row #7: CSV conversion error to int64: invalid 'x'"
        )
        return column_types.describe_cell_error(error, ["a", "b"])

    assert (described(0), described(1)) == ("column \"a\": invalid 'x'", "column \"b\": invalid 'x'")
    assert described(2).startswith("In CSV column #2")
    assert column_types.describe_cell_error(ValueError("y" * 301), ["a"]) == "y" * 300
    long = column_types.describe_cell_error(ValueError("In CSV column #0: " + "z" * 201), ["a"])
    assert long == 'column "a": ' + "z" * 200


def test_the_type_of_a_column_is_not_suggested_where_the_user_set_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n" + f"1,{'y' * 100}\n" * 11_000 + "x,y\n")
    for dtypes, message in (
        ({}, r"does not match its first rows: column \"a\": .*; set the column's type"),
        ({"a": "float64"}, r"'a\.csv': column \"a\": .*'x'; the request sets the type of the column"),
    ):
        dataset = reading.open_dataset(str(tmp_path / "a.csv"), CSV, uniform=True, dtypes=dtypes)
        with pytest.raises(Invalid, match=message):
            list(reading.read_record_batches(dataset, reading.split(dataset)[0], ["a"]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.title)
def test_the_table_of_types_decides_what_a_training_takes(tmp_path: Path, family: TypeFamily) -> None:
    for position, array in enumerate(SAMPLES[family.title]):
        table = pa.table({"d": array, "x": [1.0, 2.0]})
        path = tmp_path / f"{position}.arrow"
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        dataset = reading.open_dataset(str(path), ARROW, uniform=True)
        if family.dtype is not None:
            assert column_types.feature_dtypes(dataset, ["d", "x"]) == {"d": family.dtype, "x": "float64"}
            continue
        with pytest.raises(Invalid) as caught:
            column_types.feature_dtypes(dataset, ["d", "x"])
        (error,) = caught.value.errors
        assert error.field == "d"
        assert f"{family.reason}, or exclude it" in error.message


def test_a_training_reads_decimals_as_the_nearest_floats(tmp_path: Path) -> None:
    texts = [f"{n}.{n % 100:02d}" for n in range(1, 5000, 7)]
    pq.write_table(
        pa.table({"d": pa.array(map(Decimal, texts), pa.decimal128(10, 2))}), tmp_path / "d.parquet"
    )
    dataset = reading.open_dataset(str(tmp_path / "d.parquet"), PARQUET, uniform=True)
    (part,) = reading.split(dataset)
    (batch,) = reading.read_record_batches(dataset, part, ["d"])
    assert batch.column("d").to_pylist() == [float(text) for text in texts]


def test_nested_values_of_json_lines_are_not_features(tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_text('{"a": {"b": 1}, "c": [1], "x": 1}\n{"a": null, "c": "text", "x": 2}\n')
    dataset = reading.open_dataset(str(tmp_path / "n.jsonl"), NDJSON, uniform=True)
    with pytest.raises(Invalid) as caught:
        column_types.feature_dtypes(dataset, ["a", "c", "x"])
    assert [error.field for error in caught.value.errors] == ["a", "c"]
    assert "nested values are not features" in str(caught.value)


def test_a_pandas_period_is_no_integer(tmp_path: Path) -> None:
    metadata = {"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": '{"freq": "D"}'}
    field = pa.field("p", pa.int64(), metadata=metadata)
    pq.write_table(pa.table([pa.array([671])], schema=pa.schema([field])), tmp_path / "p.parquet")
    dataset = reading.open_dataset(str(tmp_path / "p.parquet"), PARQUET)
    for uses in (
        lambda: column_types.feature_dtypes(dataset, ["p"]),
        lambda: reading.extra_schema(dataset, ["p"]),
        lambda: reading.read_head(dataset, [Column(Input("p", "int64"))], [], None, 1),
    ):
        with pytest.raises(Invalid, match=r"pandas\.period"):
            uses()
