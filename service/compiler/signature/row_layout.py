"""How an estimator wants its rows handed over, found out from the fitted estimator alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from sklearn.exceptions import NotFittedError
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from registry.errors import Refused

Kind = Literal["frame", "matrix", "texts", "labels", "records"]
"""`frame`: a DataFrame with the names it was fitted with. `matrix`: a 2-D array. `texts`: a sequence of
strings (CountVectorizer). `labels`: a 1-D array (LabelEncoder). `records`: dicts (DictVectorizer)."""

_INNER = ("best_estimator_", "estimator_", "estimator")


def kind(model: Any) -> Kind:
    """Raises `Refused` for estimators whose samples are neither rows, texts, labels nor records."""
    entry = first(model)
    tags = get_tags(entry)
    if tags.input_tags.string and not tags.input_tags.two_d_array:
        return "texts"
    if tags.input_tags.dict and getattr(entry, "input_type", "dict") == "dict":
        return "records"
    if tags.target_tags.one_d_labels:
        return "labels"
    if tags.target_tags.two_d_labels or tags.input_tags.three_d_array or tags.input_tags.dict:
        raise Refused(f"{name(entry)} takes no rows of features, so there is nothing to serve")
    if names(model) is None and (width(model) is not None or tags.input_tags.one_d_array):
        return "matrix"
    return "frame"


def name(model: Any) -> str:
    return type(model).__name__


def _one(model: Any) -> str:
    """Its name in a sentence: "an int", "a dict"."""
    article = "an" if name(model)[0] in "aeiouAEIO" else "a"  # not U: no unit, no UserDict is an "an"
    return f"{article} {name(model)}"


def names(model: Any) -> tuple[str, ...] | None:
    """The feature names it was fitted with."""
    found = _first_attribute(model, "feature_names_in_")
    return None if found is None else tuple(str(n) for n in found)


def width(model: Any) -> int | None:
    """How many features it was fitted with, where it tells."""
    found = _first_attribute(model, "n_features_in_")
    if found is None and get_tags(first(model)).input_tags.one_d_array:  # IsotonicRegression
        return 1
    return None if found is None else int(found)


def first(model: Any) -> Any:
    """What sees the rows first: a pipeline's first step, the estimator inside a search."""
    return list(_inwards(model))[-1]


def _inwards(model: Any) -> Iterator[Any]:
    """`model`, then whatever receives its rows unchanged, outermost first."""
    while True:
        yield model
        steps = getattr(model, "steps", None)
        inner = None
        if hasattr(model, "transformer_list"):  # FeatureUnion
            steps = model.transformer_list
        if steps:
            inner = next((step for _, step in steps if step not in (None, "passthrough")), None)
        elif not hasattr(model, "n_features_in_"):
            inner = next((getattr(model, a) for a in _INNER if hasattr(model, a)), None)
        elif hasattr(model, "best_estimator_"):
            inner = model.best_estimator_
        if inner is None or isinstance(inner, str):
            return
        model = inner


def _first_attribute(model: Any, attribute: str) -> Any:
    return next((getattr(m, attribute) for m in _inwards(model) if hasattr(m, attribute)), None)


def require_servable(model: Any) -> None:
    """Raises `Refused`, by name, for what is no estimator, is not fitted, or has nothing to answer with."""
    if isinstance(model, type):
        raise Refused(f"the pickle holds the class {model.__name__} itself, not a fitted estimator")
    if not hasattr(model, "fit"):
        raise Refused(f"the pickle holds {_one(model)}, which is no scikit-learn estimator")
    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise Refused(f"{name(model)} is not fitted; call fit before publishing it") from error
    except (TypeError, AttributeError) as error:
        raise Refused(f"the pickle holds {_one(model)}, which is no scikit-learn estimator") from error
    if not (hasattr(model, "predict") or hasattr(model, "transform")):
        raise Refused(
            f"{name(model)} has neither predict nor transform after fit, so it cannot answer for new rows"
        )
