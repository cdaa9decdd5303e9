"""Input rows and output arrays of models: plain numpy, without pandas and pickles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NUMPY_DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "int64": np.int64,
    "bool": np.bool_,
    "string": np.object_,
}
"""The numpy type of each dtype of a signature, for columns without missing values."""

Outputs = dict[str, Array]
"""One array of length `n` per `Output` of the signature, by its name. String labels are object arrays of
`str`; numbers are int64, float64, float32 or bool, as in the signature."""


class Rows(msgspec.Struct, frozen=True, eq=False):
    """`n` rows for a model, with the features in the signature's order.

    Exactly one of the two is set. `matrix` (float64 `[n, features]`, C order, missing = NaN) if every feature
    is numeric or boolean. Otherwise `columns`, one array of length `n` per feature: float64, float32, int64
    or bool as in the signature (a nullable int64 or bool column is float64 with NaN), and object arrays of
    `str` or `None` for strings.
    """

    matrix: Array | None = None
    columns: tuple[Array, ...] | None = None

    def __len__(self) -> int:
        if self.matrix is not None:
            return len(self.matrix)
        assert self.columns is not None
        return len(self.columns[0]) if self.columns else 0

    def take(self, index: Any) -> Rows:
        """Return the rows at `index`: a slice, an index array or a mask."""
        if self.matrix is not None:
            return Rows(matrix=np.ascontiguousarray(self.matrix[index]))
        assert self.columns is not None
        return Rows(columns=tuple(c[index] for c in self.columns))

    @property
    def layout(self) -> tuple[Any, ...]:
        """The dtypes of the columns, empty for a matrix: rows of the same layout can be joined exactly."""
        return () if self.columns is None else tuple(c.dtype for c in self.columns)


def join_rows(requests: Sequence[Rows]) -> Rows:
    """Return the rows of several requests of the same layout, in their order."""
    if len(requests) == 1:
        return requests[0]
    if requests[0].matrix is not None:
        return Rows(matrix=np.concatenate([rows.matrix for rows in requests if rows.matrix is not None]))
    columns = zip(*(rows.columns for rows in requests if rows.columns is not None), strict=True)
    return Rows(columns=tuple(np.concatenate(parts) for parts in columns))
