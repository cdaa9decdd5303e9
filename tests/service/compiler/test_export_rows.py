"""The source of an export: rows and true values stay together, and figures are those of the compared rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from registry.build_messages import ExportBounds, ExportRequest
from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import Input
from service.compiler import export, export_source
from service.compiler.export import export_version
from service.compiler.export_source import LabelledRows, load_source
from service.compiler.report import BuildReport
from tests.service.builds.export_requests import export_request

COUNT = 100
RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame({"a": RANDOM.normal(size=COUNT), "b": np.arange(float(COUNT))})
MISSING = [0, 1, 2, 50, 99]


def with_gaps(target: Any) -> pd.DataFrame:
    """The example: five rows lack `b`, one lacks the true value."""
    frame = FRAME.assign(y=target)
    frame.loc[MISSING, "b"] = np.nan
    frame.loc[10, "y"] = None
    return frame


def request(folder: Path, model: Any, target: Array, **options: Any) -> ExportRequest:
    return export_request(folder, model.fit(FRAME, target), with_gaps(target), **options)


def test_the_example_of_a_source_has_the_true_values_of_its_rows(tmp_path: Path) -> None:
    job = request(tmp_path, LinearRegression(), np.arange(float(COUNT)))
    source = load_source(job, BuildReport(job))
    assert source.example is not None
    assert source.example.rows.matrix is not None
    assert source.example.truth is not None
    numbers = source.example.rows.matrix[:, 1].tolist()
    assert numbers == [i for i in range(COUNT) if i not in MISSING]
    assert source.example.truth.to_pylist() == [None if n == 10 else n for n in numbers]


def test_rows_with_missing_values_of_nullable_features_stay(tmp_path: Path) -> None:
    job = request(tmp_path, DecisionTreeClassifier(max_depth=2), (FRAME["a"] > 0).astype(int))
    assert [i.nullable for i in job.signature.inputs] == [False, True]
    source = load_source(job, BuildReport(job))
    assert source.example is not None
    assert len(source.example.rows) == COUNT


def test_a_row_is_complete_if_no_feature_that_needs_a_value_lacks_it() -> None:
    columns = (np.array(["x", None, "y"], dtype=object), np.array([1.0, 2.0, np.nan]))
    rows = Rows(columns=columns)
    for text, number, complete in (
        (False, False, [True, False, False]),
        (True, False, [True, True, False]),
        (False, True, [True, False, True]),
        (True, True, [True, True, True]),
    ):
        inputs = (Input("s", "string", nullable=text), Input("n", "float64", nullable=number))
        assert export_source._is_complete(rows, inputs).tolist() == complete


def test_a_selection_of_labelled_rows_selects_both() -> None:
    rows = LabelledRows(Rows(matrix=np.arange(6.0).reshape(-1, 1)), pa.array(list("abcdef")))
    taken = rows.take(np.array([5, 0, 3]))
    assert taken.rows.matrix is not None
    assert taken.truth is not None
    assert (taken.rows.matrix[:, 0].tolist(), taken.truth.to_pylist()) == ([5.0, 0.0, 3.0], ["f", "a", "d"])
    assert LabelledRows(rows.rows, None).take(np.array([1])).truth is None


@pytest.mark.parametrize("classifier", [True, False])
def test_the_accuracy_of_an_export_belongs_to_the_compared_rows(tmp_path: Path, classifier: bool) -> None:
    noisy = FRAME["a"] + np.sin(FRAME["b"] * 37)
    target = (noisy > 0).astype(int) if classifier else noisy
    model: Any = LogisticRegression() if classifier else LinearRegression()
    job = request(tmp_path, model, target)
    report = export_version(job).report
    usable = with_gaps(target).dropna()
    expected = model.score(usable[["a", "b"]], usable["y"])
    accuracy = report["accuracy"]
    assert accuracy["measure"] == ("accuracy" if classifier else "r2")
    assert accuracy["before"] == pytest.approx(expected, rel=1e-12)
    assert accuracy["after"] == pytest.approx(expected, rel=1e-5)
    assert accuracy["drop"] == accuracy["before"] - accuracy["after"]
    assert accuracy["rows"] == report["kinds"]["example"]["rows"] == COUNT - len(MISSING)


def test_the_half_of_the_example_that_is_compared_keeps_its_true_values(tmp_path: Path) -> None:
    """Even rows calibrate int8; the accuracy is that of the odd ones."""
    target = ((FRAME["a"] > 0) ^ (FRAME["b"] % 2 == 1)).astype(int)  # true for even rows, false for odd ones
    frame = FRAME.assign(y=target)
    model = LogisticRegression().fit(FRAME[["a"]], (FRAME["a"] > 0).astype(int))
    job = export_request(tmp_path, model, frame[["a", "y"]], quantize="int8", bounds=ExportBounds(1.0, 1.0))
    report = export_version(job).report
    assert report["calibration"] == {"rows": 50, "from": "the version's example"}
    assert report["accuracy"]["before"] < 0.1
    assert report["accuracy"]["rows"] == report["kinds"]["example"]["rows"] == 50


def test_the_sample_of_the_example_is_evenly_spaced() -> None:
    for size, count in ((0, None), (1, 1), (1000, 1000), (1001, 1000), (5000, 1000)):
        rows = LabelledRows(Rows(matrix=np.arange(float(size)).reshape(-1, 1)), None)
        sample = export._example_sample(rows)
        assert (None if sample is None else len(sample)) == count
        if sample is not None and sample.matrix is not None:
            assert (sample.matrix[0, 0], sample.matrix[-1, 0]) == (0.0, size - 1.0)
    assert export._example_sample(None) is None


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (1000, 950, "int8: 1,000 bytes before, 950 after"),
        (1000, 951, "int8 gains next to nothing here"),
        (1000, 999, "int8 gains next to nothing here"),
        (1000, 1000, "int8 gains nothing here"),
        (1000, 1001, "int8 gains nothing here"),
    ],
)
def test_the_notes_state_how_much_smaller_a_quantized_file_is(before: int, after: int, words: str) -> None:
    (note,) = export._size_notes("int8", None, before, after)
    assert note.startswith(words)
    assert f"1,000 bytes before, {after:,} after" in note
    assert export._size_notes("none", None, before, after) == []
    assert export._size_notes("int8", "no layers", before, after) == [
        f"no layers (1,000 bytes before, {after:,} after)"
    ]


@pytest.mark.parametrize(
    ("mismatches", "difference", "warned"),
    [(0, 0.0, False), (0, 1e-3, False), (0, 1.001e-3, True), (1, 0.0, True)],
)
def test_a_warning_names_answers_that_change_when_inputs_are_rounded(
    mismatches: int, difference: float, warned: bool
) -> None:
    rounding = {"rows": 7, "label_mismatches": mismatches, "largest_difference": difference}
    warnings = export._rounding_warnings(rounding)
    assert bool(warnings) is warned
    assert all(f"{mismatches} labels of 7 example rows" in w for w in warnings)


def test_a_file_of_exactly_the_allowed_size_is_ready(tmp_path: Path) -> None:
    (first := tmp_path / "first").mkdir()
    job = export_request(first, LogisticRegression().fit(FRAME, FRAME["a"] > 0), None)
    size = export_version(job).report["bytes"]["tflite"]
    for limit, state in ((size, "ready"), (size - 1, "rejected")):
        exported = export_version(msgspec.structs.replace(job, bounds=ExportBounds(max_bytes=limit)))
        assert exported.state == state
    assert exported.report["reason"].startswith(f"the file has {size:,} bytes, the bound is {size - 1:,}: ")


def test_versions_of_another_format_have_no_source(tmp_path: Path) -> None:
    job = msgspec.structs.replace(request(tmp_path, LinearRegression(), FRAME["a"]), format="onnx")
    with pytest.raises(Refused, match="sklearn-joblib, keras, tflite versions"):
        load_source(job, BuildReport(job))
