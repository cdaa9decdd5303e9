"""Plain CSV to numbers and text in one pass, compiled by numba: several times as fast as a general parser.

Plain is: no quotes, each row with as many cells as the header, numbers of at most 19 digits without spaces
around them. For anything else `parse` says so, and the block is read by pyarrow. A number is the nearest
float64 to its decimal digits, as everywhere.

Nearly all numbers are short: `short` looks at sixteen bytes at once for where one ends, and takes up to
seven digits with three multiplications. Where it says nothing, `long` does.
Places are uint64, for which nothing asks whether they count from the end.

Sources: W. D. Clinger, "How to read floating point numbers accurately" (1990), the fast path; D. Lemire,
"Number parsing at a gigabyte per second" (2021), eight digits at once and the multiplication by 128-bit
powers of ten; both refuse what they cannot round for certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from registry.rows import Array
from service.formats.csv_powers import EXACT, HIGH, LEAST, LOW, MOST, TWO
from service.runtime.numba_cache import inner, outer

OCTETS, WHOLE = types.Array(types.uint8, 1, "C", readonly=True), types.int32[::1]
BAD = 1 << 30
_COMMA, _LF, _CR, _POINT, _MINUS, _PLUS, _ZERO = map(ord, ",\n\r.-+0")


TENS = np.array([10**n for n in range(9)], dtype=np.uint64)

_0, _1, _2, _3, _4, _5, _6, _7, _8 = map(np.uint64, range(9))
_16, _24, _32, _40, _48, _56, _64 = map(np.uint64, range(16, 72, 8))
_ZEROS, _SEVENS, _HIGHEST = (np.uint64(int(octet * 8, 16)) for octet in ("30", "76", "80"))
_WINDOW = np.uint64(18)  # bytes that `short` may look at, a sign before them included


@inner
def multiply(a: Any, b: Any) -> Any:
    """The 128 bits of a product of two uint64, the high half first."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    low = a0 * b0
    middle = a1 * b0 + (low >> half)
    other = a0 * b1 + (middle & mask)
    return a1 * b1 + (middle >> half) + (other >> half), a * b


@inner
def scaled(mantissa: Any, exponent: int) -> Any:
    """`mantissa * 10**exponent`; NaN where it is not certain, or no normal float64."""
    if mantissa == 0:
        return 0.0
    if exponent < LEAST or exponent > MOST:
        return np.nan
    zeros = np.uint64(0)
    for step in (32, 16, 8, 4, 2, 1):
        if mantissa >> np.uint64(64 - step) == 0:
            mantissa <<= np.uint64(step)
            zeros += np.uint64(step)
    one, nine = np.uint64(1), np.uint64(9)
    high, low = multiply(mantissa, HIGH[exponent - LEAST])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF) and low + mantissa < mantissa:
        more, rest = multiply(mantissa, LOW[exponent - LEAST])
        merged = low + more
        if merged < low:
            high += one
        if high & np.uint64(0x1FF) == np.uint64(0x1FF) and merged + one == 0 and rest + mantissa < mantissa:
            return np.nan
        low = merged
    top = high >> np.uint64(63)
    power = np.int64(((217706 * exponent) >> 16) + 64 + 1023) - np.int64(zeros) - np.int64(one ^ top)
    bits = high >> (top + nine)
    if low == 0 and high & np.uint64(0x1FF) == 0 and bits & np.uint64(3) == one:
        return np.nan  # half way between two
    bits = (bits + (bits & one)) >> one
    if bits >> np.uint64(53):
        bits >>= one
        power += 1
    if power < 1 or power >= 0x7FF:
        return np.nan
    return float(np.int64(bits)) * TWO[power]


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(_: Any, bits: Any) -> Any:
    """How many bits are zero below the lowest one of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(bits), generate


@inner
def word(data: Array, at: Any) -> Any:
    """Eight bytes, the first one lowest, each with what is 0 to 9 where there is a digit."""
    found = (  # written out, this is one load
        np.uint64(data[at])
        | np.uint64(data[at + _1]) << _8
        | np.uint64(data[at + _2]) << _16
        | np.uint64(data[at + _3]) << _24
        | np.uint64(data[at + _4]) << _32
        | np.uint64(data[at + _5]) << _40
        | np.uint64(data[at + _6]) << _48
        | np.uint64(data[at + _7]) << _56
    )
    return found ^ _ZEROS


@inner
def no_digits(eight: Any) -> Any:
    """A bit for each byte of a `word` that is no digit. A byte that is no ASCII may give the one behind it a
    bit too, which nobody asks for: it is no digit itself."""
    odd = ((eight + _SEVENS) | eight) & _HIGHEST
    return ((odd >> _7) * np.uint64(0x0102040810204080)) >> _56


@inner
def value_of(eight: Any, count: Any) -> Any:
    """The number that the first 1 to 8 digits of a `word` are."""
    eight <<= _64 - (count << _3)
    eight = eight * np.uint64(10) + (eight >> _8)
    pairs = np.uint64(0x000000FF000000FF)
    hundreds = (eight & pairs) * np.uint64(0x000F424000000064)
    return (hundreds + ((eight >> _16) & pairs) * np.uint64(0x0000271000000001)) >> _32


@inner
def ends(octet: Any) -> Any:
    return (octet == _COMMA) | (octet == _LF) | (octet == _CR)


@inner
def short(data: Array, at: Any) -> tuple[Any, float]:
    """Where the cell at `at` ends, and its value, when it is at most 7 digits and, maybe, as many behind a
    point; `at` otherwise. Behind `at`, 17 bytes are there."""
    eight = word(data, at)
    odd = no_digits(eight) | (no_digits(word(data, at + _8)) << _8) | np.uint64(0x30000)
    before = trailing_zeros(odd)
    end = trailing_zeros(odd & (odd - _1))
    behind = end - before - _1
    # & and not `and`: one jump that is nearly always taken
    if (before - _1 < _7) & (behind - _1 < _7) & (data[at + before] == _POINT) & ends(data[at + end]):
        mantissa = value_of(eight, before) * TENS[behind] + value_of(word(data, at + before + _1), behind)
        return at + end, float(np.int64(mantissa)) / EXACT[behind]
    if (before - _1 < _7) & ends(data[at + before]):
        return at + before, float(np.int64(value_of(eight, before)))
    return at, 0.0


@inner
def exponent_of(data: Array, at: Any, stop: Any) -> int:
    """What stands between `e` and `stop`, of at most three digits; `BAD` when it is something else."""
    negative = data[at] == _MINUS
    if negative or data[at] == _PLUS:
        at += _1
    if not _1 <= stop - at <= _3:
        return BAD
    power = 0
    for i in range(at, stop):
        digit = data[i] - _ZERO
        if digit < 0 or digit > 9:
            return BAD
        power = power * 10 + digit
    return -power if negative else power


@inner
def leading_zeros(data: Array, start: Any, stop: Any) -> int:
    zeros = 0
    for at in range(start, stop):
        if data[at] == _ZERO:
            zeros += 1
        elif data[at] > _ZERO:
            break
    return zeros


@inner
def digits_of(data: Array, at: Any, mantissa: Any) -> tuple[Any, Any]:
    """Where the digits from `at` on end, and `mantissa` with them behind it."""
    while at + _8 <= len(data):
        eight = word(data, at)
        odd = no_digits(eight)
        count = trailing_zeros(odd | np.uint64(0x100))
        if count:
            mantissa = mantissa * TENS[count] + value_of(eight, count)
        at += count
        if odd:
            return at, mantissa
    digit = data[at] - _ZERO
    while 0 <= digit <= 9:
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        at += _1
        digit = data[at] - _ZERO
    return at, mantissa


@inner
def number(data: Array, start: Any) -> tuple[Any, float]:
    """Where the number at `start` ends, and its value; `start` when it is not plain."""
    negative = data[start] == _MINUS
    first = start + _1 if negative or data[start] == _PLUS else start
    at, mantissa = digits_of(data, first, _0)
    digits: Any = np.int64(at - first)
    exponent: Any = 0
    if data[at] == _POINT:
        first = at + _1
        at, mantissa = digits_of(data, first, mantissa)
        exponent = -np.int64(at - first)
        digits -= exponent
    if digits == 0 or (digits > 19 and digits - leading_zeros(data, start, at) > 19):
        return start, 0.0
    if data[at] == 0x65 or data[at] == 0x45:
        first = at + _1
        at = cell_end(data, first)
        power = exponent_of(data, first, at)
        if power == BAD:
            return start, 0.0
        exponent += power
    if mantissa < np.uint64(1 << 53) and -22 <= exponent <= 22:
        value = float(np.int64(mantissa))
        value = value * EXACT[exponent] if exponent >= 0 else value / EXACT[-exponent]
    else:
        value = scaled(mantissa, exponent)
    return at if value == value else start, -value if negative else value


@inner
def cell_end(data: Array, at: Any) -> Any:
    while not ends(data[at]):
        at += _1
    return at


@inner
def long(data: Array, start: Any) -> tuple[Any, float]:
    """As `number`, with a short way for what is negative."""
    if data[start] == _MINUS and start + _WINDOW < len(data):
        at, value = short(data, start + _1)
        if at != start + _1:
            return at, -value
    return number(data, start)


@outer((OCTETS, WHOLE, WHOLE, types.float64[:, ::1], types.int32[:, :, ::1]))
def parse(data: Array, number_of: Array, text_of: Array, numbers: Array, texts: Array) -> Any:
    """Fill `numbers[row, number_of[j]]` and `texts[text_of[j], row]` (start and end) from the cells of
    column `j`, -1 for neither; an empty cell is NaN. The number of rows, or -1 when they are not plain.

    `data` ends with a line feed, and there is room for all rows and one more: that a row is cut is seen when
    some of it is written.
    """
    width, size, at = np.uint64(len(number_of)), np.uint64(len(data)), _0
    row = column = _0
    while at < size:
        start = at
        octet = data[at]
        if column == _0 and (octet == _LF or (octet == _CR and data[at + _1] == _LF)):  # a blank line
            at += _1 if octet == _LF else _2
            continue
        into = number_of[column]
        if into < 0:
            at = cell_end(data, at)
        elif ends(octet):
            numbers[row, np.uint64(into)] = np.nan
        else:
            value = 0.0
            if start + _WINDOW < size:
                at, value = short(data, start)
            if at == start:
                at, value = long(data, start)
                if at == start:
                    return -1
            numbers[row, np.uint64(into)] = value
        if text_of[column] >= 0:
            texts[text_of[column], row, 0], texts[text_of[column], row, 1] = start, at
        column += _1
        if data[at] == _COMMA:
            if column == width:
                return -1
        else:
            if data[at] == _CR:
                at += _1
            if data[at] != _LF or column != width:
                return -1
            column = _0
            row += _1
        at += _1
    return np.int64(row)
