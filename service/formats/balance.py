"""Parts for lanes that work side by side: large ones first, small ones at the end.

A piece of a Parquet row group has to decode what is before it in its group, so the fewer pieces the better;
but were the last parts large, most lanes would wait for one of them. Hence all row groups are whole but the
last ones, which are cut small.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from service.formats.dataset import FileRange
from service.formats.parquet import pieces

MOST_ROWS = 1 << 20  # of a row group that is one part
END_ROWS = 1 << 19  # so many rows for each lane, at the end, are cut
END_PART_ROWS = 1 << 18


def balanced(parts: Sequence[FileRange], lanes: int) -> list[FileRange]:
    """The same rows as `parts`, in the same order, for so many lanes. Only Parquet knows them beforehand:
    others stay as they are."""
    found: list[FileRange] = []
    left = sum(p.rows or 0 for p in parts)
    for _, same in itertools.groupby(parts, key=lambda p: (p.file, p.start)):
        group = list(same)
        rows = sum(p.rows or 0 for p in group)
        if len(group) > 1 or rows > END_PART_ROWS:
            group = pieces(group[0], rows, END_PART_ROWS if left <= END_ROWS * lanes else MOST_ROWS)
        found += group
        left -= rows
    return found
