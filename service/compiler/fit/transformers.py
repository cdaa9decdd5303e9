"""Fit the transformers of a pipeline over partitions, in as many passes over the data as they need.

The transformers of one pass transform the rows of the next: first a scaler, then an IncrementalPCA of the
scaled rows, each over all partitions.

The result is never an approximation. A transformer is fitted by its own `partial_fit`, or by parts with
exactly the result of one fit over all rows; any other transformer is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
from sklearn.utils import _safe_indexing, get_tags

from registry.errors import Refused
from service.compiler.fit.training_rows import first_rows

HEAD_ROWS = 100
"""Rows from which a transformer without parameters to fit takes the names and types of its columns."""


class PartitionedTransformer:
    """A transformer that receives every partition once in each of its passes over the data."""

    passes: tuple[str, ...] = ()  # for reports: the steps that each pass fits

    def feed(self, index: int, X: Any) -> None:
        """Continue pass `index` with the rows of one partition, in the transformer's input form."""

    def end(self, index: int) -> None:
        """Finish pass `index`, after all partitions."""

    def transform(self, X: Any) -> Any:
        """Transform rows, after the last pass."""
        raise NotImplementedError

    def fitted(self) -> Any:
        """scikit-learn's own fitted object. Call it after the last pass and after one call of `transform`."""
        raise NotImplementedError


def partitioned(name: str, transformer: Any) -> PartitionedTransformer:
    """Wrap the transformer of the step `name`. Raises `Refused` if only all rows at once can fit it."""
    if isinstance(transformer, Pipeline):
        return PartitionedPipeline(transformer.steps)
    if isinstance(transformer, ColumnTransformer):
        return PartitionedColumnTransformer(name, transformer)
    if hasattr(transformer, "partial_fit"):
        return PartialFitTransformer(name, transformer)
    if not get_tags(transformer).requires_fit:
        return StatelessTransformer(transformer)
    if isinstance(transformer, OneHotEncoder | OrdinalEncoder):
        return PartitionedEncoder(name, transformer)
    if isinstance(transformer, SimpleImputer):
        return PartitionedMeanImputer(name, transformer)
    raise _refused(name, transformer, "has no partial_fit")


def _refused(name: str, transformer: Any, why: str) -> Refused:
    return Refused(
        f"{type(transformer).__name__} (step {name!r}) {why}, so it cannot be fitted over partitions; "
        "use another transformer, or the strategy single"
    )


class _SingleTransformer(PartitionedTransformer):
    def __init__(self, transformer: Any) -> None:
        self._transformer = clone(transformer)

    def transform(self, X: Any) -> Any:
        return self._transformer.transform(X)

    def fitted(self) -> Any:
        return self._transformer


class PartialFitTransformer(_SingleTransformer):
    """Fitted by its own `partial_fit`: scalers, IncrementalPCA, MiniBatchKMeans, ..."""

    def __init__(self, name: str, transformer: Any) -> None:
        super().__init__(transformer)
        self.passes = (name,)

    def feed(self, index: int, X: Any) -> None:
        self._transformer.partial_fit(X)


class StatelessTransformer(_SingleTransformer):
    """Needs only the names and types of its columns: Normalizer, FunctionTransformer, ..."""

    _is_fitted = False

    def transform(self, X: Any) -> Any:
        if not self._is_fitted:
            self._transformer.fit(first_rows(X, HEAD_ROWS))  # records the number and names of the columns
            self._is_fitted = True
        return self._transformer.transform(X)


class PartitionedEncoder(_SingleTransformer):
    """An encoder that needs only the distinct values of each column."""

    def __init__(self, name: str, encoder: Any) -> None:
        super().__init__(encoder)
        if encoder.min_frequency is not None or encoder.max_categories is not None:
            raise _refused(name, encoder, "counts its categories")
        self.passes = (name,)
        self._values: list[Any] = []  # for each column, a Series of its distinct values
        self._has_names = False

    def feed(self, index: int, X: Any) -> None:
        self._has_names = isinstance(X, pd.DataFrame)
        frame = X if self._has_names else pd.DataFrame(X)
        values = [frame.iloc[:, i].drop_duplicates() for i in range(frame.shape[1])]
        if self._values:
            values = [pd.concat(pair).drop_duplicates() for pair in zip(self._values, values, strict=True)]
        self._values = values

    def end(self, index: int) -> None:
        longest = max(len(v) for v in self._values)
        columns = [v.iloc[np.arange(longest) % len(v)].reset_index(drop=True) for v in self._values]
        table = pd.concat(columns, axis=1)
        self._transformer.fit(table if self._has_names else table.to_numpy())


class PartitionedMeanImputer(_SingleTransformer):
    """A SimpleImputer that fills in the mean."""

    def __init__(self, name: str, imputer: Any) -> None:
        super().__init__(imputer)
        for parameter, supported in (("strategy", "mean"), ("add_indicator", False)):
            if (value := getattr(imputer, parameter)) != supported:
                raise _refused(name, imputer, f"needs all rows at once with {parameter}={value!r}")
        if not pd.isna(imputer.missing_values):
            raise _refused(name, imputer, f"treats {imputer.missing_values!r} as missing")
        self.passes = (name,)
        self._names: Any = None
        self._sums: Any = 0.0
        self._counts: Any = 0

    def feed(self, index: int, X: Any) -> None:
        self._names = getattr(X, "columns", None)
        numbers = np.asarray(X, dtype=np.float64)
        self._sums = self._sums + np.nansum(numbers, axis=0)
        self._counts = self._counts + (~np.isnan(numbers)).sum(axis=0)

    def end(self, index: int) -> None:
        empty = np.full(len(self._sums), np.nan)
        means = np.divide(self._sums, self._counts, out=empty, where=self._counts > 0).reshape(1, -1)
        self._transformer.fit(means if self._names is None else pd.DataFrame(means, columns=self._names))


class PartitionedPipeline(PartitionedTransformer):
    """The steps of a Pipeline; the passes of one step follow those of the step before it."""

    def __init__(self, steps: list[tuple[str, Any]]) -> None:
        self._steps = [(n, t if t in (None, "passthrough") else partitioned(n, t)) for n, t in steps]
        self.passes = tuple(p for t in self._transformers() for p in t.passes)

    def feed(self, index: int, X: Any) -> None:
        for transformer in self._transformers():
            if index < len(transformer.passes):
                transformer.feed(index, X)
                return
            index -= len(transformer.passes)
            X = transformer.transform(X)

    def end(self, index: int) -> None:
        for transformer in self._transformers():
            if 0 <= index < len(transformer.passes):
                transformer.end(index)
            index -= len(transformer.passes)

    def transform(self, X: Any) -> Any:
        for transformer in self._transformers():
            X = transformer.transform(X)
        return X

    def fitted_steps(self) -> list[tuple[str, Any]]:
        """The steps as scikit-learn's own fitted objects, for a Pipeline."""
        return [(n, t.fitted() if isinstance(t, PartitionedTransformer) else t) for n, t in self._steps]

    def fitted(self) -> Any:
        return Pipeline(self.fitted_steps())

    def _transformers(self) -> list[PartitionedTransformer]:
        return [t for _, t in self._steps if isinstance(t, PartitionedTransformer)]


class PartitionedColumnTransformer(PartitionedTransformer):
    """A ColumnTransformer: each part receives its own columns, and all parts share the passes."""

    def __init__(self, name: str, transformer: Any) -> None:
        if not isinstance(transformer.remainder, str):
            raise _refused(name, transformer, "has a transformer as its remainder")
        self._unfitted = clone(transformer)
        self._parts = {
            n: partitioned(n, t) for n, t, _ in self._unfitted.transformers if not isinstance(t, str)
        }
        passes = max((len(p.passes) for p in self._parts.values()), default=0)
        self.passes = tuple(
            ", ".join(p.passes[i] for p in self._parts.values() if i < len(p.passes)) for i in range(passes)
        )
        self._columns: dict[str, Any] = {}
        self._head: Any = None
        self._fitted: Any = None

    def feed(self, index: int, X: Any) -> None:
        self._select_columns(X)
        for name, part in self._parts.items():
            if index < len(part.passes):
                part.feed(index, self._part_rows(name, X))

    def end(self, index: int) -> None:
        for part in self._parts.values():
            if index < len(part.passes):
                part.end(index)

    def transform(self, X: Any) -> Any:
        if self._fitted is None:
            self._select_columns(X)
            self._fitted = self._compose()
        return self._fitted.transform(X)

    def fitted(self) -> Any:
        return self._fitted

    def _select_columns(self, X: Any) -> None:
        """Evaluate the column selectors once: they may depend on the columns' types."""
        if self._head is None:
            self._head = first_rows(X, HEAD_ROWS)
            self._columns = {n: c(X) if callable(c) else c for n, _, c in self._unfitted.transformers}

    def _part_rows(self, name: str, X: Any) -> Any:
        return _safe_indexing(X, self._columns[name], axis=1)

    def _compose(self) -> Any:
        """The fitted ColumnTransformer. Its parts are frozen during `fit`, so that they keep their state."""
        for name, part in self._parts.items():
            part.transform(self._part_rows(name, self._head))
        fitted = {name: part.fitted() for name, part in self._parts.items()}
        composed = clone(self._unfitted)
        composed.transformers = [
            (n, FrozenEstimator(fitted[n]) if n in fitted else t, self._columns[n])
            for n, t, _ in self._unfitted.transformers
        ]
        composed.fit(self._head)
        composed.transformers = self._unfitted.transformers
        composed.transformers_ = [(n, fitted.get(n, t), c) for n, t, c in composed.transformers_]
        return composed
