"""From a .keras file and an example to a version that LiteRT serves."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from service.compiler.tflite import read_metadata
from tests.service.compiler.keras import keras_models as made
from tests.service.compiler.keras.keras_models import keras, layers, publish, publish_file, rows, served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def cnn() -> Any:
    return made.cnn()


def answers(model: Any, given: Any) -> Any:
    return np.asarray(model(given, training=False))


def test_a_cnn_on_digits_answers_on_litert_as_keras_does(tmp_path: Path, cnn: Any) -> None:
    built = publish(tmp_path, cnn, made.digits_frame(slice(made.TRAINED, None)), target="digit")
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

    pixels, _ = made.digits()
    got = served(tmp_path, built).run(rows(pixels.reshape(-1, 64)))
    own = answers(cnn, pixels)
    np.testing.assert_allclose(got["probabilities"], own, atol=1e-5)
    assert (got["label"] == own.argmax(axis=1)).all()


def test_the_file_tells_a_device_its_features_and_classes(tmp_path: Path, cnn: Any) -> None:
    built = publish(tmp_path, cnn)
    content = (tmp_path / "out" / (built.servable or "")).read_bytes()
    assert read_metadata(content) == {
        "task": "classification",
        "features": [f"x{i}" for i in range(64)],
        "outputs": [
            {"name": "label", "shape": [-1], "classes": list(range(10))},
            {"name": "probabilities", "shape": [-1, 10], "classes": list(range(10))},
        ],
        "model": "Sequential",
    }
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    (given,) = interpreter.get_input_details()
    assert (given["name"], given["shape_signature"].tolist(), given["dtype"]) == (
        "input",
        [-1, 64],
        np.float32,
    )
    assert [d["name"] for d in interpreter.get_output_details()] == ["label", "probabilities"]


def test_the_targets_own_values_are_the_classes(tmp_path: Path) -> None:
    data = load_iris(as_frame=True)
    kinds = data.target_names[data.target]
    built = publish(tmp_path, made.iris(), data.data.assign(kind=kinds), target="kind")
    assert built.signature is not None
    assert built.signature.outputs[0].classes == ("setosa", "versicolor", "virginica")
    assert built.signature.outputs[0].dtype == "string"
    assert built.metrics["accuracy"] > 0.8
    assert any("sorted order" in w for w in built.report["warnings"])
    assert set(served(tmp_path, built).run(rows(data.data)).pop("label")) == set(kinds)


def test_the_given_signature_names_classes_and_features(tmp_path: Path) -> None:
    given = {
        "inputs": [{"name": n} for n in "abcd"],
        "outputs": [{"name": "label", "classes": ["x", "y", "z"]}],
    }
    built = publish(tmp_path, made.iris(), signature=given)
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == ["a", "b", "c", "d"]
    assert [o.classes for o in built.signature.outputs] == [("x", "y", "z")] * 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"outputs": [{"name": "label", "classes": ["x", "y"]}]}, "2 classes are given for the 3"),
        ({"task": "outlier"}, "the given task is outlier, but the model can be served as classification or"),
        ({"inputs": [{"name": "x9", "dtype": "float32"}]}, "'x9', which is no feature of the model"),
        ({"inputs": [{"name": "x1", "dtype": "string"}]}, "the given dtype of 'x1' is string"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    built = publish(tmp_path, made.iris(), signature=given)
    assert built.state == "rejected"
    assert said in built.report["reason"]


def test_a_regression_gives_a_value_and_its_r2(tmp_path: Path) -> None:
    model = made.regression()
    random = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    frame = pd.DataFrame(random, columns=["a", "b", "c"]).assign(y=random[:, 0] - 2 * random[:, 1])
    built = publish(tmp_path, model, frame, target="y")
    assert built.signature is not None
    assert [(o.name, o.shape) for o in built.signature.outputs] == [("value", (-1,))]
    assert "r2" in built.metrics
    got = served(tmp_path, built).run(rows(random))
    np.testing.assert_allclose(got["value"], answers(model, random).ravel(), rtol=1e-4, atol=1e-5)


def test_several_inputs_are_features_by_name(tmp_path: Path) -> None:
    model = made.two_inputs()
    built = publish(tmp_path, model)
    assert built.signature is not None
    assert [(i.name, i.dtype) for i in built.signature.inputs] == [
        *((f"word_{i}", "int64") for i in range(3)),
        ("size", "float32"),
    ]
    assert built.signature.outputs[0].classes == (0, 1)
    got = served(tmp_path, built).run(rows([[1, 2, 3, 0.5], [9, 0, 4, -2.0]]))
    words, size = np.array([[1, 2, 3], [9, 0, 4]]), np.array([[0.5], [-2.0]], dtype=np.float32)
    np.testing.assert_allclose(got["probabilities"][:, 1], answers(model, [words, size])[:, 0], atol=1e-6)
    np.testing.assert_allclose(got["probabilities"].sum(axis=1), 1.0, atol=1e-6)


def test_logits_become_probabilities(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    built = publish(tmp_path, model)
    given = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    got = served(tmp_path, built).run(rows(given))
    np.testing.assert_allclose(got["probabilities"], keras.ops.softmax(answers(model, given)), atol=1e-6)


@pytest.mark.parametrize(("task", "name"), [("regression", "values"), ("transform", "vector")])
def test_the_given_task_wins_over_the_last_layer(tmp_path: Path, task: str, name: str) -> None:
    built = publish(tmp_path, made.iris(), signature={"task": task})
    assert built.signature is not None
    assert (built.signature.task, built.signature.outputs[0].name) == (task, name)
    assert served(tmp_path, built).run(rows(np.ones((2, 4))))[name].shape == (2, 3)


def test_several_classifying_outputs_are_multi_output(tmp_path: Path) -> None:
    given = keras.Input((4,))
    one, two = layers.Dense(3, "softmax", name="colour")(given), layers.Dense(1, "sigmoid", name="big")(given)
    built = publish(tmp_path, keras.Model(given, [one, two]))
    assert built.signature is not None
    assert [o.name for o in built.signature.outputs] == [
        "y0.label",
        "y0.probabilities",
        "y1.label",
        "y1.probabilities",
    ]
    assert served(tmp_path, built).run(rows(np.ones((2, 4))))["y1.probabilities"].shape == (2, 2)


def test_classes_beside_numbers_are_refused(tmp_path: Path) -> None:
    given = keras.Input((4,))
    both = keras.Model(given, [layers.Dense(3, "softmax")(given), layers.Dense(1)(given)])
    built = publish(tmp_path, both)
    assert "some of the model's outputs are classes and others numbers" in built.report["reason"]


def recurrent() -> Any:
    given = keras.Input((6, 3))
    return keras.Model(
        given,
        layers.Dense(2)(layers.Bidirectional(layers.LSTM(4))(layers.GRU(4, return_sequences=True)(given))),
    )


def half() -> Any:
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, dtype="mixed_float16"), layers.Dense(1, dtype="float32")]
    )


@pytest.mark.parametrize("make", [recurrent, half])
def test_recurrent_layers_and_mixed_precision_convert_too(tmp_path: Path, make: Any) -> None:
    built = publish(tmp_path, make())
    assert (built.state, built.runtime) == ("ready", "tflite"), built.report


def test_rows_with_gaps_are_left_out_of_the_example(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.0, None, 2.0], "b": [1.0, 2.0, 3.0], "c": [0.0, 1.0, 2.0]})
    built = publish(tmp_path, made.regression(), frame)
    assert built.report["parity"]["rows"]["example"] == 2
    assert built.signature is not None
    assert not any(i.nullable for i in built.signature.inputs)
    assert any("rows with gaps were left out" in w for w in built.report["warnings"])


@pytest.mark.parametrize(
    ("shape", "more", "said"),
    [
        ((None, 3), {}, "has the open shape"),
        ((4,), {"batch_size": 8}, "takes 8 rows at a time"),
        ((1,), {"dtype": "string"}, "takes strings"),
    ],
)
def test_inputs_that_are_no_rows_of_numbers_are_refused(
    tmp_path: Path, shape: tuple[int | None, ...], more: dict[str, Any], said: str
) -> None:
    given = keras.Input(shape, name="it", **more)
    built = publish(tmp_path, keras.Model(given, layers.Identity()(given)))
    assert built.state == "rejected"
    assert f"the input 'it' {said}" in built.report["reason"]


def test_an_example_of_another_width_is_refused(tmp_path: Path) -> None:
    built = publish(tmp_path, made.regression(), pd.DataFrame({"a": [1.0], "b": [2.0]}))
    assert "takes 3 numbers a row, the example has 2 columns (a, b)" in built.report["reason"]


def test_a_lambda_layer_is_refused_by_name_and_its_code_never_runs(tmp_path: Path) -> None:
    given = keras.Input((2,))
    traced = tmp_path / "ran"
    where = str(traced)
    code = layers.Lambda(lambda x, at=where: (Path(at).touch(), x)[1], name="mine", output_shape=(2,))
    model = keras.Model(given, code(given))
    traced.unlink(missing_ok=True)
    built = publish(tmp_path, model)
    assert built.state == "rejected"
    assert "the model has a Lambda layer 'mine'" in built.report["reason"]
    assert not traced.exists()


def test_operators_that_litert_lacks_are_named(tmp_path: Path) -> None:
    given = keras.Input((4,))
    built = publish(tmp_path, keras.Model(given, keras.ops.erfinv(given)))
    assert built.state == "rejected"
    assert "Erfinv, which is not among LiteRT's own operators" in built.report["reason"]


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    publish(other, made.iris())
    import zipfile

    with zipfile.ZipFile(other / "model.keras") as given:
        config = json.loads(given.read("config.json"))
        config["config"]["layers"][-1]["config"]["units"] = 7
        wrong = made.archive(tmp_path / "wrong", config, given.read("model.weights.h5"))
    built = publish_file(tmp_path, wrong)
    assert built.state == "rejected"
    assert built.report["reason"].startswith("Keras cannot load the model")


def test_a_truncated_file_is_refused(tmp_path: Path, cnn: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cnn.save(tmp_path / "model.keras")
    content = (tmp_path / "model.keras").read_bytes()
    (tmp_path / "model.keras").write_bytes(content[: len(content) // 2])
    built = publish_file(tmp_path, tmp_path / "model.keras")
    assert "the file is cut short" in built.report["reason"]


def test_without_tensorflow_the_refusal_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, made.iris())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    built = publish_file(tmp_path, tmp_path / "model.keras")
    assert built.state == "rejected"
    assert "install the extra keras" in built.report["reason"]
