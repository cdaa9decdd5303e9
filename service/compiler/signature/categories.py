"""Which values the fitted encoders inside an estimator know, feature by feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from registry.signature import Scalar
from service.compiler.signature import row_layout


def known(model: Any, names: list[str]) -> dict[str, tuple[Scalar, ...]]:
    """Categories by feature name, for features that reach an encoder unchanged.

    Looks through searches, pipelines, column transformers, unions and ensembles, past steps that keep
    the columns as they are (imputers, scalers). What it cannot follow is left out.
    """
    found: dict[str, tuple[Scalar, ...]] = {}
    for index, values in _walk(model, list(range(len(names)))):
        if index is not None and values:
            found.setdefault(names[index], values)
    return found


def _walk(model: Any, columns: list[int | None]) -> Iterator[tuple[int | None, tuple[Scalar, ...]]]:
    """Yields (feature, categories); `columns[i]` is the feature in `model`'s column i, None if unknown."""
    if hasattr(model, "steps"):
        for _, step in model.steps:
            if step in (None, "passthrough"):
                continue
            yield from _walk(step, columns)
            if not _keeps_columns(step, len(columns)):
                return
    elif hasattr(model, "transformers_") and hasattr(model, "_transformer_to_input_indices"):
        for name, transformer, _ in model.transformers_:
            if not isinstance(transformer, str):
                picked = model._transformer_to_input_indices.get(name, [])
                yield from _walk(transformer, [columns[i] for i in picked])
    elif hasattr(model, "vocabulary_") and hasattr(model, "separator"):  # DictVectorizer
        yield from _records(model, columns)
    elif hasattr(model, "categories_"):
        for column, values in zip(columns, model.categories_, strict=False):
            yield column, _scalars(values)
    elif isinstance(getattr(model, "classes_", None), np.ndarray) and row_layout.kind(model) == "labels":
        yield columns[0], _scalars(model.classes_)
    else:
        for inner in _inside(model):
            yield from _walk(inner, columns)


def _records(model: Any, columns: list[int | None]) -> Iterator[tuple[int | None, tuple[Scalar, ...]]]:
    """A DictVectorizer names what it has seen of a string `city=Rome`, and numbers by themselves."""
    pairs = [str(name).partition(model.separator) for name in model.feature_names_]
    for column, field in zip(columns, dict.fromkeys(name for name, _, _ in pairs), strict=False):
        yield column, tuple(value for name, between, value in pairs if name == field and between)


def _inside(model: Any) -> list[Any]:
    """Estimators that see the same columns as `model` does."""
    if hasattr(model, "best_estimator_"):
        return [model.best_estimator_]
    if hasattr(model, "transformer_list"):
        return [t for _, t in model.transformer_list if not isinstance(t, str)]
    if hasattr(model, "estimators_features_"):
        return []
    inner = getattr(model, "estimator_", None)
    several = getattr(model, "estimators_", [])
    return [e for e in [inner, *np.ravel(np.asarray(several, dtype=object))[:1]] if hasattr(e, "fit")]


def _keeps_columns(step: Any, width: int) -> bool:
    """True for imputers and scalers: as many columns out as in, each made of its own."""
    if not hasattr(step, "statistics_") and not hasattr(step, "scale_"):
        return False
    return getattr(step, "indicator_", None) is None and getattr(step, "n_features_in_", width) == width


def _scalars(values: Any) -> tuple[Scalar, ...]:
    """Without the missing value, which is not a category but nullability. Empty when kinds are mixed."""
    plain = [v for v in np.asarray(values).tolist() if v is not None and v == v]
    if all(isinstance(v, str) for v in plain) or all(isinstance(v, bool | int | float) for v in plain):
        return tuple(plain)
    return ()
