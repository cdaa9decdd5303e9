"""The names of a model's features, and how the example must fit them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer, LabelEncoder

from registry.errors import Refused
from service.compiler.example import ExampleTable
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.estimator import input_form
from service.compiler.signature.feature_names import list_names, name_features

NUMBERS = np.arange(12.0).reshape(4, 3)
PLAIN = LinearRegression().fit(NUMBERS, NUMBERS[:, 0])
NAMED = LinearRegression().fit(pd.DataFrame(NUMBERS, columns=["p", "q", "r"]), NUMBERS[:, 0])


def columns(*names: str) -> ExampleTable:
    return ExampleTable({n: pa.array([1.0]) for n in names})


def names_of(
    model: Any, sample: ExampleTable | None = None, given: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """(names, warnings)."""
    warnings: list[str] = []
    corrections = Corrections.read({"inputs": [{"name": n} for n in given]})
    return name_features(model, input_form(model), sample, corrections, warnings), warnings


def test_names_of_the_fit_come_first() -> None:
    assert names_of(NAMED) == (["p", "q", "r"], [])
    assert names_of(NAMED, columns("r", "q", "p")) == (["p", "q", "r"], [])
    assert names_of(NAMED, columns("r", "q", "p", "z")) == (
        ["p", "q", "r"],
        ['the example\'s "z" is not a feature of the model and was left out'],
    )
    with pytest.raises(Refused, match='the example lacks "q", "r", which LinearRegression was fitted with'):
        names_of(NAMED, columns("p"))


def test_the_columns_of_the_example_name_the_features_of_a_model_without_names() -> None:
    assert names_of(PLAIN, columns("a", "b", "c")) == (["a", "b", "c"], [])
    for wrong in (("a", "b"), ("a", "b", "c", "d"), ("x0", "x1", "b", "c")):
        with pytest.raises(Refused, match=rf"fitted with 3 features, .* \({len(wrong)}\)"):
            names_of(PLAIN, columns(*wrong))


def test_numbered_columns_are_the_features_beside_others() -> None:
    assert names_of(PLAIN, columns("id", "x2", "x1", "x0")) == (
        ["x0", "x1", "x2"],
        ['the example\'s "id" is not a feature of the model and was left out'],
    )
    assert names_of(PLAIN, columns("x2", "x1", "x0"))[0] == ["x2", "x1", "x0"]  # as many as the model has


def test_a_given_signature_names_all_features_or_corrects_numbered_ones() -> None:
    assert names_of(PLAIN, given=("a", "b", "c"))[0] == ["a", "b", "c"]
    assert names_of(PLAIN, given=("x1",))[0] == ["x0", "x1", "x2"]
    with pytest.raises(Refused, match='"a", which is not a feature'):
        names_of(PLAIN, given=("a",))
    with pytest.raises(Refused, match=r'the signature names "a", "b", "c", "d" \(4\)'):
        names_of(PLAIN, given=("a", "b", "c", "d"))
    with pytest.raises(Refused, match='"z", which is not a feature'):
        names_of(PLAIN, columns("a", "b", "c"), given=("z",))


def test_a_model_that_does_not_record_its_features_needs_names() -> None:
    model = FunctionTransformer(validate=False)
    assert names_of(model, columns("a", "b"))[0] == ["a", "b"]
    assert names_of(model, given=("a",))[0] == ["a"]
    with pytest.raises(Refused, match="FunctionTransformer does not record its number of features"):
        names_of(model)


def test_texts_and_labels_are_one_feature() -> None:
    texts = CountVectorizer().fit(["a word", "another"])
    assert names_of(texts)[0] == ["text"]
    assert names_of(texts, columns("body"))[0] == ["body"]
    assert names_of(LabelEncoder().fit(["x", "y"]))[0] == ["value"]
    with pytest.raises(Refused, match=r'fitted with 1 features, .* "a", "b" \(2\)'):
        names_of(texts, columns("a", "b"))


def test_records_have_the_fields_of_the_vectorizer() -> None:
    model = DictVectorizer().fit([{"city": "Rome", "size": 1.0}, {"city": "Oslo"}])
    assert names_of(model)[0] == ["city", "size"]


def test_ten_names_are_listed_and_the_others_counted() -> None:
    ten = [f"n{i}" for i in range(10)]
    assert list_names(ten) == ", ".join(f'"n{i}"' for i in range(10))
    assert list_names([*ten, "more"]) == list_names(ten) + " and 1 more"
    assert list_names(ten[:1]) == '"n0"'
