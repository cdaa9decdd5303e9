"""The publisher's answers: which tables are read, and which differences are faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.errors import Refused
from registry.media_types import CSV, JSON, PARQUET
from registry.rows import NUMPY_DTYPES, Outputs
from registry.signature import DType, Input, Output, Scalar, Signature
from service.compiler.measure import published_answers
from service.compiler.measure.published_answers import AnswerFigures

CLASSES = ("no", "yes")
INPUTS = (Input("x", "float64"),)
CLASSIFIER = Signature(
    "classification",
    INPUTS,
    (Output("label", "string", (-1,), CLASSES), Output("probabilities", "float64", (-1, 2), CLASSES)),
)
REGRESSOR = Signature("regression", INPUTS, (Output("value", "float64", (-1,)),))


def classified(*second: float) -> Outputs:
    """Answers of `CLASSIFIER` with these probabilities of `yes`."""
    p = np.array(second)
    label = np.array([CLASSES[int(v > 0.5)] for v in second], dtype=object)
    return {"label": label, "probabilities": np.column_stack([1 - p, p])}


def compare(
    text: str | bytes,
    served: Outputs,
    signature: Signature = CLASSIFIER,
    usable: list[bool] | None = None,
    media_type: str = CSV,
    *,
    folder: Path,
) -> AnswerFigures:
    file = folder / "answers"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    mask = np.array(usable if usable is not None else [True] * len(next(iter(served.values()))))
    table = published_answers.read(file, media_type, len(mask))
    return published_answers.compare(table, mask, served, signature, 1e-5)


def test_a_file_may_hold_some_of_the_columns(tmp_path: Path) -> None:
    figures = compare("label\nno\nyes\n", classified(0.2, 0.9), folder=tmp_path)
    assert (figures.within, figures.rows, figures.columns) == (True, 2, ["label"])


def test_a_label_that_differs_is_listed_with_its_row(tmp_path: Path) -> None:
    figures = compare("label\nno\nno\n", classified(0.2, 0.9), folder=tmp_path)
    assert (figures.within, figures.label_mismatches) == (False, 1)
    assert figures.worst == [{"row": 1, "column": "label", "expected": "no", "actual": "yes"}]
    assert 'in row 1 (the first is 0) label is "yes", the answers have "no"' in figures.explain()


def test_at_most_ten_rows_are_listed_the_worst_first(tmp_path: Path) -> None:
    served = classified(*np.linspace(0.6, 0.7, 20))
    text = "probability.yes\n" + "\n".join(f"{0.6 + i * 1e-7}" for i in range(20))
    figures = compare(text, served, folder=tmp_path)
    assert [w["row"] for w in figures.worst] == list(range(19, 9, -1))
    assert figures.largest_difference == pytest.approx(0.1, rel=1e-3)


def test_numbers_are_compared_as_far_as_they_were_written(tmp_path: Path) -> None:
    figures = compare("probability.yes\n0.123\n0.5\n0.9\n", classified(0.1234, 0.4996, 0.9), folder=tmp_path)
    assert figures.within
    assert figures.to_json()["bounds"]["rounding"] == pytest.approx(0.00051)
    figures = compare("probability.yes\n0.124\n0.5\n0.9\n", classified(0.1234, 0.4996, 0.9), folder=tmp_path)
    assert [w["row"] for w in figures.worst] == [0]


def test_rounding_is_reported_only_where_it_was_needed(tmp_path: Path) -> None:
    figures = compare("probability.yes\n0.15\n0.95\n", classified(0.15, 0.95), folder=tmp_path)
    assert "rounding" not in figures.to_json()["bounds"]


def test_significant_digits_count_as_written_too(tmp_path: Path) -> None:
    served = {"value": np.array([1234.567, 0.0012344])}
    assert compare("value\n1.235e3\n1.234e-3\n", served, REGRESSOR, folder=tmp_path).within
    assert not compare("value\n1.232e3\n1.234e-3\n", served, REGRESSOR, folder=tmp_path).within


def test_whole_numbers_are_no_rounded_probabilities(tmp_path: Path) -> None:
    figures = compare("probability.yes\n0\n1\n", classified(0.4, 0.9), folder=tmp_path)
    assert (figures.beyond, figures.rounding) == (2, 0.0)


def test_the_other_label_of_a_tie_is_no_mismatch(tmp_path: Path) -> None:
    figures = compare("label\nyes\nno\n", classified(0.5, 0.5), folder=tmp_path)
    assert (figures.within, figures.ties) == (True, 1)


def test_a_missing_number_equals_nan_and_infinity_alone(tmp_path: Path) -> None:
    served = {"value": np.array([np.nan, np.inf, 1.0])}
    figures = compare('value\n""\nNA\nnull\n', served, REGRESSOR, folder=tmp_path)
    assert [w["row"] for w in figures.worst] == [2]
    assert figures.worst[0]["expected"] is None


def test_missing_numbers_are_counted_apart_from_those_that_are_off(tmp_path: Path) -> None:
    served = {"value": np.array([1.0, 2.0, 3.0])}
    reason = compare("value\n1.001\nNA\n3\n", served, REGRESSOR, folder=tmp_path).explain()
    assert "1 numbers are off by up to 0.0005 and 1 numbers are missing on one side in 3 rows" in reason
    assert "in row 1 (the first is 0) value is 2.0, the answers have null" in reason


def test_the_reason_names_a_column_with_too_few_digits(tmp_path: Path) -> None:
    served = classified(0.12, 0.9)
    reason = compare("probability.yes\n0.1\n0.9\n", served, folder=tmp_path).explain()
    assert 'The numbers of "probability.yes" have fewer than 2 decimals and 3 digits' in reason
    reason = compare("probability.yes\n0.125\n0.9\n", served, folder=tmp_path).explain()
    assert "taken as exact" not in reason


def test_rows_that_the_model_does_not_accept_stay_aligned(tmp_path: Path) -> None:
    usable = [True, False, True, True]
    figures = compare('label\nno\n""\nyes\nno\n', classified(0.1, 0.9, 0.9), usable=usable, folder=tmp_path)
    assert figures.worst == [{"row": 3, "column": "label", "expected": "no", "actual": "yes"}]


@pytest.mark.parametrize(
    ("dtype", "labels", "texts"),
    [
        ("string", ("1.50", "NA"), ["1.50", "NA"]),
        ("int64", (2**60 + 1, -3), [f"{2**60 + 1}", "-3.0"]),
        ("float64", (0.1, 2.0), ["0.1", "2"]),
        ("bool", (True, False), ["True", "false"]),
    ],
)
def test_labels_in_csv_are_read_as_the_models_own_type(
    tmp_path: Path, dtype: DType, labels: tuple[Scalar, ...], texts: list[str]
) -> None:
    signature = Signature("classification", INPUTS, (Output("label", dtype, (-1,), labels),))
    served = {"label": np.array(labels, dtype=NUMPY_DTYPES[dtype])}
    assert compare("label\n" + "\n".join(texts), served, signature, folder=tmp_path).within
    assert not compare("label\n" + "\n".join(texts[::-1]), served, signature, folder=tmp_path).within


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("label,id\nno,1\nyes,2\n", "the column 'id'; this version answers 'label', 'probability.no'"),
        (",label\n0,no\n1,yes\n", "index=False"),
        ("label;probability.no\nno;1\nyes;2\n", "semicolons"),
        ("label,label\nno,no\nyes,no\n", "'label' more than once"),
        ("label\nno\n", "1 rows and the example has 2"),
        ("label,probability.no\nno,1\nyes\n", "not readable as text/csv"),
        ("probability.no\n0.1\nhigh\n", "'probability.no' holds 'high' in row 1"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason.replace("(", r"\(")):
        compare(text, classified(0.2, 0.9), folder=tmp_path)


def test_labels_of_another_type_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [0, 1]}), tmp_path / "labels.parquet")
    content = (tmp_path / "labels.parquet").read_bytes()
    with pytest.raises(Refused, match="'label' holds int64; the model's labels are text"):
        compare(content, classified(0.2, 0.9), media_type=PARQUET, folder=tmp_path)


def test_parquet_of_pandas_and_json_are_read(tmp_path: Path) -> None:
    served = classified(0.25, 0.9)
    table = pd.DataFrame({"label": pd.Categorical(["no", "yes"]), "probability.no": np.float32([0.75, 0.1])})
    table.to_parquet(tmp_path / "t.parquet", index=False)
    content = (tmp_path / "t.parquet").read_bytes()
    assert compare(content, served, media_type=PARQUET, folder=tmp_path).within
    records: list[dict[str, Any]] = [{"label": "no", "probability.yes": 0.25}, {"label": "yes"}]
    figures = compare(json.dumps(records), served, media_type=JSON, folder=tmp_path)
    assert (figures.beyond, figures.worst[0]["row"]) == (1, 1)


@pytest.mark.parametrize(
    "text", ['{"label": ["no"]}', '[{"label": "no", "label": "yes"}, {}]', '[{"label": 1}, {"label": "no"}]']
)
def test_json_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Refused, match="not readable as application/json"):
        compare(text, classified(0.2, 0.9), media_type=JSON, folder=tmp_path)
