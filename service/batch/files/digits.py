"""Plain CSV to numbers and text in one pass, compiled by numba: several times as fast as a general parser.

Plain is: no quotes, each row with as many cells as the header, numbers of at most 19 digits without spaces
around them. For anything else `parse` says so, and the block is read by pyarrow. A number is the nearest
float64 to its decimal digits, as everywhere.

Sources: W. D. Clinger, "How to read floating point numbers accurately" (1990), the fast path; D. Lemire,
"Number parsing at a gigabyte per second" (2021), the multiplication by 128-bit powers of ten; both refuse
what they cannot round for certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from registry.rows import Array
from service.runtime.compiled import inner, outer

LEAST, MOST = -342, 308  # powers of ten that a float64 with at most 19 digits may need
OCTETS, WHOLE = types.Array(types.uint8, 1, "C", readonly=True), types.int32[::1]
BAD = 1 << 30
_COMMA, _LF, _CR, _POINT, _MINUS, _PLUS, _ZERO = map(ord, ",\n\r.-+0")


def _powers() -> tuple[Array, Array]:
    """10**e for `LEAST <= e <= MOST` as 128 bits, the highest one set, rounded down: high and low halves."""
    high, low = [], []
    for exponent in range(LEAST, MOST + 1):
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


HIGH, LOW = _powers()
TWO = np.ldexp(1.0, np.arange(0x7FF) - 1075)
EXACT = 10.0 ** np.arange(23)  # without error in float64


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


@inner
def exponent_of(data: Array, at: int, stop: int) -> int:
    """What stands between `e` and `stop`, of at most three digits; `BAD` when it is something else."""
    negative = data[at] == _MINUS
    if negative or data[at] == _PLUS:
        at += 1
    if not 1 <= stop - at <= 3:
        return BAD
    power = 0
    for i in range(at, stop):
        digit = data[i] - _ZERO
        if digit < 0 or digit > 9:
            return BAD
        power = power * 10 + digit
    return -power if negative else power


@inner
def leading_zeros(data: Array, start: int, stop: int) -> int:
    zeros = 0
    for at in range(start, stop):
        if data[at] == _ZERO:
            zeros += 1
        elif data[at] > _ZERO:
            break
    return zeros


@inner
def digits_of(data: Array, at: int, mantissa: Any) -> tuple[int, Any]:
    """Where the digits from `at` on end, and `mantissa` with them behind it."""
    digit = data[at] - _ZERO
    while 0 <= digit <= 9:
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        at += 1
        digit = data[at] - _ZERO
    return at, mantissa


@inner
def number(data: Array, start: int) -> tuple[int, float]:
    """Where the number at `start` ends, and its value; -1 when it is not plain."""
    negative = data[start] == _MINUS
    first = start + 1 if negative or data[start] == _PLUS else start
    at, mantissa = digits_of(data, first, np.uint64(0))
    digits, exponent = at - first, 0
    if data[at] == _POINT:
        first = at + 1
        at, mantissa = digits_of(data, first, mantissa)
        exponent = first - at
        digits -= exponent
    if digits == 0 or (digits > 19 and digits - leading_zeros(data, start, at) > 19):
        return -1, 0.0
    if data[at] == 0x65 or data[at] == 0x45:
        first = at + 1
        at = cell_end(data, first)
        power = exponent_of(data, first, at)
        if power == BAD:
            return -1, 0.0
        exponent += power
    if mantissa < np.uint64(1 << 53) and -22 <= exponent <= 22:
        value = float(np.int64(mantissa))
        value = value * EXACT[exponent] if exponent >= 0 else value / EXACT[-exponent]
    else:
        value = scaled(mantissa, exponent)
    return at if value == value else -1, -value if negative else value


@inner
def cell_end(data: Array, at: int) -> int:
    while data[at] != _COMMA and data[at] != _LF and data[at] != _CR:
        at += 1
    return at


@outer((OCTETS, WHOLE, WHOLE, types.float64[:, ::1], types.int32[:, :, ::1]))
def parse(data: Array, number_of: Array, text_of: Array, numbers: Array, texts: Array) -> int:
    """Fill `numbers[row, number_of[j]]` and `texts[text_of[j], row]` (start and end) from the cells of
    column `j`, -1 for neither; an empty cell is NaN. The number of rows, or -1 when they are not plain.

    `data` ends with a line feed, and there is room for all rows.
    """
    width, size, row, column, at = len(number_of), len(data), 0, 0, 0
    while at < size:
        start = at
        octet = data[at]
        if column == 0 and (octet == _LF or (octet == _CR and data[at + 1] == _LF)):  # a blank line
            at += 1 if octet == _LF else 2
            continue
        into = number_of[column]
        if into < 0:
            at = cell_end(data, at)
        elif octet in (_COMMA, _LF, _CR):
            numbers[row, into] = np.nan
        else:
            at, value = number(data, at)
            if at < 0:
                return -1
            numbers[row, into] = value
        if text_of[column] >= 0:
            texts[text_of[column], row, 0], texts[text_of[column], row, 1] = start, at
        column += 1
        if data[at] == _CR:
            at += 1
        if data[at] == _LF and column == width:
            column = 0
            row += 1
        elif data[at] != _COMMA or column == width or data[at - 1] == _CR:
            return -1
        at += 1
    return row


@outer((OCTETS, types.int32[:, ::1], WHOLE, types.uint8[::1]))
def gather(data: Array, places: Array, offsets: Array, out: Array) -> None:
    """Put the cells at `places` one after another into `out`; cell `i` then starts at `offsets[i]`."""
    end = 0
    for row in range(len(places)):
        offsets[row] = end
        for at in range(places[row, 0], places[row, 1]):
            out[end] = data[at]
            end += 1
    offsets[len(places)] = end
