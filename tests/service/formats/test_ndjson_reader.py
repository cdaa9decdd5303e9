from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.errors import Invalid
from registry.media_types import NDJSON
from registry.signature import Input
from service.formats import column_types, ndjson_reader, reading, text_records
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import COLOUR, WORD_COLUMN, A, B, N, read_all

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(data: bytes) -> Path:
        path = tmp_path / "input.jsonl"
        path.write_bytes(data)
        return path

    return write


def rows(count: int) -> list[bytes]:
    return [
        json.dumps({"n": i, "a": i / 4, "b": None, "word": f"ä\n{i}", "x": [i]}).encode()
        for i in range(count)
    ]


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\n\n"])
def test_a_file_is_divided_between_lines(write: Write, monkeypatch: pytest.MonkeyPatch, eol: bytes) -> None:
    for name, size in (("PART_BYTES", 200), ("BLOCK_BYTES", 50)):
        monkeypatch.setattr(text_records, name, size)
    result = read_all(
        write(b"\xef\xbb\xbf" + eol.join(rows(40))), NDJSON, [N, A, B, WORD_COLUMN], ["n", "x", "word", "b"]
    )
    assert result.columns[0] == [*range(40)]
    assert all(math.isnan(v) for v in result.columns[2])
    assert result.extra == {
        "n": [str(i) for i in range(40)],
        "x": [f"[{i}]" for i in range(40)],
        "word": [f"ä\n{i}" for i in range(40)],
        "b": [None] * 40,
    }
    assert result.parts > 5


def test_an_invalid_line_is_a_fault_of_its_row_only(write: Write) -> None:
    lines = rows(200)
    lines[3] = b'{"n": 3}'
    lines[50] = b"{not json"
    lines[51] = b"[1, 2]"
    lines[52] = b'{"n": 1, "a": "x", "word": "\xff"}'
    lines[53] = b'{"n": 1, "a": NaN, "word": "x"}'
    lines[54] = b'{"n": 1, "a": 1, "word": "\xff"}'
    lines[199] = b'{"n": 1.5, "a": "x", "word": "last"}'
    result = read_all(write(b"\n".join(lines)), NDJSON, [N, A], ["word"], "word")
    assert result.fault_rows == [3, 50, 51, 52, 53, 54, 199]
    assert [f.field for f in result.faults] == ["a", None, None, None, "a", None, "n"]
    assert result.faults[-1].id == "last"
    assert result.columns[0] == [i for i in range(200) if i not in result.fault_rows]


@pytest.mark.parametrize("extra", ["", ', "note": "10:30"', ', "nested": {"x": 1, "y": [{"z": 2}]}'])
@pytest.mark.parametrize("repeated", ['"a": 1, "a": 1', '"a": 1, "\\u0061": 2', '"a": 1, "id": 1, "id": 2'])
def test_a_row_with_a_repeated_key_is_a_fault(write: Write, extra: str, repeated: str) -> None:
    lines = [f'{{"a": {i}{extra}}}'.encode() for i in range(20)]
    lines[7] = f"{{{repeated}{extra}}}".encode()
    result = read_all(write(b"\n".join(lines)), NDJSON, [A])
    assert result.fault_rows == [7]
    name = "id" if "id" in repeated else "a"
    assert [(f.field, f.message) for f in result.faults] == [(name, f'"{name}" is repeated; send it once')]
    assert result.columns[0] == [i for i in range(20) if i != 7]


def test_names_may_contain_quotes(write: Write) -> None:
    column = Column(Input('sa"id', "float64"))
    result = read_all(write(b'{"sa\\"id": 1, "a": 2}\n'), NDJSON, [column, A], ["a"])
    assert result.columns == [[1], [2]]
    assert result.extra["a"] == ["2"]
    result = read_all(write(b'{"sa\\"id": 1.50, "a": 1}\n'), NDJSON, [A], ['sa"id'])
    assert result.extra == {'sa"id': ["1.50"]}


def test_unknown_categories_of_a_closed_column_are_faults(write: Write) -> None:
    lines = [json.dumps({"colour": "green" if i == 7 else "red"}).encode() for i in range(20)]
    assert read_all(write(b"\n".join(lines)), NDJSON, [COLOUR]).fault_rows == [7]


def test_compressed_lines_are_one_part(write: Write, tmp_path: Path) -> None:
    result = read_all(write(gzip.compress(b"\n".join(rows(40)))), NDJSON, [N])
    assert (result.columns, result.parts) == ([[*range(40)]], 1)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"a,b\n1,2\n", b"[1]\n", b"{}\n"])
def test_invalid_json_lines_are_rejected(write: Write, data: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        read_all(write(data), NDJSON, [A])
    assert caught.value.errors


def test_training_reads_typed_columns(write: Write) -> None:
    dataset = reading.open_dataset(str(write(b"\n".join(rows(40)) + b'\n{"n": 40}\n')), NDJSON)
    (part,) = reading.split(dataset)
    (batch,) = reading.read_record_batches(dataset, part, ["n", "a"])
    assert batch.to_pydict() == {"n": [*range(41)], "a": [*(i / 4 for i in range(40)), None]}
    dataset = reading.open_dataset(str(write(b'{"n": 1}\n' * 2000 + b'{"n": "x"}\n')), NDJSON)
    with pytest.raises(Invalid, match="does not match its first rows"):
        list(reading.read_record_batches(dataset, reading.split(dataset)[0], ["n"]))


def types_of(path: Path) -> dict[str, str]:
    dataset = reading.open_dataset(str(path), NDJSON)
    return {f.name: str(f.type) for f in column_types.unpack_schema(dataset.schema)}


def test_types_are_inferred_from_the_first_rows_only(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson_reader, "_SAMPLE_ROWS", 3)
    lines = [b'{"n": 1}', b'{"n": null}', b'{"n": 1.5}', b'{"n": "x", "m": 1}\n']
    assert types_of(write(b"\n".join(lines))) == {"n": "double"}
    assert types_of(write(b"\n\n".join(lines[1:]))) == {"n": "string", "m": "int64"}


def test_an_incomplete_line_is_not_in_the_first_rows(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'{"n": 1}\n{"n": 2.5}\n'
    for size, kind in ((len(lines) - 1, "int64"), (len(lines), "double"), (9, "int64")):
        monkeypatch.setattr(ndjson_reader, "_SAMPLE_BYTES", size)
        assert types_of(write(lines)) == {"n": kind}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_an_invalid_line_is_isolated_at_every_position(write: Write, count: int) -> None:
    for bad in range(count):
        for invalid in (b"{", b'{"n": "x"}', b'{"n": 1} {"n": 2}', b'{"n": null}'):
            lines = [invalid if i == bad else b'{"n": %d}' % i for i in range(count)]
            result = read_all(write(b'{"n": 0, "id": "a"}\n' + b"\n".join(lines)), NDJSON, [N], ["id"], "id")
            assert result.fault_rows == [1 + bad]
            assert result.columns == [[0, *(i for i in range(count) if i != bad)]]


def test_integers_in_json_lines_are_exact_or_faults(write: Write) -> None:
    texts = ["9007199254740991", "9007199254740993", "-9223372036854775808", "9223372036854775807",
             "9223372036854775808", "-9223372036854775809", "9223372036854775807.0",
             "9007199254740992.0"]  # fmt: skip
    path = write("".join(f'{{"n": {t}, "word": "w"}}\n' for t in texts).encode())
    wide, safe = Column(Input("n", "int64")), Column(Input("n", "int64"), 2**53 - 1)
    result = read_all(path, NDJSON, [wide, WORD_COLUMN], ["n"], "n")
    assert result.columns[0] == [int(t) for t in texts[:4]] + [2**53]
    assert [(f.row, f.id) for f in result.faults] == [(4, texts[4]), (5, texts[5]), (6, texts[6])]
    assert read_all(path, NDJSON, [safe]).fault_rows == [*range(1, 8)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": NaN, "b": "x"}', 'column "a" of .* holds NaN, which is not valid JSON; write null'),
        ('{"a": -Infinity, "b": "x"}', 'column "a" of .* holds -Infinity'),
        ('{"a": 1, "b": "x", "b": "y"}', 'repeats the key "b"; write it once'),
        ('{"a": 1, "b": "x: y", "c": 1, "c": 2}', 'repeats the key "c"'),
        ('{"a": 1, "b": "x"', "is not valid JSON"),
    ],
)
@pytest.mark.parametrize("dtypes", [{}, {"b": "string"}])
def test_a_training_refuses_what_a_scoring_refuses(
    tmp_path: Path, line: str, message: str, dtypes: dict[str, str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "b": "NaN: x"}\n' + line + "\n")
    dataset = reading.open_dataset(str(path), NDJSON, uniform=True, dtypes=dtypes)
    (part,) = reading.split(dataset)
    with pytest.raises(Invalid, match=message):
        list(reading.read_record_batches(dataset, part, ["a", "b"]))


def test_a_key_with_half_of_a_surrogate_pair_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1, "\\ud800": 2}\n')
    with pytest.raises(Invalid, match=r"a key that is not valid Unicode, .*ud800.*; rename it"):
        reading.open_dataset(str(path), NDJSON)
