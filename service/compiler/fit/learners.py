"""Single transformers fitted over partitions. `transformers.py` chooses among them and composes them.

Nothing is approximated: what cannot be fitted by parts to what one fit over all rows would give, or by the
estimator's own `partial_fit`, is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from registry.errors import Refused
from service.compiler.fit.blocks import head

HEAD = 100
"""So many rows show a transformer that learns nothing else what the columns are."""


class Learner:
    """Fed every partition once in each of its passes over the data."""

    passes: tuple[str, ...] = ()  # what each pass fits, for people

    def feed(self, index: int, X: Any) -> None:
        """One more partition, in pass `index`. `X`: rows as the transformer takes them."""

    def end(self, index: int) -> None:
        """Every partition has been in pass `index`."""

    def transform(self, X: Any) -> Any:
        """After the last pass."""
        raise NotImplementedError

    def fitted(self) -> Any:
        """scikit-learn's own object, after the last pass and once rows were transformed."""
        raise NotImplementedError


class _One(Learner):
    def __init__(self, transformer: Any) -> None:
        self._transformer = clone(transformer)

    def transform(self, X: Any) -> Any:
        return self._transformer.transform(X)

    def fitted(self) -> Any:
        return self._transformer


class ByParts(_One):
    """Its own `partial_fit`: scalers, IncrementalPCA, MiniBatchKMeans, ..."""

    def __init__(self, name: str, transformer: Any) -> None:
        super().__init__(transformer)
        self.passes = (name,)

    def feed(self, index: int, X: Any) -> None:
        self._transformer.partial_fit(X)


class Stateless(_One):
    """Learns nothing from the rows: Normalizer, FunctionTransformer, ..."""

    _seen = False

    def transform(self, X: Any) -> Any:
        if not self._seen:
            self._transformer.fit(head(X, HEAD))  # notes how many columns there are, and their names
            self._seen = True
        return self._transformer.transform(X)


class Categories(_One):
    """An encoder: all it takes from the rows is which values there are."""

    def __init__(self, name: str, encoder: Any) -> None:
        super().__init__(encoder)
        if encoder.min_frequency is not None or encoder.max_categories is not None:
            raise refused(name, encoder, "counts its categories")
        self.passes = (name,)
        self._values: list[Any] = []  # a Series of distinct values for each column
        self._named = False

    def feed(self, index: int, X: Any) -> None:
        self._named = isinstance(X, pd.DataFrame)
        found = X if self._named else pd.DataFrame(X)
        new = [found.iloc[:, i].drop_duplicates() for i in range(found.shape[1])]
        if self._values:
            new = [pd.concat(pair).drop_duplicates() for pair in zip(self._values, new, strict=True)]
        self._values = new

    def end(self, index: int) -> None:
        most = max(len(v) for v in self._values)
        columns = [v.iloc[np.arange(most) % len(v)].reset_index(drop=True) for v in self._values]
        table = pd.concat(columns, axis=1)
        self._transformer.fit(table if self._named else table.to_numpy())


class Means(_One):
    """A SimpleImputer that fills in the mean."""

    def __init__(self, name: str, imputer: Any) -> None:
        super().__init__(imputer)
        for wanted, given in (("strategy", "mean"), ("add_indicator", False)):
            if getattr(imputer, wanted) != given:
                raise refused(
                    name, imputer, f"sees all rows at once with {wanted}={getattr(imputer, wanted)!r}"
                )
        if not pd.isna(imputer.missing_values):
            raise refused(name, imputer, f"takes {imputer.missing_values!r} for missing")
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
        nothing = np.full(len(self._sums), np.nan)
        means = np.divide(self._sums, self._counts, out=nothing, where=self._counts > 0).reshape(1, -1)
        self._transformer.fit(means if self._names is None else pd.DataFrame(means, columns=self._names))


def refused(name: str, transformer: Any, why: str) -> Refused:
    return Refused(
        f"{type(transformer).__name__} (step {name!r}) {why}, so it cannot be fitted over partitions; "
        "take another one, or the strategy single"
    )
