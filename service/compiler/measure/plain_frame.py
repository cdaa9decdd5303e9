"""Compare the estimator's answers to the example's rows with its answers to the frame that pandas reads.

The rows have passed through the signature's dtypes, so a comparison on them alone has the same mistakes on
both sides. The frame of `pandas.read_parquet` is what the user's own code passes to the estimator. Only the
missing value of a column is taken from the estimator: a file cannot tell None from NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from registry.errors import Refused, summarize_error
from registry.rows import Array, Outputs, Rows
from service.compiler import example
from service.compiler.measure import parity
from service.compiler.measure.parity import ParityFigures, ReferenceBlock
from service.compiler.signature.encoders import ColumnForm
from service.compiler.signature.estimator import EstimatorRuntime
from service.runtime.codec.columns import show

MAX_COMPARED_ROWS = 1000
MAX_SEARCHED_COLUMNS = 200
"""Columns that are replaced one at a time to find the one that causes a difference."""


def compare(runtime: EstimatorRuntime, path: Path, rows: Rows, usable: Array, warnings: list[str]) -> None:
    """Raise `Refused`, naming the columns, when the estimator answers differently to the frame of pandas.

    `rows` are those of the example in the Parquet file `path` where `usable` is true. A column that the
    estimator does not accept as pandas reads it is compared as it is served; `warnings` gets the reason.
    """
    names = [i.name for i in runtime.signature.inputs]
    try:
        frame = _read(path, names, usable)
    except Exception as error:  # pandas does not read every file that Arrow reads
        warnings.append(f"pandas does not read the example ({summarize_error(error, max_characters=200)})")
        return
    _Comparison(runtime, rows.take(slice(0, len(frame))), frame, warnings).require_equal()


def _read(path: Path, names: list[str], usable: Array) -> pd.DataFrame:
    frame = pd.read_parquet(path).iloc[: example.MAX_ROWS][usable]
    if not set(names) <= {str(c) for c in frame.columns}:
        frame = frame.reset_index()  # a feature may be the index
    frame = frame.set_axis([str(c) for c in frame.columns], axis=1)[names]
    return frame.iloc[:MAX_COMPARED_ROWS].reset_index(drop=True)


@dataclass
class _Comparison:
    runtime: EstimatorRuntime
    rows: Rows
    frame: pd.DataFrame  # as pandas reads it
    warnings: list[str]

    def __post_init__(self) -> None:
        forms = enumerate(self.runtime.columns)
        self._plain = [_with_missing(self.frame.iloc[:, j], form) for j, form in forms]
        self._served = self.runtime.series(self.rows)
        self._block = ReferenceBlock("example", self.rows, self.runtime.run(self.rows))

    def require_equal(self) -> None:
        columns = list(range(len(self._plain)))
        figures = self._figures(columns)
        if figures.error is not None:
            rejected = self._single_columns(lambda f: f.error is not None)
            self._warn(rejected, figures.error)
            columns = [j for j in columns if j not in rejected]
            figures = self._figures(columns) if rejected else ParityFigures(rows={})
        if figures.within:
            return
        different = self._single_columns(lambda f: f.error is None and not f.within)
        raise Refused(self._explain(different or columns, figures))

    def _figures(self, columns: list[int]) -> ParityFigures:
        """The difference with these columns as pandas reads them, and the others as they are served."""
        series = [self._plain[j] if j in set(columns) else s for j, s in enumerate(self._served)]
        return parity.compare(
            [self._block], lambda rows: self._answer(series, len(rows)), self.runtime.signature
        )

    def _answer(self, series: list[pd.Series], count: int) -> Outputs:
        return self.runtime.answer(self.runtime.from_series(series), count)

    def _single_columns(self, matches: Callable[[ParityFigures], bool]) -> list[int]:
        return [j for j in range(min(len(self._plain), MAX_SEARCHED_COLUMNS)) if matches(self._figures([j]))]

    def _warn(self, columns: list[int], error: str) -> None:
        listed = ", ".join(f"{show(self._plain[j].name)} ({self._plain[j].dtype})" for j in columns[:5])
        which = f"its {listed}" if columns else "it"
        self.warnings.append(
            f"the estimator does not accept the example as pandas reads it: {which} ({error}); the answers "
            "were compared as they are served"
        )

    def _explain(self, columns: list[int], figures: ParityFigures) -> str:
        faults = f"{figures.label_mismatches} labels and {figures.beyond} numbers differ"
        listed = "; ".join(self._difference(j) for j in columns[:5])
        return (
            f"the estimator answers differently to the example as pandas reads it ({faults} in "
            f"{len(self.rows)} rows), because of {listed}; convert the column before fitting, so that its "
            "values are the same in every format"
        )

    def _difference(self, j: int) -> str:
        """What the column is in the file and in a request, with the first value that differs."""
        plain, served = self._plain[j], self._served[j]
        text = f"{show(str(plain.name))}, which is {plain.dtype} there and {served.dtype} in requests"
        pairs = zip(plain.tolist(), served.tolist(), strict=True)
        first = next(((p, s) for p, s in pairs if not _same(p, s)), None)
        return text if first is None else f"{text} (for example {first[0]!r} and {first[1]!r})"


def _same(first: Any, second: Any) -> bool:
    if pd.isna(first) or pd.isna(second):
        return bool(pd.isna(first) and pd.isna(second))
    return bool(first == second)


def _with_missing(column: pd.Series, form: ColumnForm) -> pd.Series:
    """`column` with the estimator's missing value instead of the one that pandas chose for it.

    As Python objects where the estimator was fitted on those.
    """
    is_text = column.dtype == object or pd.api.types.is_string_dtype(column.dtype)
    if form.as_objects or (is_text and column.isna().any()):
        return column.astype(object).where(column.notna(), form.missing)
    return column
