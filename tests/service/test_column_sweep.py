"""A part of `benchmarks/sweep.py`: encoders on kinds of columns that systems confuse, on every interface."""

from __future__ import annotations

import pytest

from tests.service.column_sweep import Case, Row, measure_case

SERVED = [
    Case("OneHotEncoder", "None", "Parquet"),
    Case("OneHotEncoder", "strings", "CSV"),
    Case("OneHotEncoder", "categories", "JSON"),
    Case("OrdinalEncoder(unknown)", "NA", "Parquet"),
    Case("OrdinalEncoder(unknown)", "None", "CSV"),
    Case("OrdinalEncoder(unknown)", "bool", "JSON"),
    Case("TargetEncoder", "categories", "Parquet"),
    Case("TargetEncoder", "None", "JSON"),
    Case("SimpleImputer(None, most_frequent)", "None", "Parquet"),
    Case("SimpleImputer(None, most_frequent)", "bool", "CSV"),
    Case("SimpleImputer(mean)", "decimals", "Parquet"),
    Case("HistGradientBoosting(from_dtype)", "NaN", "CSV"),
    Case("TfidfVectorizer", "strings", "CSV"),
]
REFUSED = [
    Case("OneHotEncoder", "dates", "Parquet"),
    Case("OrdinalEncoder", "dates", "CSV"),
    Case("TargetEncoder", "decimals", "JSON"),
]
"""Encoders that were fitted on values which no request and no file can hold."""


def measured(case: Case) -> Row:
    row = measure_case(case)
    assert isinstance(row, Row), row
    return row


@pytest.mark.parametrize("case", SERVED, ids=" ".join)
def test_every_interface_gives_the_models_own_answers(case: Case) -> None:
    row = measured(case)
    assert row.publish.state == "own", row.publish.reason
    device = row.interfaces.pop(".tflite")
    assert device.state in ("own", "refused"), device.reason
    assert {
        interface: outcome for interface, outcome in row.interfaces.items() if outcome != ("own", "", 0)
    } == {}


@pytest.mark.parametrize("case", REFUSED, ids=" ".join)
def test_an_encoder_of_values_that_no_request_holds_is_refused_by_column(case: Case) -> None:
    row = measured(case)
    assert row.publish.state == "refused"
    assert 'of "a" was fitted on values of type' in row.publish.reason
