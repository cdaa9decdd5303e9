"""What the fitted encoders inside an estimator know of its features: categories, text, missing values.

An encoder looks a value up among its categories, so the value must have their type: "1" is not 1, and None is
not NaN. These functions derive from the fitted estimator alone in which form each feature reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction import DictVectorizer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.utils import get_tags

from registry.errors import Refused
from registry.rows import Array
from registry.signature import Scalar
from service.compiler.signature import composites
from service.compiler.signature.composites import ColumnSource, EstimatorVisit
from service.runtime.codec.columns import show

CATEGORY_TYPES = (str, bool, int, float, np.bool_, np.integer, np.floating)
"""Types of categories that a column of a signature can hold. Missing values are no categories."""


@dataclass(frozen=True)
class EncodedColumn:
    """One column of a fitted encoder."""

    encoder: Any
    position: int
    feature: int | None  # None: the column does not hold a feature's own values
    categories: list[Any]  # without missing values
    has_none: bool = False
    has_nan: bool = False
    holds_objects: bool = False  # the encoder was fitted on Python objects, not on an array of numbers
    is_float32: bool = False

    @property
    def is_text(self) -> bool:
        return bool(self.categories) and all(isinstance(v, str) for v in self.categories)


@dataclass(frozen=True)
class ColumnForm:
    """The form in which one feature is passed to the estimator."""

    missing: float | None = np.nan
    as_objects: bool = False  # numbers and booleans as Python objects


def encoded_columns(model: Any, count: int) -> Iterator[EncodedColumn]:
    """The columns of all fitted encoders inside `model`, which has `count` features."""
    for visit in _visits(model, count):
        for position, values in enumerate(_category_arrays(visit)):
            source = visit.sources[position] if position < len(visit.sources) else None
            own = source.feature if source is not None and not source.steps else None
            yield _encoded_column(visit.estimator, position, own, values)


def _visits(model: Any, count: int) -> Iterator[EstimatorVisit]:
    """As `composites.walk`, with the preprocessor that histogram boosting has for its categorical columns."""
    for visit in composites.walk(model, [ColumnSource(i) for i in range(count)]):
        yield visit
        if (own := getattr(visit.estimator, "_preprocessor", None)) is not None:
            yield from composites.walk(own, visit.sources)


def _category_arrays(visit: EstimatorVisit) -> Iterator[Array]:
    """For an encoder: the categories of each of its columns, in order, with missing values."""
    encoder = visit.estimator
    if isinstance(encoder, DictVectorizer):
        yield from _record_categories(encoder)
    elif visit.is_composite:
        return
    elif hasattr(encoder, "categories_"):
        yield from map(np.asarray, encoder.categories_)
    elif get_tags(encoder).target_tags.one_d_labels and hasattr(encoder, "classes_"):
        yield np.asarray(encoder.classes_)


def _record_categories(vectorizer: DictVectorizer) -> Iterator[Array]:
    """A DictVectorizer names the strings it was fitted with `city=Rome`, and numbers by their field alone."""
    pairs = [str(name).partition(vectorizer.separator) for name in vectorizer.feature_names_]
    for field in dict.fromkeys(name for name, _, _ in pairs):
        texts = [value for name, separator, value in pairs if name == field and separator]
        yield np.array(texts, dtype=object)


def _encoded_column(encoder: Any, position: int, feature: int | None, values: Array) -> EncodedColumn:
    if values.dtype.kind in "mM":  # `tolist` would give integers for some units
        present = list(values[~np.isnat(values)])
        return EncodedColumn(encoder, position, feature, present)
    listed = [_python_value(v) for v in values.tolist()]
    return EncodedColumn(
        encoder,
        position,
        feature,
        categories=[v for v in listed if not is_missing(v)],
        has_none=any(v is None for v in listed),
        has_nan=any(isinstance(v, float) and v != v for v in listed),
        holds_objects=values.dtype == object,
        is_float32=values.dtype == np.float32,
    )


def _python_value(value: Any) -> Any:
    """`value` as Python's own type: an array of objects may hold numpy's `str_` and `int64`."""
    is_scalar = isinstance(value, np.generic) and value.dtype.kind not in "mM"
    return value.item() if is_scalar else value


def is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and value != value)


def _is_column_value(value: Any) -> bool:
    return isinstance(value, CATEGORY_TYPES) and not isinstance(value, np.timedelta64)  # a numpy integer


def require_column_types(columns: list[EncodedColumn], names: list[str]) -> None:
    """Raise `Refused`, naming the column, for categories of types that no column of a signature holds."""
    for column in columns:
        kinds = {type(v) for v in column.categories if not _is_column_value(v)}
        texts = any(isinstance(v, str) for v in column.categories)
        if kinds:
            kind = sorted(k.__name__ for k in kinds)[0]
            raise Refused(
                f"{describe_column(column, names)} was fitted on values of type {kind}, which requests and "
                "files cannot hold as a feature; fit it on numbers or on text "
                "(of a date: the days since another date, or its text)"
            )
        if texts and not column.is_text:
            raise Refused(
                f"{describe_column(column, names)} was fitted on text and numbers, which no column holds "
                "together; fit it on text"
            )


def describe_column(column: EncodedColumn, names: list[str]) -> str:
    """Examples: "the OneHotEncoder of 'city'", "the OneHotEncoder of its column 2"."""
    encoder = type(column.encoder).__name__
    if column.feature is not None:
        return f"the {encoder} of {show(names[column.feature])}"
    own_names = getattr(column.encoder, "feature_names_in_", ())
    if column.position < len(own_names):
        return f"the {encoder} of {show(str(own_names[column.position]))}"
    return f"the {encoder} of its column {column.position}"


def categories_by_feature(columns: list[EncodedColumn], names: list[str]) -> dict[str, tuple[Scalar, ...]]:
    """Categories by feature name, for features whose own values reach an encoder.

    Where several encoders receive a feature: the categories that none of them rejects. Encoders that accept
    unknown values reject none.
    """
    accepted: dict[str, tuple[Scalar, ...]] = {}  # by all encoders that reject unknown values
    fitted: dict[str, tuple[Scalar, ...]] = {}  # in any of the other encoders
    for column in columns:
        if column.feature is None or not column.categories:
            continue
        name, values = names[column.feature], tuple(column.categories)
        if getattr(column.encoder, "handle_unknown", None) == "error":
            accepted[name] = tuple(v for v in accepted.get(name, values) if v in values)
        else:
            fitted[name] = tuple(dict.fromkeys((*fitted.get(name, ()), *values)))
    return {name: values for name, values in (fitted | accepted).items() if values}


def features_with_missing(columns: list[EncodedColumn], names: list[str]) -> set[str]:
    """The features whose encoders were fitted on missing values too."""
    return {names[c.feature] for c in columns if c.feature is not None and (c.has_none or c.has_nan)}


def imputed_features(model: Any, names: list[str]) -> set[str]:
    """The features whose own missing values an imputer replaces."""
    return {
        names[source.feature]
        for visit in _visits(model, len(names))
        if type(visit.estimator).__module__.startswith("sklearn.impute")
        and not isinstance(visit.estimator, MissingIndicator)
        and pd.isna(visit.estimator.missing_values)
        for source in visit.sources
        if source is not None and not source.steps
    }


def features_with_empty_text(columns: list[EncodedColumn], names: list[str]) -> set[str]:
    """The features whose encoders were fitted on the empty string."""
    return {names[c.feature] for c in columns if c.feature is not None and "" in c.categories}


def float32_features(columns: list[EncodedColumn], names: list[str]) -> set[str]:
    """The features whose encoders look numbers up that were rounded to float32."""
    return {names[c.feature] for c in columns if c.feature is not None and c.is_float32}


def text_features(model: Any, columns: list[EncodedColumn], names: list[str]) -> set[str]:
    """The features of which the estimator knows only text: encoders of strings, and vectorizers of texts."""
    encoded = {names[c.feature] for c in columns if c.feature is not None and c.is_text}
    return encoded | {
        names[visit.sources[0].feature]
        for visit in _visits(model, len(names))
        if len(visit.sources) == 1 and visit.sources[0] is not None and _takes_texts(visit)
    }


def _takes_texts(visit: EstimatorVisit) -> bool:
    if visit.is_composite:
        return False
    tags = get_tags(visit.estimator).input_tags
    return bool(tags.string and not tags.two_d_array)


def column_forms(model: Any, count: int) -> tuple[ColumnForm, ...]:
    """For each feature, the form that the estimator was fitted with.

    A missing value is None where an encoder has None among its categories, or where an imputer looks for
    None; else it is NaN, which imputers of `pd.NA` accept too.
    """
    objects: set[int] = set()
    with_none: set[int] = set()
    with_nan: set[int] = set()
    for column in encoded_columns(model, count):
        if column.feature is None:
            continue
        if column.holds_objects:
            objects.add(column.feature)
        if column.has_none:
            with_none.add(column.feature)
        if column.has_nan:
            with_nan.add(column.feature)
    with_none |= _imputed_none(model, count) - with_nan
    return tuple(
        ColumnForm(None if i in with_none else np.nan, i in objects or i in with_none) for i in range(count)
    )


def _imputed_none(model: Any, count: int) -> set[int]:
    """Features whose own values reach an imputer, or an indicator, of None."""
    return {
        source.feature
        for visit in _visits(model, count)
        if isinstance(visit.estimator, SimpleImputer | MissingIndicator)
        and visit.estimator.missing_values is None
        for source in visit.sources
        if source is not None and not source.steps
    }


def require_one_missing_value(columns: list[EncodedColumn], names: list[str], nullable: set[str]) -> None:
    """Raise `Refused` for a nullable feature whose encoders distinguish None from NaN."""
    for feature, name in enumerate(names):
        own = [c for c in columns if c.feature == feature]
        if name in nullable and any(c.has_none for c in own) and any(c.has_nan for c in own):
            raise Refused(
                f"{describe_column(own[0], names)} was fitted on None and on NaN as two categories, "
                "and a missing value of a request or a file is only one; replace one by the other before "
                "fitting, or "
                f'pass the signature {{"inputs": [{{"name": "{name}", "nullable": false}}]}}'
            )
