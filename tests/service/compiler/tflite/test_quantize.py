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
from registry.vocabulary import QUANTIZE_MODES, Quantize
from service.compiler.tflite.conversion import convert, convert_within
from service.compiler.tflite.metadata import read_metadata
from service.compiler.tflite.quantize import nothing_to_gain, quantize
from service.compiler.tflite.quantize_modes import MODES
from service.compiler.tflite.runtime_versions import min_runtime, min_tflite, operators
from tests.service.compiler.tflite import cases
from tests.service.compiler.tflite.litert_helpers import loaded, signature_of

X, Y = load_digits(return_X_y=True)
MODEL = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=40, random_state=0, tol=1e-2)).fit(
    X[:1200], Y[:1200]
)
SIGNATURE = signature_of(MODEL)
FLOAT32 = convert(MODEL, SIGNATURE)
DATA = cases.data(500)


@pytest.mark.parametrize(("mode", "share"), [("float16", 0.6), ("dynamic", 0.43), ("int8", 0.5)])
def test_quantized_files_are_smaller_with_the_same_metadata_and_labels(
    tmp_path: Path, mode: Quantize, share: float
) -> None:
    small = quantize(FLOAT32, mode, Rows(matrix=X[:300]))
    assert len(small) < share * len(FLOAT32)
    assert read_metadata(small) == read_metadata(FLOAT32)
    label = loaded(tmp_path, small, SIGNATURE).run(Rows(matrix=X[1200:]))["label"]
    assert (label == MODEL.predict(X[1200:])).mean() > 0.98


def test_each_mode_of_the_vocabulary_is_in_the_table_of_modes() -> None:
    assert {"none", *MODES} == set(QUANTIZE_MODES)


@pytest.mark.parametrize("mode", QUANTIZE_MODES)
def test_inputs_and_outputs_have_the_names_of_the_signature(mode: Quantize) -> None:
    interpreter = Interpreter(model_content=quantize(FLOAT32, mode, Rows(matrix=X[:300])))
    assert [d["name"] for d in interpreter.get_input_details()] == ["input"]
    assert {d["name"] for d in interpreter.get_output_details()} == {"label", "probabilities"}


def test_the_mode_none_returns_the_same_bytes() -> None:
    assert quantize(FLOAT32, "none") is FLOAT32


def test_a_forest_is_not_changed_by_quantization() -> None:
    model, rows = cases.fitted("RandomForestClassifier, two outputs", DATA)
    content = convert(model, signature_of(model))
    assert "gains nothing" in (nothing_to_gain(content) or "")
    for mode in MODES:
        assert quantize(content, mode, Rows(matrix=rows)) == content
    assert nothing_to_gain(FLOAT32) is None


def test_look_up_tables_are_never_quantized(tmp_path: Path) -> None:
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
        quantize(FLOAT32, "int8")


def test_calibration_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(Invalid, match="calibration rows have 3 features, the model has 64"):
        quantize(FLOAT32, "int8", Rows(matrix=np.zeros((5, 3))))


def test_other_bytes_are_invalid() -> None:
    for function in (nothing_to_gain, operators, min_runtime, lambda b: quantize(b, "dynamic")):
        with pytest.raises(Invalid, match=r"the bytes are not a \.tflite file"):
            function(b"nonsense")


def test_the_operators_determine_the_oldest_runtime() -> None:
    assert operators(FLOAT32) == ["ARG_MAX", "FULLY_CONNECTED", "MUL", "RESHAPE", "SOFTMAX", "SUB"]
    assert (min_runtime(FLOAT32), min_tflite(FLOAT32)) == ("1.0.1", "1.9")
    dynamic = quantize(FLOAT32, "dynamic")
    assert (min_runtime(dynamic), min_tflite(dynamic)) == ("1.0.1", "2.17")
    model, _ = cases.fitted("DecisionTreeClassifier", DATA)
    assert min_tflite(convert(model, signature_of(model))) == "2.5"


def test_a_limit_of_the_size_is_met_with_a_smaller_forest(tmp_path: Path) -> None:
    model, rows = cases.fitted("RandomForestClassifier, 20 full trees", DATA)
    signature = signature_of(model)
    full = convert(model, signature)
    half = convert_within(model, signature, len(full) // 2)
    assert 0.3 * len(full) < len(half.content) <= len(full) // 2
    assert half.reduction.startswith("kept ")
    label = loaded(tmp_path, half.content, signature).run(Rows(matrix=rows))["label"]
    assert (label == model.predict(rows)).mean() > 0.9
    assert convert_within(model, signature, len(full)).reduction == ""


@pytest.mark.parametrize("name", ["RandomForestClassifier, 20 full trees", "LogisticRegression"])
def test_a_limit_of_the_size_that_cannot_be_met_is_refused(name: str) -> None:
    model, _ = cases.fitted(name, DATA)
    with pytest.raises(Refused, match="1000 are allowed"):
        convert_within(model, signature_of(model), 1000)
