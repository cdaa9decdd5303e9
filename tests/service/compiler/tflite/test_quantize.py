from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from registry.errors import Invalid, Refused
from registry.rows import Rows
from service.compiler.tflite import convert, read_metadata, within
from service.compiler.tflite.quantize import (
    Quantize,
    min_runtime,
    min_tflite,
    nothing_to_gain,
    operators,
    quantize,
)
from tests.service.compiler.tflite import cases
from tests.service.compiler.tflite.edge import loaded, signature_of

X, Y = load_digits(return_X_y=True)
MODEL = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=40, random_state=0, tol=1e-2)).fit(
    X[:1200], Y[:1200]
)
SIGNATURE = signature_of(MODEL)
PLAIN = convert(MODEL, SIGNATURE)
DATA = cases.data(500)


@pytest.mark.parametrize(("how", "part"), [("float16", 0.6), ("dynamic", 0.43), ("int8", 0.5)])
def test_quantized_files_are_smaller_and_keep_labels_and_metadata(
    tmp_path: Path, how: Quantize, part: float
) -> None:
    small = quantize(PLAIN, how, Rows(matrix=X[:300]))
    assert len(small) < part * len(PLAIN)
    assert read_metadata(small) == read_metadata(PLAIN)
    label = loaded(tmp_path, small, SIGNATURE).run(Rows(matrix=X[1200:]))["label"]
    assert (label == MODEL.predict(X[1200:])).mean() > 0.98


@pytest.mark.parametrize("how", ["none", "float16", "dynamic", "int8"])
def test_a_device_finds_input_and_outputs_by_their_names(how: Quantize) -> None:
    interpreter = Interpreter(model_content=quantize(PLAIN, how, Rows(matrix=X[:300])))
    assert [d["name"] for d in interpreter.get_input_details()] == ["input"]
    assert {d["name"] for d in interpreter.get_output_details()} == {"label", "probabilities"}


def test_none_is_the_same_bytes() -> None:
    assert quantize(PLAIN, "none") is PLAIN


def test_a_forest_has_nothing_to_gain_and_stays_as_it_is() -> None:
    model, rows = cases.fitted("RandomForestClassifier, two outputs", DATA)
    content = convert(model, signature_of(model))
    assert "brings nothing" in (nothing_to_gain(content) or "")
    for how in ("float16", "dynamic", "int8"):
        assert quantize(content, how, Rows(matrix=rows)) == content
    assert nothing_to_gain(PLAIN) is None


def test_looked_up_codes_are_never_quantized(tmp_path: Path) -> None:
    model = make_pipeline(OrdinalEncoder(), LogisticRegression(max_iter=500)).fit(DATA.counts, DATA.three)
    signature = signature_of(model, DATA.counts)
    content = convert(model, signature)
    small = quantize(content, "dynamic")
    assert small != content
    rows = Rows(matrix=DATA.counts)
    labels = [loaded(tmp_path, c, signature).run(rows)["label"] for c in (content, small)]
    assert (labels[0] == labels[1]).mean() > 0.95


def test_int8_without_rows_is_refused() -> None:
    with pytest.raises(Refused, match="int8 needs calibration rows"):
        quantize(PLAIN, "int8")


def test_calibration_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(Invalid, match="calibration rows have 3 features, the model takes 64"):
        quantize(PLAIN, "int8", Rows(matrix=np.zeros((5, 3))))


def test_bytes_that_are_no_tflite_are_refused() -> None:
    for ask in (nothing_to_gain, operators, min_runtime, lambda b: quantize(b, "dynamic")):
        with pytest.raises(Invalid, match="these bytes are no"):
            ask(b"nonsense")


def test_old_runtimes_are_told_from_new_ones_by_the_operators() -> None:
    assert operators(PLAIN) == ["ARG_MAX", "FULLY_CONNECTED", "MUL", "RESHAPE", "SOFTMAX", "SUB"]
    assert (min_runtime(PLAIN), min_tflite(PLAIN)) == ("1.0.1", "1.9")
    dynamic = quantize(PLAIN, "dynamic")
    assert (min_runtime(dynamic), min_tflite(dynamic)) == ("1.0.1", "2.17")
    model, _ = cases.fitted("DecisionTreeClassifier", DATA)
    assert min_tflite(convert(model, signature_of(model))) == "2.5"


def test_a_bound_on_the_bytes_is_met_by_aggregating(tmp_path: Path) -> None:
    model, rows = cases.fitted("RandomForestClassifier, 20 full trees", DATA)
    signature = signature_of(model)
    full = convert(model, signature)
    half = within(model, signature, len(full) // 2)
    assert 0.3 * len(full) < len(half.content) <= len(full) // 2
    assert half.reduction.startswith("kept ")
    label = loaded(tmp_path, half.content, signature).run(Rows(matrix=rows))["label"]
    assert (label == model.predict(rows)).mean() > 0.9
    assert within(model, signature, len(full)).reduction == ""


@pytest.mark.parametrize("name", ["RandomForestClassifier, 20 full trees", "LogisticRegression"])
def test_a_bound_that_cannot_be_met_is_refused(name: str) -> None:
    model, _ = cases.fitted(name, DATA)
    with pytest.raises(Refused, match="1000 are allowed"):
        within(model, signature_of(model), 1000)
