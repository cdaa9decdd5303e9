from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.signature import Input
from service.formats.fast_csv import blocks, compiled
from service.runtime.codec.columns import Column
from tests.service.formats.read_all import FLAG, A, B, N

BITS = st.integers(0, 2**64 - 1).map(lambda b: struct.unpack("<d", struct.pack("<Q", b))[0])
DECIMALS = st.tuples(st.integers(0, 10**19 - 1), st.integers(-345, 310)).map(lambda t: f"{t[0]}e{t[1]}")
HALF_WAY_NUMBERS = st.integers(2**53, 2**63).map(str)  # every second one is half way between two floats
FIXED = st.decimals(-(10**9), 10**9, allow_nan=False, places=12).map(str)
SHORT = st.from_regex(r"-?[0-9]{1,9}(\.[0-9]{0,9})?", fullmatch=True)
ANY = st.text("0123456789.-+e,\r\n\xe9 ", max_size=12)


def number(text: str) -> float | None:
    """Return the value that `parse` reads from a cell, or None if the cell is not plain.

    Checks that the value is the same at the end of the data as before other rows, where `parse` may read
    several bytes at once.
    """
    (at_end,), with_rows = parsed(text), parsed(text + "\n0" * 20)
    assert with_rows[0] == at_end or (at_end is None and len(with_rows) == 1)
    return at_end


def parsed(text: str) -> list[float | None]:
    """Return the cells of a table with one column, or a single None if the table is not plain."""
    max_rows = len(text) + 1
    numbers, spans = np.zeros((max_rows, 1)), np.empty((0, max_rows, 2), dtype=np.int32)
    data = np.frombuffer(text.encode() + b"\n", dtype=np.uint8)
    rows = compiled.parse(data, np.zeros(1, np.int32), np.full(1, -1, np.int32), numbers, spans)
    return [None] if rows < 0 else [float(n) for n in numbers[:rows, 0]]


@settings(max_examples=1000, deadline=None)
@given(BITS.map(repr) | st.floats().map(repr) | DECIMALS | HALF_WAY_NUMBERS | FIXED | SHORT)
def test_a_parsed_number_is_the_nearest_float(text: str) -> None:
    value = number(text)
    assert value is None or value == float(text)


@settings(max_examples=500, deadline=None)
@given(SHORT)
def test_short_numbers_are_always_parsed(text: str) -> None:
    assert number(text) == float(text)


@settings(max_examples=500, deadline=None)
@given(ANY)
def test_following_bytes_do_not_change_the_value_of_a_cell(text: str) -> None:
    alone, with_rows = parsed(text), parsed(text + "\n0" * 20)
    not_plain = with_rows == alone == [None]
    assert with_rows[:-20] == alone or not_plain or (not alone and set(with_rows) == {0.0})


PLAIN = ["0.1", "-12.5", "1e22", "12345678901234567", "5.", ".5", "0.30000000000000004", "+1", "1E-7",
         "1.7976931348623157e308", "2.2250738585072014e-308", "000000000000000000007",
         "0.000000000000000000123"]  # fmt: skip
NOT_PLAIN = ["-", "+", ".", "-.", "1e", "1e+", "e5", "1e5x", "--1", "+-1", "1-", "1.2.3", "1_0", " 1", "1 ",
          "nan", "inf", "0x1", "1e999", "5e-324", "12345678901234567890", "1,", "\u0661", "1\r2", "1\r,",
          "1e0001"]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_plain_numbers_are_parsed(text: str) -> None:
    assert number(text) == float(text)


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_other_numbers_are_not_plain(text: str) -> None:
    assert number(text) is None


def test_columns_are_selected_by_name_and_text_is_unchanged() -> None:
    data = "x,007,1,é,2.5\r\n\r\ny,8,-3,,0\n".encode()
    block = blocks.read_block(
        data, ["w", "id", "a", "t", "n"], [Column(Input("n", "float32")), A], ["id", "t"]
    )
    assert block is not None
    assert block.rows.matrix is not None
    assert block.rows.matrix.tolist() == [[2.5, 1], [0, -3]]
    assert block.extra.to_pydict() == {"id": ["007", "8"], "t": ["é", ""]}


UNUSUAL_BLOCKS = [
    b"1\n",
    b"1,2,3\n",
    b'"1",2\n',
    b"x,2\n",
    b"1,\xff\n",
    b"1.5,2\n",
    b"1,2\n3\n",
    b"1,2\r3,4\n",
]


@pytest.mark.parametrize("data", UNUSUAL_BLOCKS)
def test_a_block_with_unusual_rows_is_not_plain(data: bytes) -> None:
    assert blocks.read_block(data, ["n", "id"], [N], ["id"]) is None


BOUNDS_CHECK = """
import random
from registry.signature import Input
from service.formats.fast_csv import blocks
from service.runtime.codec.columns import Column

names = [f"x{i}" for i in range(300)]
columns, extra = [Column(Input(n, "float64")) for n in names[:150]], names[150:]

def block(data):
    return blocks.read_block(data.encode(), names, columns, extra)

row, empty = ",".join(["1"] * 300) + "\\n", "," * 299 + "\\n"
for cells in (1, 5, 149, 299, 400):
    short = ",".join(["1"] * cells)
    for data in (short, short + "\\n", row + short, empty + short, empty * 3 + row + short):
        assert block(data) is None
assert block(row * 3 + empty).length == 4

draw = random.Random(0)
alphabet = "0123456789" * 3 + "....--+e,,,,\\r\\n\\n\\xe9 "
for _ in range(20_000):
    text = "".join(draw.choices(alphabet, k=draw.randrange(1, 60)))
    blocks.read_block(text.encode(), ["a", "b"], columns[:1], ["b"])
    blocks.read_block((text + "\\n1,2" * 10).encode(), ["a", "b"], columns[:1], ["b"])
"""


def test_the_parser_stays_within_the_bounds_of_its_arrays(tmp_path: Path) -> None:
    """Including rows without an end, which may have more cells than a complete row has bytes."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    argv = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", BOUNDS_CHECK]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_missing_cell_in_a_column_without_null_is_a_fault_of_its_row() -> None:
    block = blocks.read_block(b"1,x\n,y\n3,z\n", ["n", "id"], [N], ["id"])
    assert block is not None
    assert list(block.cell_faults) == [1]
    assert block.cell_faults[1][0].message.startswith('"n" is null')


def test_empty_cells_are_missing_values_and_booleans_are_not_plain() -> None:
    block = blocks.read_block(b"1\n,\n", ["b", "x"], [B], [])
    assert block is None
    block = blocks.read_block(b"1,\n,\n", ["b", "x"], [B], [])
    assert block is not None
    assert block.rows.matrix is not None
    assert np.isnan(block.rows.matrix[:, 0]).tolist() == [False, True]
    assert blocks.read_block(b"1\n", ["flag"], [FLAG], []) is None


EXACT = 2**53 - 1
BOUNDS = [
    # seven digits are read at once, longer numbers eight digits at a time
    "1234567", "12345678", "-1234567", "-12345678", "1234567.1234567", "1234567.12345678", "12345678.1",
    "0.1234567", "0.12345678", "123456789012345", "1234567890123456", "12345678901234567", "1.", "1234567.",
    "12345678.", ".1",
    # mantissas and powers that are exact, and the next ones
    f"{EXACT}e22", f"{EXACT + 1}e22", f"{EXACT}e23", f"{EXACT}e-22", f"{EXACT + 1}e-22", f"{EXACT}e-23",
    "1e22", "3e23", "1e-22", "1e-23", f"{EXACT + 1}", f"{EXACT + 3}",
    # nineteen digits, without the zeros before them
    "9999999999999999999", "0.9999999999999999999", "00009999999999999999999", "0.00009999999999999999999",
    "-9999999999999999999", "1844674407370955161", "9223372036854775807", "9223372036854775808",
    # exponents
    "1e308", "-1e308", "17e307", "1e-307", "3e-308", "1e+5", "1E005", "0e999", "0.0e-999", "1e1", "1e99",
    "1e100", "179769313486231570e291", "22250738585072014e-324",
]  # fmt: skip
BEYOND = [
    "99999999999999999999", "1.9999999999999999999", "10000000000000000000e-1", "1e309", "-1e309", "18e307",
    "1e-343", "1e-308", "2e-308", "1e1000", "1e-1000", "1e0001",
]  # fmt: skip
HALF_WAY = ["1e23", "9007199254740993", "-9007199254740991.5"]  # between two floats


@pytest.mark.parametrize("text", BOUNDS)
def test_numbers_at_the_bounds_of_each_method_are_the_nearest_float(text: str) -> None:
    assert number(text) == float(text)


@pytest.mark.parametrize("text", BEYOND + HALF_WAY)
def test_numbers_beyond_the_bounds_are_not_plain(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize("text", ["7", "1.5", "-1.5", "1234567.1234567", "-7", "12345678", "1e5", ""])
@pytest.mark.parametrize("rows", range(1, 12))
def test_a_number_is_the_same_at_each_distance_from_the_end(text: str, rows: int) -> None:
    """Near the end of the data a number is read byte by byte."""
    cells = [text] * rows
    expected = [] if not text else [float(text)] * rows
    assert parsed("\n".join(cells)) == expected
    assert parsed("\r\n".join(cells)) == expected


@pytest.mark.parametrize("extra", ["", ",", ",,", ",,x"])
def test_every_row_has_as_many_cells_as_the_header(extra: str) -> None:
    block = blocks.read_block(f"1,x{extra}\n".encode(), ["a", "t"], [A], ["t"])
    assert (block is not None) == (extra == "")
    assert blocks.read_block(b"1,x\n1\n", ["a", "t"], [A], ["t"]) is None
    assert blocks.read_block(b"1,x\n\n1,y", ["a", "t"], [A], ["t"]) is not None


def test_integers_of_a_block_are_exact_or_left_to_the_other_reader() -> None:
    safe, wide = Column(Input("n", "int64"), 2**53 - 1), N
    for text, is_safe in (
        ("9007199254740991", True),
        ("-9007199254740991", True),
        ("9007199254740992", False),
    ):
        block = blocks.read_block(f"1\n{text}\n".encode(), ["n"], [safe], [])
        assert (block is not None) == is_safe
        if block is not None:
            assert block.rows.matrix is not None
            assert block.rows.matrix[:, 0].tolist() == [1, int(text)]
    assert blocks.read_block(b"1.5\n", ["n"], [wide], []) is None
    single = Column(Input("x", "float32"))
    assert blocks.read_block(b"3.4028234663852886e+38\n", ["x"], [single], []) is not None
    assert blocks.read_block(b"3.4028235677973366e+38\n", ["x"], [single], []) is None
