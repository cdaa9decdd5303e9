"""The parser of plain CSV, compiled by numba. The package's docstring explains the method.

Positions are uint64: numba then generates no code for negative indices, which count from the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from registry.rows import Array
from service.runtime.numba_cache import compiled, inlined

_OCTETS, _INDEX = types.Array(types.uint8, 1, "C", readonly=True), types.int32[::1]
_INVALID = 1 << 30  # an exponent that cannot be parsed
_COMMA, _LF, _CR, _POINT, _MINUS, _PLUS, _ZERO = map(ord, ",\n\r.-+0")

_0, _1, _2, _3, _4, _5, _6, _7, _8 = map(np.uint64, range(9))
_16, _24, _32, _40, _48, _56, _64 = map(np.uint64, range(16, 72, 8))
_ZEROS, _SEVENS, _HIGH_BITS = (np.uint64(int(octet * 8, 16)) for octet in ("30", "76", "80"))
_WINDOW = np.uint64(18)  # bytes that `parse_short` may read, including a sign before them

_MIN_POWER, _MAX_POWER = -342, 308  # powers of ten that a float64 with at most 19 digits may need


def _powers_of_ten() -> tuple[Array, Array]:
    """Return 10**e for each power as 128 bits, the highest bit set, rounded down: high and low halves."""
    high, low = [], []
    for exponent in range(_MIN_POWER, _MAX_POWER + 1):
        if exponent >= 0:
            value = 10**exponent
            bits = value << 128 >> value.bit_length()
        else:
            value = 10**-exponent
            bits = (1 << (value.bit_length() + 127)) // value
        assert bits.bit_length() == 128
        high.append(bits >> 64)
        low.append(bits & (2**64 - 1))
    return np.array(high, dtype=np.uint64), np.array(low, dtype=np.uint64)


_POWERS_HIGH, _POWERS_LOW = _powers_of_ten()
_POWERS_OF_TWO = np.ldexp(1.0, np.arange(0x7FF) - 1075)
_EXACT_POWERS = 10.0 ** np.arange(23)  # the powers of ten that float64 represents exactly
_INTEGER_POWERS = np.array([10**n for n in range(9)], dtype=np.uint64)


@inlined
def multiply(a: Any, b: Any) -> Any:
    """Return the 128-bit product of two uint64 as its high and low halves."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a0, a1, b0, b1 = a & mask, a >> half, b & mask, b >> half
    low = a0 * b0
    middle = a1 * b0 + (low >> half)
    other = a0 * b1 + (middle & mask)
    return a1 * b1 + (middle >> half) + (other >> half), a * b


@inlined
def scale(mantissa: Any, exponent: int) -> Any:
    """Return `mantissa * 10**exponent`; NaN if rounding is uncertain or the result is not a normal
    float64."""
    if mantissa == 0:
        return 0.0
    if exponent < _MIN_POWER or exponent > _MAX_POWER:
        return np.nan
    zeros = np.uint64(0)
    for step in (32, 16, 8, 4, 2, 1):
        if mantissa >> np.uint64(64 - step) == 0:
            mantissa <<= np.uint64(step)
            zeros += np.uint64(step)
    one, nine = np.uint64(1), np.uint64(9)
    high, low = multiply(mantissa, _POWERS_HIGH[exponent - _MIN_POWER])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF) and low + mantissa < mantissa:
        carry, rest = multiply(mantissa, _POWERS_LOW[exponent - _MIN_POWER])
        merged = low + carry
        if merged < low:
            high += one
        if high & np.uint64(0x1FF) == np.uint64(0x1FF) and merged + one == 0 and rest + mantissa < mantissa:
            return np.nan
        low = merged
    top = high >> np.uint64(63)
    power = np.int64(((217706 * exponent) >> 16) + 64 + 1023) - np.int64(zeros) - np.int64(one ^ top)
    bits = high >> (top + nine)
    if low == 0 and high & np.uint64(0x1FF) == 0 and bits & np.uint64(3) == one:
        return np.nan  # half way between two floats
    bits = (bits + (bits & one)) >> one
    if bits >> np.uint64(53):
        bits >>= one
        power += 1
    if power < 1 or power >= 0x7FF:
        return np.nan
    return float(np.int64(bits)) * _POWERS_OF_TWO[power]


@intrinsic  # type: ignore[untyped-decorator]
def trailing_zeros(_: Any, bits: Any) -> Any:
    """Return the number of zero bits below the lowest one bit of a uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(bits), generate


@inlined
def load_word(data: Array, at: Any) -> Any:
    """Load eight bytes, the first one lowest. A byte that is a digit becomes its value, 0 to 9."""
    word = (  # LLVM combines these into one load
        np.uint64(data[at])
        | np.uint64(data[at + _1]) << _8
        | np.uint64(data[at + _2]) << _16
        | np.uint64(data[at + _3]) << _24
        | np.uint64(data[at + _4]) << _32
        | np.uint64(data[at + _5]) << _40
        | np.uint64(data[at + _6]) << _48
        | np.uint64(data[at + _7]) << _56
    )
    return word ^ _ZEROS


@inlined
def non_digits(word: Any) -> Any:
    """Return one bit for each byte of a word that is not a digit.

    A byte that is not ASCII may set the bit of the next byte as well. Callers use the lowest set bit only,
    which is correct.
    """
    marks = ((word + _SEVENS) | word) & _HIGH_BITS
    return ((marks >> _7) * np.uint64(0x0102040810204080)) >> _56


@inlined
def digits_value(word: Any, count: Any) -> Any:
    """Return the number that the first `count` digits, 1 to 8, of a word represent."""
    word <<= _64 - (count << _3)
    word = word * np.uint64(10) + (word >> _8)
    pairs = np.uint64(0x000000FF000000FF)
    hundreds = (word & pairs) * np.uint64(0x000F424000000064)
    return (hundreds + ((word >> _16) & pairs) * np.uint64(0x0000271000000001)) >> _32


@inlined
def ends_cell(octet: Any) -> Any:
    return (octet == _COMMA) | (octet == _LF) | (octet == _CR)


@inlined
def parse_short(data: Array, at: Any) -> tuple[Any, float]:
    """Parse at most 7 digits, optionally followed by a point and at most 7 digits.

    Returns the end of the cell and the value; `at` if the cell at `at` is not such a number. Reads the 17
    bytes after `at`.
    """
    word = load_word(data, at)
    marks = non_digits(word) | (non_digits(load_word(data, at + _8)) << _8) | np.uint64(0x30000)
    before = trailing_zeros(marks)
    end = trailing_zeros(marks & (marks - _1))
    after = end - before - _1
    # `&` instead of `and`: a single branch, which is nearly always taken
    if (before - _1 < _7) & (after - _1 < _7) & (data[at + before] == _POINT) & ends_cell(data[at + end]):
        fraction = digits_value(load_word(data, at + before + _1), after)
        mantissa = digits_value(word, before) * _INTEGER_POWERS[after] + fraction
        return at + end, float(np.int64(mantissa)) / _EXACT_POWERS[after]
    if (before - _1 < _7) & ends_cell(data[at + before]):
        return at + before, float(np.int64(digits_value(word, before)))
    return at, 0.0


@inlined
def parse_exponent(data: Array, at: Any, stop: Any) -> int:
    """Parse the bytes between `e` and `stop`, at most three digits; `_INVALID` if they are not an integer."""
    negative = data[at] == _MINUS
    if negative or data[at] == _PLUS:
        at += _1
    if not _1 <= stop - at <= _3:
        return _INVALID
    power = 0
    for i in range(at, stop):
        digit = data[i] - _ZERO
        if digit < 0 or digit > 9:
            return _INVALID
        power = power * 10 + digit
    return -power if negative else power


@inlined
def leading_zeros(data: Array, start: Any, stop: Any) -> int:
    """Return the number of zero digits before the first other digit."""
    zeros = 0
    for at in range(start, stop):
        if data[at] == _ZERO:
            zeros += 1
        elif data[at] > _ZERO:
            break
    return zeros


@inlined
def parse_digits(data: Array, at: Any, mantissa: Any) -> tuple[Any, Any]:
    """Return the end of the digits from `at` on, and `mantissa` with these digits appended."""
    while at + _8 <= len(data):
        word = load_word(data, at)
        marks = non_digits(word)
        count = trailing_zeros(marks | np.uint64(0x100))
        if count:
            mantissa = mantissa * _INTEGER_POWERS[count] + digits_value(word, count)
        at += count
        if marks:
            return at, mantissa
    digit = data[at] - _ZERO
    while 0 <= digit <= 9:
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        at += _1
        digit = data[at] - _ZERO
    return at, mantissa


@inlined
def parse_number(data: Array, start: Any) -> tuple[Any, float]:
    """Return the end of the number at `start`, and its value; `start` if it is not plain."""
    negative = data[start] == _MINUS
    first = start + _1 if negative or data[start] == _PLUS else start
    at, mantissa = parse_digits(data, first, _0)
    digits: Any = np.int64(at - first)
    exponent: Any = 0
    if data[at] == _POINT:
        first = at + _1
        at, mantissa = parse_digits(data, first, mantissa)
        exponent = -np.int64(at - first)
        digits -= exponent
    if digits == 0 or (digits > 19 and digits - leading_zeros(data, start, at) > 19):
        return start, 0.0
    if data[at] == 0x65 or data[at] == 0x45:  # e, E
        first = at + _1
        at = cell_end(data, first)
        power = parse_exponent(data, first, at)
        if power == _INVALID:
            return start, 0.0
        exponent += power
    if mantissa < np.uint64(1 << 53) and -22 <= exponent <= 22:
        value = float(np.int64(mantissa))
        value = value * _EXACT_POWERS[exponent] if exponent >= 0 else value / _EXACT_POWERS[-exponent]
    else:
        value = scale(mantissa, exponent)
    return at if value == value else start, -value if negative else value


@inlined
def cell_end(data: Array, at: Any) -> Any:
    while not ends_cell(data[at]):
        at += _1
    return at


@inlined
def parse_signed(data: Array, start: Any) -> tuple[Any, float]:
    """Same as `parse_number`, but faster for short negative numbers."""
    if data[start] == _MINUS and start + _WINDOW < len(data):
        at, value = parse_short(data, start + _1)
        if at != start + _1:
            return at, -value
    return parse_number(data, start)


@compiled((_OCTETS, _INDEX, _INDEX, types.float64[:, ::1], types.int32[:, :, ::1]))
def parse(data: Array, number_index: Array, text_index: Array, numbers: Array, spans: Array) -> Any:
    """Parse a block and return its number of rows, or -1 if it is not plain.

    Cells of the file's column `j` are stored in `numbers[row, number_index[j]]`, with NaN for an empty
    cell, and their start and end in `spans[text_index[j], row]`. An index of -1 means that they are not
    stored.

    `data` must end with a line feed. `numbers` and `spans` must have space for all rows and one more,
    because an incomplete row is detected after some of its cells are stored.
    """
    width, size, at = np.uint64(len(number_index)), np.uint64(len(data)), _0
    row = column = _0
    while at < size:
        start = at
        octet = data[at]
        if column == _0 and (octet == _LF or (octet == _CR and data[at + _1] == _LF)):  # a blank line
            at += _1 if octet == _LF else _2
            continue
        target = number_index[column]
        if target < 0:
            at = cell_end(data, at)
        elif ends_cell(octet):
            numbers[row, np.uint64(target)] = np.nan
        else:
            value = 0.0
            if start + _WINDOW < size:
                at, value = parse_short(data, start)
            if at == start:
                at, value = parse_signed(data, start)
                if at == start:
                    return -1
            numbers[row, np.uint64(target)] = value
        if text_index[column] >= 0:
            spans[text_index[column], row, 0], spans[text_index[column], row, 1] = start, at
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


@compiled((_OCTETS, types.int32[:, ::1], _INDEX, types.uint8[::1]))
def copy_cells(data: Array, spans: Array, offsets: Array, output: Array) -> None:
    """Copy the cells at `spans` one after another to `output`; cell `i` starts at `offsets[i]`."""
    end = 0
    for row in range(len(spans)):
        offsets[row] = end
        for at in range(spans[row, 0], spans[row, 1]):
            output[end] = data[at]
            end += 1
    offsets[len(spans)] = end
