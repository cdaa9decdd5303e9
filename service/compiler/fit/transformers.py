"""A pipeline's transformers fitted over partitions, in as many passes over the data as it takes.

What a pass fits is applied to the rows of the passes after it: a scaler first, then an IncrementalPCA of the
scaled rows, each over all partitions.
"""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder
from sklearn.utils import _safe_indexing, get_tags

from service.compiler.fit.blocks import head
from service.compiler.fit.learners import HEAD, ByParts, Categories, Learner, Means, Stateless, refused


def learner(name: str, transformer: Any) -> Learner:
    """Raises `Refused`, by name, for what can only be fitted to all rows at once."""
    if isinstance(transformer, Pipeline):
        return Chain(transformer.steps)
    if isinstance(transformer, ColumnTransformer):
        return Columns(name, transformer)
    if hasattr(transformer, "partial_fit"):
        return ByParts(name, transformer)
    if not get_tags(transformer).requires_fit:
        return Stateless(transformer)
    if isinstance(transformer, OneHotEncoder | OrdinalEncoder):
        return Categories(name, transformer)
    if isinstance(transformer, SimpleImputer):
        return Means(name, transformer)
    raise refused(name, transformer, "has no partial_fit")


class Chain(Learner):
    """Steps one after another, as a Pipeline has them."""

    def __init__(self, steps: list[tuple[str, Any]]) -> None:
        self._steps = [(n, t if t in (None, "passthrough") else learner(n, t)) for n, t in steps]
        self.passes = tuple(p for s in self._learners() for p in s.passes)

    def feed(self, index: int, X: Any) -> None:
        for step in self._learners():
            if index < len(step.passes):
                step.feed(index, X)
                return
            index -= len(step.passes)
            X = step.transform(X)

    def end(self, index: int) -> None:
        for step in self._learners():
            if 0 <= index < len(step.passes):
                step.end(index)
            index -= len(step.passes)

    def transform(self, X: Any) -> Any:
        for step in self._learners():
            X = step.transform(X)
        return X

    def steps(self) -> list[tuple[str, Any]]:
        return [(n, s.fitted() if isinstance(s, Learner) else s) for n, s in self._steps]

    def fitted(self) -> Any:
        return Pipeline(self.steps())

    def _learners(self) -> list[Learner]:
        return [s for _, s in self._steps if isinstance(s, Learner)]


class Columns(Learner):
    """A ColumnTransformer: each part sees its own columns, all in the same passes."""

    def __init__(self, name: str, transformer: Any) -> None:
        if not isinstance(transformer.remainder, str):
            raise refused(name, transformer, "has a transformer as its remainder")
        self._given = clone(transformer)
        self._parts = {n: learner(n, t) for n, t, _ in self._given.transformers if not isinstance(t, str)}
        longest = max((len(p.passes) for p in self._parts.values()), default=0)
        self.passes = tuple(
            ", ".join(p.passes[i] for p in self._parts.values() if i < len(p.passes)) for i in range(longest)
        )
        self._which: dict[str, Any] = {}
        self._head: Any = None
        self._whole: Any = None

    def feed(self, index: int, X: Any) -> None:
        self._look(X)
        for name, part in self._parts.items():
            if index < len(part.passes):
                part.feed(index, self._seen_by(name, X))

    def end(self, index: int) -> None:
        for part in self._parts.values():
            if index < len(part.passes):
                part.end(index)

    def transform(self, X: Any) -> Any:
        if self._whole is None:
            self._look(X)
            self._whole = self._composed()
        return self._whole.transform(X)

    def fitted(self) -> Any:
        return self._whole

    def _look(self, X: Any) -> None:
        """Which columns a part takes may depend on their types: that is asked once."""
        if self._head is None:
            self._head = head(X, HEAD)
            self._which = {n: c(X) if callable(c) else c for n, _, c in self._given.transformers}

    def _seen_by(self, name: str, X: Any) -> Any:
        return _safe_indexing(X, self._which[name], axis=1)

    def _composed(self) -> Any:
        """The ColumnTransformer itself, of parts that are fitted already and are not fitted again."""
        for name, part in self._parts.items():
            part.transform(self._seen_by(name, self._head))
        fitted = {name: part.fitted() for name, part in self._parts.items()}
        whole = clone(self._given)
        whole.transformers = [
            (n, FrozenEstimator(fitted[n]) if n in fitted else t, self._which[n])
            for n, t, _ in self._given.transformers
        ]
        whole.fit(self._head)
        whole.transformers = self._given.transformers
        whole.transformers_ = [(n, fitted.get(n, t), c) for n, t, c in whole.transformers_]
        return whole
