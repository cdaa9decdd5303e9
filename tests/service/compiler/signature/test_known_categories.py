"""Encoders know the values of the example, or the build says which column they do not know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import BaggingRegressor, HistGradientBoostingRegressor, StackingRegressor
from sklearn.feature_extraction import DictVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    LabelBinarizer,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
    TargetEncoder,
)

from registry.errors import Refused
from service.compiler.example import ExampleTable
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.signature.known_categories import NOT_REACHED

NUMBERS = np.arange(12.0) + 0.5
FRAME = pd.DataFrame({"a": NUMBERS, "c": pd.Series(["x", "y", "z"] * 4, dtype=object)})
IGNORING = OneHotEncoder(handle_unknown="ignore")


def encoded(encoder: Any, column: str | int = "c") -> Any:
    prepare = make_column_transformer((encoder, [column]), remainder="passthrough")
    return make_pipeline(prepare, LinearRegression())


def warnings_of(model: Any, values: list[Any]) -> list[str]:
    """The warnings for an example with these values of c."""
    table = ExampleTable({"a": pa.array(NUMBERS[: len(values)]), "c": pa.array(values)})
    return describe(model, table, Corrections()).warnings


MODELS = {
    "one-hot": encoded(IGNORING),
    "ordinal": encoded(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)),
    "target": encoded(TargetEncoder()),
    "behind an imputer": encoded(make_pipeline(SimpleImputer(strategy="most_frequent"), IGNORING)),
    "in a search": GridSearchCV(encoded(IGNORING), {"linearregression__fit_intercept": [True]}, cv=2),
    "in a bagging": BaggingRegressor(encoded(IGNORING, 1), 2, random_state=0),
    "behind a function": make_pipeline(FunctionTransformer(), encoded(IGNORING)),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_an_encoder_that_knows_no_value_of_the_example_is_rejected_by_column(model: Any) -> None:
    model.fit(FRAME, NUMBERS)
    assert warnings_of(model, ["x", "z", "y"]) == []
    with pytest.raises(Refused, match=r'Encoder of "c" knows none .* they are text "X", "Y", its categories'):
        warnings_of(model, ["X", "Y", "X"])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_values_that_are_no_category_are_counted_in_a_warning(model: Any) -> None:
    model.fit(FRAME, NUMBERS)
    (warning,) = warnings_of(model, ["x", "y", "w", "x"])
    assert 'Encoder of "c" does not know 25 % of the example\'s values (text "w")' in warning


def test_text_and_numbers_are_told_apart() -> None:
    codes = FRAME.assign(c=["1", "2", "3"] * 4)
    model = encoded(IGNORING).fit(codes, NUMBERS)
    with pytest.raises(Refused, match=r'they are numbers 1, 2, its categories are text "1", "2", "3"'):
        warnings_of(model, [1, 2])


def test_missing_values_are_not_counted() -> None:
    model = encoded(IGNORING).fit(FRAME, NUMBERS)
    assert warnings_of(model, ["x", None, "y", None]) == []


def test_a_closed_encoder_names_the_column_that_it_rejects() -> None:
    model = encoded(OneHotEncoder()).fit(FRAME, NUMBERS)
    with pytest.raises(Refused, match=r'OneHotEncoder of "c" rejects .* the example has text "w" there'):
        warnings_of(model, ["x", "w"])


def test_categories_behind_a_computation_are_compared_with_what_reaches_them() -> None:
    frame = pd.DataFrame({"a": NUMBERS, "c": [1.0, 2.0, 3.0] * 4})
    scaled = make_pipeline(StandardScaler(), OneHotEncoder(handle_unknown="ignore"))
    model = encoded(scaled).fit(frame, NUMBERS)
    assert warnings_of(model, [1.0, 2.0, 3.0]) == []
    with pytest.raises(Refused, match="OneHotEncoder of its column 0 knows none"):
        warnings_of(model, [7.0, 8.0])


def test_categories_of_histogram_boosting_are_compared() -> None:
    frame = FRAME.assign(c=FRAME.c.astype("category"))
    model = HistGradientBoostingRegressor(categorical_features="from_dtype", max_iter=2, min_samples_leaf=1)
    model.fit(frame, NUMBERS)
    with pytest.raises(Refused, match='OrdinalEncoder of "c" knows none'):
        warnings_of(model, ["X", "Y"])


def test_categories_of_records_and_labels_are_compared() -> None:
    records = make_pipeline(DictVectorizer(), LinearRegression()).fit(FRAME.to_dict("records"), NUMBERS)
    with pytest.raises(Refused, match='DictVectorizer of "c" knows none'):
        warnings_of(records, ["X", "Y"])
    table = ExampleTable({"value": pa.array(["X", "Y"])})
    with pytest.raises(Refused, match='LabelBinarizer of "value" knows none'):
        describe(LabelBinarizer().fit(FRAME.c), table, Corrections())


def test_the_report_has_the_share_of_each_encoder_and_names_those_that_no_row_reaches() -> None:
    members = [("encoded", encoded(IGNORING))]
    final = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LinearRegression())
    model = StackingRegressor(members, final, cv=2).fit(FRAME, NUMBERS)
    table = ExampleTable({"a": pa.array([0.5, 1.5]), "c": pa.array(["x", "w"])})
    assert describe(model, table, Corrections()).encoders == [
        {"encoder": 'the OneHotEncoder of "c"', "values": 2, "known": 1},
        {"encoder": "the OneHotEncoder of its column 0", "skipped": NOT_REACHED},
    ]


def test_a_missing_value_of_the_other_kind_is_rejected() -> None:
    frame = FRAME.assign(c=pd.Series(["x", None, "z"] * 4, dtype=object))
    model = make_pipeline(FunctionTransformer(np.copy), encoded(IGNORING, 1)).fit(frame, NUMBERS)
    assert warnings_of(model, ["x", "z"]) == []
    with pytest.raises(Refused, match=r"OneHotEncoder of its column 0 was fitted on None .* receives NaN"):
        warnings_of(model, ["x", None])
