"""Powers of ten and two, as `digits` multiplies by them. What is compiled holds them as constants, and is not
compiled anew when they change: they are mathematics, and do not.
"""

from __future__ import annotations

import numpy as np

from registry.rows import Array

LEAST, MOST = -342, 308  # powers of ten that a float64 with at most 19 digits may need


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
