"""How a fitted estimator takes rows, and the estimator behind the serving interface.

The form of the rows is derived from the fitted estimator alone: its tags, its feature names and its number of
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from registry.errors import Refused
from registry.rows import NUMPY_DTYPES, Array, Outputs, Rows
from registry.signature import Input, Signature
from service.compiler.signature import answers, composites
from service.compiler.signature.encoders import ColumnForm, column_forms, is_missing

InputForm = Literal["frame", "matrix", "texts", "labels", "records"]
"""`frame`: a DataFrame with the names it was fitted with. `matrix`: a 2-D array. `texts`: a sequence of
strings (CountVectorizer). `labels`: a 1-D array (LabelEncoder). `records`: dicts (DictVectorizer)."""

_PYTHON_TYPES: dict[str, type] = {
    "float64": float,
    "float32": float,
    "int64": int,
    "bool": bool,
    "string": str,
}


class EstimatorRuntime:
    """`model` behind the serving interface. Parity compares with it, and the isolated runtime runs it."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self.model = model
        self.signature = signature
        self._form = input_form(model)
        self.columns = column_forms(model, len(signature.inputs))

    def run(self, rows: Rows) -> Outputs:
        """The estimator's own outputs, in the signature's dtypes.

        Raises whatever the estimator raises (mostly ValueError) for rows it does not accept.
        """
        return self.answer(arrange(self._form, rows, self.signature.inputs, self.columns), len(rows))

    def series(self, rows: Rows) -> list[pd.Series]:
        """One column per feature, as the estimator receives it."""
        return _series(rows, self.signature.inputs, self.columns)

    def from_series(self, columns: list[pd.Series]) -> Any:
        """The columns in the form that the estimator's methods take."""
        return _from_series(self._form, columns)

    def answer(self, arranged: Any, count: int) -> Outputs:
        """As `run`, for `count` rows in the estimator's own form."""
        outputs = answers.answer(self.model, self.signature.task, arranged)
        typed = {o.name: as_dtype(outputs[o.name], o.dtype) for o in self.signature.outputs}
        if any(len(array) != count for array in typed.values()):
            raise ValueError(f"{type(self.model).__name__} does not return one answer per row")
        return typed


def require_servable(model: Any) -> None:
    """Raise `Refused`, naming the type, unless `model` is a fitted estimator with predict or transform."""
    name = type(model).__name__
    if isinstance(model, type):
        raise Refused(f"the pickle holds the class {model.__name__} itself, not a fitted estimator")
    if not hasattr(model, "fit"):
        raise Refused(f"the pickle holds {_with_article(name)}, not a scikit-learn estimator")
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise Refused(f"{name} is not fitted; call fit before publishing it") from error
    except (TypeError, AttributeError) as error:
        raise Refused(f"the pickle holds {_with_article(name)}, not a scikit-learn estimator") from error
    if not (hasattr(model, "predict") or hasattr(model, "transform")):
        raise Refused(f"{name} has neither predict nor transform after fit, so it cannot answer for new rows")


def _with_article(name: str) -> str:
    """Examples: "an int", "a dict". Type names with U ("UserDict") are pronounced with a consonant."""
    return f"{'an' if name[0] in 'aeiouAEIO' else 'a'} {name}"


def input_form(model: Any) -> InputForm:
    """Raises `Refused` for estimators that take neither rows of features, texts, labels nor records."""
    receiver = first_receiver(model)
    tags = get_tags(receiver)
    if tags.input_tags.string and not tags.input_tags.two_d_array:
        return "texts"
    if tags.input_tags.dict and getattr(receiver, "input_type", "dict") == "dict":
        return "records"
    if tags.target_tags.one_d_labels:
        return "labels"
    if tags.target_tags.two_d_labels or tags.input_tags.three_d_array or tags.input_tags.dict:
        raise Refused(f"{type(receiver).__name__} does not take rows of features and cannot be served")
    if feature_names(model) is None and (feature_count(model) is not None or tags.input_tags.one_d_array):
        return "matrix"
    return "frame"


def first_receiver(model: Any) -> Any:
    """The innermost estimator that receives the model's rows unchanged, e.g. a pipeline's first step."""
    return list(composites.row_receivers(model))[-1]


def feature_names(model: Any) -> tuple[str, ...] | None:
    """The names that `model` was fitted with; None when it was fitted without names."""
    names = _first_attribute(model, "feature_names_in_")
    return None if names is None else tuple(str(n) for n in names)


def feature_count(model: Any) -> int | None:
    """The number of features that `model` was fitted with; None when it does not record it."""
    count = _first_attribute(model, "n_features_in_")
    if count is None and get_tags(first_receiver(model)).input_tags.one_d_array:  # IsotonicRegression
        return 1
    return None if count is None else int(count)


def _first_attribute(model: Any, attribute: str) -> Any:
    receivers = composites.row_receivers(model)
    return next((getattr(e, attribute) for e in receivers if hasattr(e, attribute)), None)


def as_dtype(array: Array, dtype: str) -> Array:
    """`array` in a signature's dtype; strings become an object array of `str`."""
    if dtype == "string":
        return array.astype(str).astype(object)
    return array.astype(NUMPY_DTYPES[dtype], copy=False)


def arrange(form: InputForm, rows: Rows, inputs: tuple[Input, ...], forms: Sequence[ColumnForm] = ()) -> Any:
    """`rows` in the form that an estimator's methods take; `forms` are those of `column_forms`."""
    forms = forms or [ColumnForm()] * len(inputs)
    if form == "matrix":
        return _matrix(rows, inputs, forms)
    return _from_series(form, _series(rows, inputs, forms))


def _series(rows: Rows, inputs: tuple[Input, ...], forms: Sequence[ColumnForm]) -> list[pd.Series]:
    # Without a dtype, pandas would make its own type of text of the objects, with NaN for None.
    columns = _columns(rows, inputs, forms)
    return [pd.Series(c, dtype=c.dtype, name=i.name) for c, i in zip(columns, inputs, strict=True)]


def _from_series(form: InputForm, columns: list[pd.Series]) -> Any:
    if form in ("texts", "labels"):
        return columns[0].to_numpy()
    if form == "records":
        return _records(columns)
    frame = pd.DataFrame({str(c.name): c for c in columns}, columns=[str(c.name) for c in columns])
    if form == "frame":
        return frame
    has_objects = any(c.dtype == object or pd.api.types.is_string_dtype(c.dtype) for c in columns)
    if has_objects or frame.to_numpy().dtype != object:
        return frame.to_numpy()
    return frame.to_numpy(np.float64, na_value=np.nan)  # pandas' own nullable types


def _columns(rows: Rows, inputs: tuple[Input, ...], forms: Sequence[ColumnForm]) -> list[Array]:
    """One array per feature in its form: the signature's dtype, or objects."""
    columns = rows.columns
    if columns is None:
        assert rows.matrix is not None
        columns = tuple(rows.matrix.T)
    return [_typed(c, feature, form) for c, feature, form in zip(columns, inputs, forms, strict=True)]


def _typed(column: Array, feature: Input, form: ColumnForm) -> Array:
    if feature.dtype == "string" or form.as_objects:
        kind = _PYTHON_TYPES[feature.dtype]
        objects = np.empty(len(column), dtype=object)
        objects[:] = [form.missing if is_missing(v) else kind(v) for v in column.tolist()]
        return objects
    # Of a nullable feature float64 in every block: its type must not depend on the other rows.
    is_float64 = feature.dtype in ("int64", "bool") and column.dtype.kind == "f"
    if is_float64 and (feature.nullable or np.isnan(column).any()):
        return column
    return column.astype(NUMPY_DTYPES[feature.dtype], copy=False)


def _matrix(rows: Rows, inputs: tuple[Input, ...], forms: Sequence[ColumnForm]) -> Array:
    """[n, features]: the features' common dtype, else float64; objects when one of them is passed so."""
    dtypes = {i.dtype for i in inputs}
    if rows.matrix is not None and not any(f.as_objects for f in forms):
        dtype = NUMPY_DTYPES[dtypes.pop()] if len(dtypes) == 1 else np.float64
        may_miss = any(i.nullable for i in inputs) or np.isnan(rows.matrix).any()
        fits = np.issubdtype(dtype, np.floating) or not may_miss
        return rows.matrix.astype(dtype, copy=False) if fits else rows.matrix
    matrix = np.empty((len(rows), len(inputs)), dtype=object)
    for i, column in enumerate(_columns(rows, inputs, forms)):
        matrix[:, i] = column
    return matrix


def _records(columns: list[pd.Series]) -> list[dict[str, Any]]:
    """One dict per row, without the missing values."""
    names = [str(c.name) for c in columns]
    return [
        {name: value for name, value in zip(names, row, strict=True) if not is_missing(value)}
        for row in zip(*(c.tolist() for c in columns), strict=True)
    ]
