"""Builds of Keras models: description, conversion, comparison and serving on LiteRT."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from registry.build_messages import VerifyRequest
from service.compiler.tflite.metadata import read_metadata
from service.compiler.verify import verify_runtime
from tests.service.compiler.keras import keras_models
from tests.service.compiler.keras.keras_models import (
    Published,
    keras,
    layers,
    publish,
    publish_file,
    rows,
    save,
    served,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def predict(model: Any, inputs: Any) -> Any:
    return np.asarray(model(inputs, training=False))


def test_a_cnn_gives_the_same_answers_on_litert_as_in_keras(published_cnn: Published) -> None:
    cnn, built = keras_models.cnn(), published_cnn.built
    assert built.runtime_reason == "converted to LiteRT, where it answers as the Keras model does"
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == [f"p{i}" for i in range(64)]
    assert [(o.name, o.dtype, o.shape) for o in built.signature.outputs] == [
        ("label", "int64", (-1,)),
        ("probabilities", "float32", (-1, 10)),
    ]
    assert built.metrics["accuracy"] > 0.9
    assert built.report["parity"]["label_mismatches"] == 0
    assert built.report["parity"]["largest_difference"] < 1e-4
    assert built.report["parity"]["rows"] == {"example": 597, "random": 500, "edge": 4}
    assert built.lineage["made_by"] == {"keras": {"version": keras.__version__, "said_by": "file"}}

    pixels, _ = keras_models.digits()
    outputs = served(published_cnn.folder, built).run(rows(pixels.reshape(-1, 64)))
    expected = predict(cnn, pixels)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert (outputs["label"] == expected.argmax(axis=1)).all()


def test_the_stored_rows_are_answered_as_at_the_build(published_cnn: Published) -> None:
    folder, built = published_cnn
    assert built.signature is not None
    checked = verify_runtime(
        VerifyRequest(
            runtime="tflite",
            file=str(folder / "out" / (built.servable or "")),
            measured=str(folder / "out" / (built.measured or "")),
            signature=built.signature,
            tolerance=2e-4,
            out=str(folder),
        )
    )
    assert (checked.state, checked.report["largest_difference"]) == ("ready", 0.0)


def test_the_file_names_its_features_and_classes(published_cnn: Published) -> None:
    content = (published_cnn.folder / "out" / (published_cnn.built.servable or "")).read_bytes()
    assert read_metadata(content) == {
        "task": "classification",
        "features": [f"p{i}" for i in range(64)],
        "outputs": [
            {"name": "label", "shape": [-1], "classes": list(range(10))},
            {"name": "probabilities", "shape": [-1, 10], "classes": list(range(10))},
        ],
        "model": "Sequential",
    }
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    (details,) = interpreter.get_input_details()
    assert (details["name"], details["shape_signature"].tolist(), details["dtype"]) == (
        "input",
        [-1, 64],
        np.float32,
    )
    assert [d["name"] for d in interpreter.get_output_details()] == ["label", "probabilities"]


def test_the_values_of_the_target_are_the_classes(tmp_path: Path) -> None:
    data = load_iris(as_frame=True)
    species = data.target_names[data.target]
    built = publish(tmp_path, keras_models.iris(), data.data.assign(species=species), target="species")
    assert built.signature is not None
    assert built.signature.outputs[0].classes == ("setosa", "versicolor", "virginica")
    assert built.signature.outputs[0].dtype == "string"
    assert built.metrics["accuracy"] > 0.8
    assert any("sorted order" in w for w in built.report["warnings"])
    assert set(served(tmp_path, built).run(rows(data.data)).pop("label")) == set(species)


def test_the_signature_of_the_request_names_classes_and_features(tmp_path: Path) -> None:
    signature = {
        "inputs": [{"name": n} for n in "abcd"],
        "outputs": [{"name": "label", "classes": ["x", "y", "z"]}],
    }
    built = publish(tmp_path, keras_models.iris(), signature=signature)
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == ["a", "b", "c", "d"]
    assert [o.classes for o in built.signature.outputs] == [("x", "y", "z")] * 2


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ({"outputs": [{"name": "label", "classes": ["x", "y"]}]}, "2 classes are given for the 3"),
        ({"task": "outlier"}, "the given task is outlier, but the model can be served as classification or"),
        ({"inputs": [{"name": "x9", "dtype": "float32"}]}, '"x9", which is not a feature of the model'),
        ({"inputs": [{"name": "x1", "dtype": "string"}]}, 'the given dtype of "x1" is string'),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(
    tmp_path: Path, signature: dict[str, Any], message: str
) -> None:
    built = publish(tmp_path, keras_models.iris(), signature=signature)
    assert built.state == "rejected"
    assert message in built.report["reason"]


def test_a_regression_has_a_value_and_an_r2(tmp_path: Path) -> None:
    model = keras_models.regression()
    random = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    frame = pd.DataFrame(random, columns=["a", "b", "c"]).assign(y=random[:, 0] - 2 * random[:, 1])
    built = publish(tmp_path, model, frame, target="y")
    assert built.signature is not None
    assert [(o.name, o.shape) for o in built.signature.outputs] == [("value", (-1,))]
    assert "r2" in built.metrics
    outputs = served(tmp_path, built).run(rows(random))
    np.testing.assert_allclose(outputs["value"], predict(model, random).ravel(), rtol=1e-4, atol=1e-5)


def test_features_of_several_inputs_have_the_names_of_the_inputs(tmp_path: Path) -> None:
    model = keras_models.two_inputs()
    built = publish(tmp_path, model)
    assert built.signature is not None
    assert [(i.name, i.dtype) for i in built.signature.inputs] == [
        *((f"word_{i}", "int64") for i in range(3)),
        ("size", "float32"),
    ]
    assert built.signature.outputs[0].classes == (0, 1)
    outputs = served(tmp_path, built).run(rows([[1, 2, 3, 0.5], [9, 0, 4, -2.0]]))
    words, size = np.array([[1, 2, 3], [9, 0, 4]]), np.array([[0.5], [-2.0]], dtype=np.float32)
    np.testing.assert_allclose(outputs["probabilities"][:, 1], predict(model, [words, size])[:, 0], atol=1e-6)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1.0, atol=1e-6)


def test_logits_become_probabilities(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    built = publish(tmp_path, model)
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == ["x0", "x1", "x2", "x3"]
    features = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    outputs = served(tmp_path, built).run(rows(features))
    np.testing.assert_allclose(
        outputs["probabilities"], keras.ops.softmax(predict(model, features)), atol=1e-6
    )


@pytest.mark.parametrize(("task", "name"), [("regression", "values"), ("transform", "vector")])
def test_the_task_of_the_request_overrides_the_last_layer(tmp_path: Path, task: str, name: str) -> None:
    built = publish(tmp_path, keras_models.iris(), signature={"task": task})
    assert built.signature is not None
    assert (built.signature.task, built.signature.outputs[0].name) == (task, name)
    assert served(tmp_path, built).run(rows(np.ones((2, 4))))[name].shape == (2, 3)


def test_several_classifying_outputs_have_numbered_names(tmp_path: Path) -> None:
    features = keras.Input((4,))
    colour = layers.Dense(3, "softmax", name="colour")(features)
    large_head = layers.Dense(1, "sigmoid", name="big")(features)
    built = publish(tmp_path, keras.Model(features, [colour, large_head]))
    assert built.signature is not None
    assert [o.name for o in built.signature.outputs] == [
        "y0.label",
        "y0.probabilities",
        "y1.label",
        "y1.probabilities",
    ]
    assert served(tmp_path, built).run(rows(np.ones((2, 4))))["y1.probabilities"].shape == (2, 2)


def test_a_model_with_classes_and_numbers_is_refused(tmp_path: Path) -> None:
    features = keras.Input((4,))
    model = keras.Model(features, [layers.Dense(3, "softmax")(features), layers.Dense(1)(features)])
    built = publish(tmp_path, model)
    assert "some outputs of the model are classes, others numbers" in built.report["reason"]


def recurrent() -> Any:
    sequence = keras.Input((6, 3))
    hidden = layers.Bidirectional(layers.LSTM(4))(layers.GRU(4, return_sequences=True)(sequence))
    return keras.Model(sequence, layers.Dense(2)(hidden))


def mixed_precision() -> Any:
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, dtype="mixed_float16"), layers.Dense(1, dtype="float32")]
    )


@pytest.mark.parametrize("make", [recurrent, mixed_precision])
def test_recurrent_layers_and_mixed_precision_are_converted(tmp_path: Path, make: Any) -> None:
    built = publish(tmp_path, make())
    assert (built.state, built.runtime) == ("ready", "tflite"), built.report


def test_example_rows_with_missing_values_are_left_out(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, None, 2.0], "b": [1.0, 2.0, 3.0], "c": [0.0, 1.0, 2.0]})
    model = keras_models.regression()
    built = publish(tmp_path, model, frame.assign(y=[0.5, 77.0, -9.0]), target="y")
    assert built.report["parity"]["rows"]["example"] == 2
    answered = predict(model, frame.dropna().to_numpy(np.float32))[:, 0]
    true = np.array([0.5, -9.0])
    expected = 1 - ((true - answered) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    assert built.metrics == {"r2": pytest.approx(expected, rel=1e-5)}
    assert built.signature is not None
    assert not any(i.nullable for i in built.signature.inputs)
    assert any("rows with missing values were left out" in w for w in built.report["warnings"])


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((None, 3), {}, "has the open shape"),
        ((4,), {"batch_size": 8}, "takes 8 rows at a time"),
        ((1,), {"dtype": "string"}, "takes strings"),
    ],
)
def test_unsupported_inputs_are_refused(
    tmp_path: Path, shape: tuple[int | None, ...], options: dict[str, Any], message: str
) -> None:
    tensor = keras.Input(shape, name="it", **options)
    built = publish(tmp_path, keras.Model(tensor, layers.Identity()(tensor)))
    assert built.state == "rejected"
    assert f"the input 'it' {message}" in built.report["reason"]


def test_an_example_of_another_width_is_refused(tmp_path: Path) -> None:
    built = publish(tmp_path, keras_models.regression(), pd.DataFrame({"a": [1.0], "b": [2.0]}))
    assert "has 3 numbers per row, the example has 2 columns (a, b)" in built.report["reason"]


def test_a_lambda_layer_is_refused_by_name_without_running_its_code(tmp_path: Path) -> None:
    features = keras.Input((2,))
    trace = tmp_path / "ran"
    file = str(trace)
    code = layers.Lambda(lambda x, at=file: (Path(at).touch(), x)[1], name="mine", output_shape=(2,))
    model = keras.Model(features, code(features))
    trace.unlink(missing_ok=True)
    built = publish(tmp_path, model)
    assert built.state == "rejected"
    assert "the model has a Lambda layer 'mine'" in built.report["reason"]
    assert not trace.exists()


def test_unsupported_operators_are_named(tmp_path: Path) -> None:
    features = keras.Input((4,))
    built = publish(tmp_path, keras.Model(features, keras.ops.erfinv(features)))
    assert built.state == "rejected"
    assert "Erfinv, which is not among LiteRT's own operators" in built.report["reason"]


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(save(tmp_path, keras_models.iris())) as source:
        config = json.loads(source.read("config.json"))
        config["config"]["layers"][-1]["config"]["units"] = 7
        other_config = keras_models.archive(tmp_path / "wrong", config, source.read("model.weights.h5"))
    built = publish_file(tmp_path, other_config)
    assert built.state == "rejected"
    assert built.report["reason"].startswith("Keras cannot load the model")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path, keras_models.cnn())
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    built = publish_file(tmp_path, file)
    assert "the file is truncated" in built.report["reason"]


def test_without_tensorflow_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path, keras_models.iris())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    built = publish_file(tmp_path, file)
    assert built.state == "rejected"
    assert "install the extra keras" in built.report["reason"]
