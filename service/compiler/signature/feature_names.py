"""The names of a model's features: from the estimator, the example, the given signature, or numbered."""

from __future__ import annotations

from typing import Any

from registry.errors import Refused
from service.compiler.example import ExampleTable
from service.compiler.signature import estimator
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.estimator import InputForm
from service.runtime.codec.columns import show


def name_features(
    model: Any, form: InputForm, sample: ExampleTable | None, corrections: Corrections, warnings: list[str]
) -> list[str]:
    """The features in the model's order; appends a warning for columns of the example that are left out.

    Raises `Refused` when the example or the given signature does not fit the model's features.
    """
    fitted = _fitted_names(model, form)
    if fitted is not None:
        corrections.require_features(fitted)
        if sample is not None:
            _require_columns(model, fitted, sample, warnings)
        return fitted
    count = 1 if form in ("texts", "labels") else estimator.feature_count(model)
    if sample is not None:
        return _names_from_example(model, count, sample, corrections, warnings)
    if corrections.names and (count is None or len(corrections.names) == count):
        return corrections.names
    if count is None:
        raise Refused(
            f"{type(model).__name__} does not record its number of features; publish it with an example"
        )
    if len(corrections.names) > count:
        _require_count(model, count, corrections.names, "the signature names")
    names = _default_names(form, count)
    corrections.require_features(names)
    return names


def _fitted_names(model: Any, form: InputForm) -> list[str] | None:
    if form == "records":
        vectorizer = estimator.first_receiver(model)
        vocabulary = getattr(vectorizer, "feature_names_", None)
        separator = getattr(vectorizer, "separator", "=")
        return None if vocabulary is None else list(dict.fromkeys(n.split(separator)[0] for n in vocabulary))
    names = estimator.feature_names(model)
    return None if names is None else list(names)


def _names_from_example(
    model: Any, count: int | None, sample: ExampleTable, corrections: Corrections, warnings: list[str]
) -> list[str]:
    names = list(sample.columns)
    numbered = [f"x{i}" for i in range(count or 0)]
    if count is not None and len(names) != count and numbered and set(numbered) <= set(names):
        _require_columns(model, numbered, sample, warnings)
        names = numbered
    _require_count(model, count, names, "the example has the columns")
    corrections.require_features(names)
    return names


def _default_names(form: InputForm, count: int) -> list[str]:
    if form == "texts":
        return ["text"]
    return ["value"] if form == "labels" else [f"x{i}" for i in range(count)]


def _require_columns(model: Any, names: list[str], sample: ExampleTable, warnings: list[str]) -> None:
    if missing := [n for n in names if n not in sample.columns]:
        raise Refused(
            f"the example lacks {list_names(missing)}, which {type(model).__name__} was fitted with; "
            f"it has {list_names(list(sample.columns))}"
        )
    if extra := [n for n in sample.columns if n not in names]:
        warnings.append(f"the example's {list_names(extra)} is not a feature of the model and was left out")


def _require_count(model: Any, count: int | None, names: list[str], subject: str) -> None:
    if count is not None and len(names) != count:
        raise Refused(
            f"{type(model).__name__} was fitted with {count} features, "
            f"{subject} {list_names(names)} ({len(names)}); "
            "if one of them holds the true value, name it as the target"
        )


def list_names(names: list[str]) -> str:
    """The first ten names in quotes, and how many more there are."""
    first = ", ".join(show(n) for n in names[:10])
    return first if len(names) <= 10 else f"{first} and {len(names) - 10} more"
