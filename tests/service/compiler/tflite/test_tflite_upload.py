"""Builds of published .tflite files, and files that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from registry.build_messages import BuildResult
from registry.errors import Refused
from registry.signature import Input, Output, Signature
from service.compiler.tflite import tflite_gate
from service.compiler.tflite.conversion import convert
from service.compiler.tflite.metadata import read_metadata
from service.compiler.tflite.stamp import pack, rename
from tests.service.compiler.keras import keras_models
from tests.service.compiler.keras.keras_models import publish_file, rows, served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def publish(folder: Path, content: bytes, **options: Any) -> BuildResult:
    (folder / "model.tflite").write_bytes(content)
    return publish_file(folder, folder / "model.tflite", format="tflite", **options)


def parsed(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(content, 0)


def forest() -> tuple[RandomForestClassifier, Signature]:
    iris = load_iris()
    model = RandomForestClassifier(5, random_state=0).fit(iris.data, iris.target_names[iris.target])
    classes = tuple(str(c) for c in model.classes_)
    outputs = (
        Output("label", "string", (-1,), classes),
        Output("probabilities", "float64", (-1, 3), classes),
    )
    inputs = tuple(Input(name, "float32") for name in ("a", "b", "c", "d"))
    return model, Signature("classification", inputs, outputs)


def test_a_classifier_of_another_tool_gives_the_same_answers(tmp_path: Path) -> None:
    example = keras_models.digits_frame(slice(keras_models.TRAINING_ROWS, None))
    built = publish(tmp_path, keras_models.exported("cnn"), frame=example, target="digit")
    assert built.signature is not None
    assert built.signature.task == "classification"
    assert built.signature.inputs[0].name == "p0"
    assert "numbered 0 to 9" in built.report["warnings"][0]
    assert built.metrics["accuracy"] > 0.9
    pixels, _ = keras_models.digits()
    got = served(tmp_path, built).run(rows(pixels.reshape(-1, 64)))
    expected = np.asarray(keras_models.cnn()(pixels, training=False))
    np.testing.assert_allclose(got["probabilities"], expected, atol=1e-5)
    assert (got["label"] == expected.argmax(axis=1)).all()


def test_the_published_bytes_stay_unchanged(tmp_path: Path) -> None:
    built = publish(tmp_path, keras_models.exported("iris"))
    assert built.servable == "model.tflite"  # a copy in the output directory of the build
    assert (tmp_path / "model.tflite").read_bytes() == keras_models.exported("iris")
    copy = (tmp_path / "out" / "model.tflite").read_bytes()
    assert read_metadata(copy)["features"] == ["x0", "x1", "x2", "x3"]


def test_a_file_written_by_trivium_is_served_unchanged_with_its_own_signature(tmp_path: Path) -> None:
    model, signature = forest()
    built = publish(tmp_path, convert(model, signature))
    assert (built.state, built.runtime, built.servable) == ("ready", "tflite", None)
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == ["a", "b", "c", "d"]
    assert [o.classes for o in built.signature.outputs] == [("setosa", "versicolor", "virginica")] * 2


def test_a_regression_has_the_output_value(tmp_path: Path) -> None:
    built = publish(tmp_path, keras_models.exported("regression"))
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    expected = np.asarray(keras_models.regression()(features, training=False)).ravel()
    np.testing.assert_allclose(
        served(tmp_path, built).run(rows(features))["value"], expected, rtol=1e-4, atol=1e-6
    )


def test_a_file_for_one_row_answers_many_rows(tmp_path: Path) -> None:
    built = publish(
        tmp_path,
        keras_models.exported("cnn", rows=1),
        frame=keras_models.digits_frame(slice(keras_models.TRAINING_ROWS, None)),
        target="digit",
    )
    assert built.metrics["accuracy"] > 0.9


def test_the_signature_of_the_request_names_the_classes(tmp_path: Path) -> None:
    signature = {"outputs": [{"name": "label", "classes": ["x", "y", "z"]}]}
    built = publish(tmp_path, keras_models.exported("iris"), signature=signature)
    assert built.signature is not None
    assert built.signature.outputs[0].classes == ("x", "y", "z")
    built = publish(
        tmp_path, keras_models.exported("iris"), signature={"outputs": [{"name": "label", "classes": ["x"]}]}
    )
    assert "1 classes are given for the graph's 3" in built.report["reason"]


def test_several_inputs_of_more_than_one_number_are_refused(tmp_path: Path) -> None:
    built = publish(tmp_path, keras_models.exported("two_inputs"))
    assert "several inputs, and one of them has more than one number" in built.report["reason"]


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", bytes(100), b"PK\x03\x04" * 50, bytes(4) + b"TFL3" + bytes(20)]
)
def test_other_bytes_are_rejected(tmp_path: Path, content: bytes) -> None:
    assert publish(tmp_path, content).state == "rejected"


def damaged(change: Any) -> bytes:
    model = parsed(keras_models.exported("iris"))
    change(model, model.subgraphs[0])
    return pack(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, g: setattr(m, "version", 7), "version 7 of its schema"),
        (
            lambda m, g: setattr(g.operators[0], "inputs", [9999]),
            "operator 0: a tensor index is out of range",
        ),
        (
            lambda m, g: setattr(g.operators[0], "opcodeIndex", 99),
            "operator 0 has a code that does not exist",
        ),
        (lambda m, g: setattr(g.tensors[0], "buffer", 9999), "tensor 0 has a buffer that does not exist"),
        (lambda m, g: setattr(g, "outputs", [-1]), "the outputs: a tensor index is out of range"),
        (lambda m, g: g.operators.reverse(), "reads a tensor before an operator writes it"),
        (lambda m, g: setattr(m.operatorCodes[0], "builtinCode", schema.BuiltinOperator.WHILE), "uses WHILE"),
        (lambda m, g: setattr(g, "inputs", []), "lacks inputs"),
        (
            lambda m, g: setattr(g.tensors[int(g.operators[-2].inputs[1])], "shape", [5, 5]),
            "bytes where its shape",
        ),
    ],
)
def test_a_damaged_structure_is_refused_before_litert_loads_it(change: Any, message: str) -> None:
    with pytest.raises(Refused) as error:
        tflite_gate.read_checked(damaged(change))
    assert message in str(error.value)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    complete = keras_models.exported("iris")
    for share in (0.1, 0.5, 0.9, 0.98):
        built = publish(tmp_path, complete[: int(len(complete) * share)])
        assert built.state == "rejected", share
        assert "truncated or damaged" in built.report["reason"]


def test_damaged_metadata_is_refused(tmp_path: Path) -> None:
    model, signature = forest()
    broken = convert(model, signature).replace(b'"task"', b'"tusk"')
    assert "metadata entry 'trivium' is not valid" in publish(tmp_path, broken).report["reason"]


def test_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    model, signature = forest()
    file = parsed(convert(model, signature))
    label = Output("label", "string", (-1,), ("setosa",))
    content = rename(file, ["input"], [int(file.subgraphs[0].outputs[0])], [label], signature, "forest")
    assert "a label that is none of its classes" in publish(tmp_path, content).report["reason"]
