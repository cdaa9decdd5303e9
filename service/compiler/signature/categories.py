"""The categories of the fitted encoders inside an estimator, feature by feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from registry.signature import Scalar
from service.compiler.signature import composites
from service.compiler.signature.composites import ColumnSource, EstimatorVisit
from service.compiler.signature.estimator import input_form


def encoder_categories(model: Any, names: list[str]) -> dict[str, tuple[Scalar, ...]]:
    """Categories by feature name, for features whose own values reach an encoder.

    Where several encoders receive a feature: the categories that none of them rejects. Encoders that accept
    unknown values reject none.
    """
    accepted: dict[str, tuple[Scalar, ...]] = {}  # by all encoders that reject unknown values
    fitted: dict[str, tuple[Scalar, ...]] = {}  # in any of the other encoders
    for visit in composites.walk(model, [ColumnSource(i) for i in range(len(names))]):
        for column, values in enumerate(_column_categories(visit)):
            source = visit.sources[column] if column < len(visit.sources) else None
            if source is None or source.steps or not values:
                continue
            name = names[source.feature]
            if getattr(visit.estimator, "handle_unknown", None) == "error":
                accepted[name] = tuple(v for v in accepted.get(name, values) if v in values)
            else:
                fitted[name] = tuple(dict.fromkeys((*fitted.get(name, ()), *values)))
    return {name: values for name, values in (fitted | accepted).items() if values}


def _column_categories(visit: EstimatorVisit) -> Iterator[tuple[Scalar, ...]]:
    """For an encoder: the categories of each of its columns, in order."""
    encoder = visit.estimator
    if hasattr(encoder, "vocabulary_") and hasattr(encoder, "separator"):  # DictVectorizer
        yield from _record_categories(encoder)
    elif visit.is_composite:
        return
    elif hasattr(encoder, "categories_"):
        yield from map(_scalars, encoder.categories_)
    elif isinstance(getattr(encoder, "classes_", None), np.ndarray) and input_form(encoder) == "labels":
        yield _scalars(encoder.classes_)


def _record_categories(vectorizer: Any) -> Iterator[tuple[Scalar, ...]]:
    """A DictVectorizer names the strings it was fitted with `city=Rome`, and numbers by their field alone."""
    pairs = [str(name).partition(vectorizer.separator) for name in vectorizer.feature_names_]
    for field in dict.fromkeys(name for name, _, _ in pairs):
        yield tuple(value for name, separator, value in pairs if name == field and separator)


def _scalars(values: Any) -> tuple[Scalar, ...]:
    """Without the missing value: it makes a feature nullable and is not a category. Empty for mixed types."""
    present = [v for v in np.asarray(values).tolist() if v is not None and v == v]
    if all(isinstance(v, str) for v in present) or all(isinstance(v, bool | int | float) for v in present):
        return tuple(present)
    return ()
