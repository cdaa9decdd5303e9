"""Cells out of a block of CSV, as the buffers of an Arrow array of text; compiled by numba."""

from __future__ import annotations

from numba import types

from registry.rows import Array
from service.formats.csv_numbers import OCTETS, WHOLE
from service.runtime.numba_cache import outer


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
