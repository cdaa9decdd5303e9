"""Differences between a Keras model and its .tflite: rounding is tolerated, other differences are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.build_messages import ExportRequest
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.export import export_version
from service.compiler.keras import keras_parity
from service.compiler.keras.heads import OutputHead
from service.compiler.keras.load import KerasModel
from service.compiler.measure import parity
from tests.service.compiler.keras import keras_models
from tests.service.compiler.keras.keras_models import Published, publish, served

CLASSES = ("a", "b", "c")
CLASSIFIER = Signature(
    "classification",
    (Input("x", "float32"),),
    (Output("label", "string", (-1,), CLASSES), Output("probabilities", "float32", (-1, 3), CLASSES)),
)
VECTOR = Signature("transform", (Input("x", "float32"),), (Output("vector", "float32", (-1, 2)),))
ROWS = Rows(matrix=np.zeros((2, 1)))
ONE_HEAD = (OutputHead("features", 2, "numbers"),)
TWO_HEADS = (OutputHead("large", 1, "numbers"), OutputHead("small", 1, "numbers"))


def compare(
    signature: Signature,
    expected: dict[str, Any],
    answered: dict[str, Any],
    heads: tuple[OutputHead, ...] = ONE_HEAD,
) -> parity.ParityFigures:
    def outputs(values: dict[str, Any]) -> Outputs:
        return {n: np.array(v, dtype=object if n == "label" else np.float32) for n, v in values.items()}

    blocks = parity.reference(lambda rows: outputs(expected), {"random": ROWS})
    answer = keras_parity.tolerate_rounding(lambda rows: outputs(answered), blocks, signature, heads)
    return parity.compare(blocks, answer, signature, keras_parity.TOLERANCE)


def test_a_label_may_differ_between_classes_of_equal_probability() -> None:
    probabilities = [[0.45, 0.45, 0.1], [0.1, 0.2, 0.7]]
    expected = {"label": ["a", "c"], "probabilities": probabilities}
    figures = compare(CLASSIFIER, expected, {"label": ["b", "c"], "probabilities": probabilities})
    assert (figures.within, figures.label_mismatches) == (True, 0)


@pytest.mark.parametrize("labels", [["c", "c"], ["a", "a"]], ids=["tie of other classes", "clear class"])
def test_a_label_must_not_differ_between_classes_of_different_probability(labels: list[str]) -> None:
    probabilities = [[0.45, 0.45, 0.1], [0.1, 0.2, 0.7]]
    expected = {"label": ["a", "c"], "probabilities": probabilities}
    figures = compare(CLASSIFIER, expected, {"label": labels, "probabilities": probabilities})
    assert (figures.within, figures.label_mismatches) == (False, 1)


def test_probabilities_must_agree_where_labels_are_tied() -> None:
    expected = {"label": ["a", "a"], "probabilities": [[0.5, 0.5, 0.0]] * 2}
    answered = {"label": ["b", "b"], "probabilities": [[0.4, 0.6, 0.0]] * 2}
    assert not compare(CLASSIFIER, expected, answered).within


def test_small_probabilities_are_tied_only_if_they_are_equal() -> None:
    small = [[6e-5, 5e-6, 0.0]] * 2
    expected = {"label": ["a", "a"], "probabilities": small}
    figures = compare(CLASSIFIER, expected, {"label": ["b", "b"], "probabilities": small})
    assert figures.label_mismatches == 2


@pytest.mark.parametrize(("small", "within"), [(1e-6, True), (1e-2, False)])
def test_a_small_number_of_a_vector_may_differ_by_the_rounding_of_the_largest(
    small: float, within: bool
) -> None:
    figures = compare(VECTOR, {"vector": [[1.0, 1e-7]] * 2}, {"vector": [[1.0, small]] * 2})
    assert figures.within is within


def test_numbers_of_different_outputs_of_a_model_have_separate_scales() -> None:
    expected, answered = {"vector": [[1e6, 1.0]] * 2}, {"vector": [[1e6, 3.0]] * 2}
    assert compare(VECTOR, expected, answered, ONE_HEAD).within
    assert not compare(VECTOR, expected, answered, TWO_HEADS).within


def test_tolerated_vectors_keep_their_differences_in_the_figures() -> None:
    figures = compare(VECTOR, {"vector": [[1.0, 1.0]] * 2}, {"vector": [[1.0, 1.000005]] * 2})
    assert figures.within
    assert figures.largest_difference == pytest.approx(5e-6, rel=0.1)


@pytest.fixture(scope="module")
def tied_on_edge_rows(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("tied")
    return Published(folder, publish(folder, keras_models.tied_on_edge_rows()))


@pytest.mark.parametrize(("second", "tied"), [(1.0 - 2.0**-13, True), (1.0 - 2.0**-12, False)])
def test_a_probability_is_tied_up_to_the_tolerance_of_the_largest_one(
    monkeypatch: pytest.MonkeyPatch, second: float, tied: bool
) -> None:
    monkeypatch.setattr(keras_parity, "TOLERANCE", 2.0**-13)
    for scale in (1.0, 0.25):
        probabilities = np.array([[scale, scale * second]])
        assert keras_parity._is_tied(probabilities, ("a", "b"), np.array(["b"], object)).tolist() == [tied]
        assert keras_parity._is_tied(probabilities, ("a", "b"), np.array(["a"], object)).tolist() == [True]


def test_rounding_is_between_the_tolerance_of_the_number_and_that_of_the_largest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keras_parity, "TOLERANCE", 2.0**-4)
    monkeypatch.setattr(keras_parity, "VECTOR_TOLERANCE", 2.0**-8)
    expected = np.array([[256.0, 4.0, 4.0, 4.0, 4.0]])  # the largest number allows a difference of 1
    differences = np.array([[0.0, 0.25, 0.5, 1.0, 2.0]])  # the tolerance of 4 is 0.25
    heads = (OutputHead("all", 5, "numbers"),)
    rounding = keras_parity._is_rounding(expected, expected + differences, np.zeros(5), heads)
    assert rounding.tolist() == [[False, False, True, True, False]]
    usual = keras_parity._is_rounding(expected, expected - differences, np.full(5, 8.0), heads)
    assert usual.tolist() == [[False, False, False, True, False]]


def test_edge_rows_are_zeros_ones_minima_and_maxima() -> None:
    inputs = (
        Input("a", "float32", minimum=-7.0, maximum=9.0),
        Input("b", "float32"),
        Input("c", "bool"),
        Input("d", "bool", minimum=0.0, maximum=1.0),
    )
    edge = keras_parity.rows_by_kind(Signature("regression", inputs, VECTOR.outputs), None)["edge"]
    assert edge.matrix is not None
    assert edge.matrix.tolist() == [[0.0] * 4, [1.0] * 4, [-7.0, -1.0, 1.0, 0.0], [9.0, 1.0, 1.0, 1.0]]


def test_a_model_with_tied_edge_rows_is_ready(tied_on_edge_rows: Published) -> None:
    model, (folder, built) = keras_models.tied_on_edge_rows(), tied_on_edge_rows
    runtime = served(folder, built)
    assert built.report["parity"]["label_mismatches"] == 0
    assert built.signature is not None
    edge = keras_parity.rows_by_kind(built.signature, None)["edge"]
    assert edge.matrix is not None
    probabilities = np.asarray(model(edge.matrix.astype(np.float32), training=False))
    np.testing.assert_allclose(probabilities, 0.5, atol=1e-6)
    assert set(runtime.run(edge)["label"].tolist()) <= {0, 1}


def test_a_model_with_tied_edge_rows_can_be_exported(tied_on_edge_rows: Published, tmp_path: Path) -> None:
    folder, built = tied_on_edge_rows
    assert built.signature is not None
    request = ExportRequest(
        artifact=str(folder / "model.keras"),
        format="keras",
        out=str(tmp_path),
        signature=built.signature,
        model="tied",
        version=1,
    )
    exported = export_version(request)
    assert exported.state == "ready", exported.report
    assert exported.report["label_mismatches"] == 0


def test_a_conversion_with_other_answers_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert_other_model(model: KerasModel, *args: Any) -> bytes:
        dense = model.model.layers[-1]
        kernel, bias = dense.get_weights()
        dense.set_weights([kernel, bias + np.array([0.5, 0.0, 0.0])])
        try:
            return to_tflite(model, *args)
        finally:
            dense.set_weights([kernel, bias])

    to_tflite = KerasModel.to_tflite
    monkeypatch.setattr(KerasModel, "to_tflite", convert_other_model)
    built = publish(tmp_path, keras_models.iris())
    assert built.state == "rejected"
    assert "answers differently from Keras" in built.report["reason"]
    assert built.report["parity"]["label_mismatches"] > 0
