"""Keras models: rows that depend on each other, masked steps, whole numbers, and several labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from registry.build_messages import ExportRequest
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from scripts import edge_predict
from service.compiler.export import export_version
from service.compiler.keras import keras_parity, unrolled
from service.compiler.keras.heads import OutputHead
from service.compiler.keras.load import KerasModel
from service.compiler.keras.padding import Padding, padded_rows
from service.compiler.measure import parity
from tests.service.compiler.keras.keras_models import keras, layers, publish, rows, save, served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def wide(deviation: float) -> Any:
    return keras.initializers.RandomNormal(stddev=deviation, seed=1)


def sequence(*parts: Any, shape: tuple[int, ...], **options: Any) -> Any:
    """The layers, and a softmax of three classes."""
    return keras.Sequential(
        [keras.Input(shape, **options), *parts, layers.Dense(3, "softmax", kernel_initializer=wide(4.0))]
    )


def masked_both_ways() -> Any:
    recurrent = layers.SimpleRNN(3, return_sequences=True, kernel_initializer=wide(1.0))
    return sequence(
        layers.Masking(-2.0), layers.Bidirectional(recurrent), layers.GlobalAveragePooling1D(), shape=(3, 2)
    )


# ---- rows that depend on each other ----


def test_a_model_that_subtracts_the_mean_of_the_rows_is_refused(tmp_path: Path) -> None:
    rows = keras.Input((3,))
    centred = rows - keras.ops.mean(rows, axis=0, keepdims=True)
    built = publish(tmp_path, keras.Model(rows, layers.Dense(2, "softmax")(centred)))
    assert "the model answers a row differently when it is sent alone" in built.report["reason"]


def test_a_stateful_layer_is_refused_by_name(tmp_path: Path) -> None:
    recurrent = layers.GRU(2, stateful=True, name="memory")
    built = publish(tmp_path, keras.Sequential([keras.Input(batch_shape=(1, 3, 2)), recurrent]))
    assert "the layer 'memory' is stateful" in built.report["reason"]


def test_a_model_that_answers_no_made_up_row_needs_an_example(tmp_path: Path) -> None:
    numbers = keras.Input((1,), dtype="int64")
    model = keras.Model(numbers, layers.Embedding(3, 2, name="e")(numbers + 100))
    built = publish(tmp_path, model, signature={"task": "transform"})
    assert "answers none of the made-up rows; publish it with an example" in built.report["reason"]


# ---- masked steps ----


def test_a_masked_layer_in_both_directions_answers_padded_rows_as_keras_does(tmp_path: Path) -> None:
    model = masked_both_ways()
    built = publish(tmp_path, model)
    assert built.report["parity"]["rows"]["padded"] == 144  # of the masked value, and of 0
    features = np.random.default_rng(0).normal(size=(30, 3, 2)).astype(np.float32)
    for number, row in enumerate(features):
        row[number % 4 :] = -2.0
    got = served(tmp_path, built).run(rows(features.reshape(30, 6)))["probabilities"]
    np.testing.assert_allclose(got, np.asarray(model(features, training=False)), atol=1e-6)


def test_padded_rows_find_a_form_that_answers_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unrolled form of Keras itself is wrong for this model."""
    monkeypatch.setattr(unrolled, "_forward", lambda rnn, keras: rnn)
    built = publish(tmp_path, masked_both_ways())
    assert built.state == "rejected"
    assert "most on padded rows, whose steps the model masks" in built.report["reason"]


def test_the_model_itself_is_as_before_after_its_conversion(tmp_path: Path) -> None:
    file = save(tmp_path, masked_both_ways())
    model = KerasModel(file, tmp_path, 8192)
    layer, rnn = model.model.layers[1].backward_layer, keras.src.backend.rnn
    with unrolled.unrolled(model.model, keras):
        assert layer.unroll
        assert keras.src.backend.rnn is not rnn
    assert not layer.unroll
    assert keras.src.backend.rnn is rnn


def test_padded_rows_fill_tails_heads_and_all_steps_of_each_input() -> None:
    base = Rows(np.arange(1.0, 8.0)[None])
    padded = padded_rows(base, Padding((-1.0,), (6, 1), (2, 1))).matrix
    assert padded is not None
    kinds = {tuple(row) for row in padded.tolist()}
    assert (1, 2, -1, -1, -1, -1, 7) in kinds, "a tail"
    assert (-1, -1, 3, 4, 5, 6, 7) in kinds, "a head"
    assert (-1, -1, -1, -1, -1, -1, 7) in kinds, "all steps"
    assert (1, 2, 3, 4, 5, 6, -1) in kinds, "the second input"
    steps = padded[:, :6].reshape(-1, 3, 2) == -1
    assert (steps[..., 0] == steps[..., 1]).all(), "steps are filled as a whole"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: sequence(shape=(4,)), ()),
        (lambda: sequence(layers.Embedding(5, 2, mask_zero=True), layers.Flatten(), shape=(3,)), (0.0,)),
        (lambda: sequence(layers.SimpleRNN(2), shape=(3, 2)), (0.0,)),
        (lambda: sequence(layers.Masking(-1.0), layers.SimpleRNN(2), shape=(3, 2)), (-1.0, 0.0)),
    ],
    ids=["dense", "mask_zero", "recurrent", "masking"],
)
def test_the_values_of_padding_are_those_of_the_layers(tmp_path: Path, make: Any, expected: Any) -> None:
    model = KerasModel(save(tmp_path, make()), tmp_path, 8192)
    assert model.padding.values == expected


def test_a_flat_input_is_padded_in_steps_of_its_masking_layer(tmp_path: Path) -> None:
    parts = (layers.Reshape((3, 2)), layers.Masking(-1.0), layers.SimpleRNN(2))
    model = KerasModel(save(tmp_path, sequence(*parts, shape=(6,))), tmp_path, 8192)
    assert (model.padding.sizes, model.padding.step_sizes) == ((6,), (2,))


# ---- whole numbers ----


def numbered() -> Any:
    user = keras.Input((1,), dtype="int64", name="user")
    embedded = layers.Embedding(97, 4, embeddings_initializer=wide(1.0))(keras.ops.mod(user, 97))
    return keras.Model(
        user, layers.Dense(3, "softmax", kernel_initializer=wide(3.0))(layers.Flatten()(embedded))
    )


def test_ids_that_float32_rounds_are_refused_with_their_column(tmp_path: Path) -> None:
    built = publish(tmp_path, numbered(), pd.DataFrame({"user": 10**9 + np.arange(60)}))
    assert '"user" of the example holds 1000000000' in built.report["reason"]
    assert "float32, which represents integers exactly only from -16777216" in built.report["reason"]


def test_ids_up_to_2_24_are_answered_and_the_bounds_are_enforced(tmp_path: Path) -> None:
    ids = 2**24 - np.arange(60)
    model = numbered()
    built = publish(tmp_path, model, pd.DataFrame({"user": ids}))
    assert built.signature is not None
    (user,) = built.signature.inputs
    assert (user.minimum, user.maximum, user.enforced) == (-(2**24), 2**24, True)
    got = served(tmp_path, built).run(rows(ids[:, None]))["label"]
    assert (got == np.asarray(model(ids[:, None])).argmax(axis=1)).all()


@pytest.mark.parametrize(("dtype", "low", "high"), [("uint8", 0, 255), ("int32", -(2**24), 2**24)])
def test_the_bounds_are_those_of_the_input_and_of_float32(
    tmp_path: Path, dtype: str, low: int, high: int
) -> None:
    built = publish(tmp_path, sequence(layers.Rescaling(1 / 255), shape=(2,), dtype=dtype))
    assert built.signature is not None
    assert built.signature.inputs[0] == Input("x0", "int64", minimum=low, maximum=high, enforced=True)
    assert built.report["parity"]["rows"]["extreme"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"frame": pd.DataFrame({"user": [1, None, 3]})},
            '"user" has missing values, which the model\'s int64',
        ),
        ({"signature": {"inputs": [{"name": "x0", "dtype": "float64"}]}}, "holds whole numbers, int64"),
    ],
)
def test_what_a_whole_number_cannot_be_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    assert message in publish(tmp_path, numbered(), **options).report["reason"]


# ---- several labels ----


def several_labels(**options: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "sigmoid", kernel_initializer=wide(1.0))])
    model.compile(loss=options.get("loss", "binary_crossentropy"))
    return model


def test_several_sigmoids_are_labels_of_their_own_also_on_a_device(tmp_path: Path) -> None:
    model = several_labels()
    built = publish(tmp_path, model)
    assert built.signature is not None
    assert built.signature.task == "classification"
    assert "3 sigmoids: each is a label of its own" in built.report["warnings"][0]
    features = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    expected = np.asarray(model(features))
    answers = served(tmp_path, built).run(rows(features))
    request = ExportRequest(
        artifact=str(tmp_path / "model.keras"),
        format="keras",
        out=str(tmp_path),
        signature=built.signature,
        model="tags",
        version=1,
    )
    assert export_version(request).state == "ready"
    device = edge_predict.Model((tmp_path / "model.tflite").read_bytes()).predict(features)
    for label in range(3):
        assert answers[f"y{label}.label"].tolist() == (expected[:, label] > 0.5).astype(int).tolist()
        np.testing.assert_allclose(answers[f"y{label}.probabilities"][:, 1], expected[:, label], atol=1e-6)
        assert [p[f"y{label}.label"] for p in device] == answers[f"y{label}.label"].tolist()
    json.dumps(device)


@pytest.mark.parametrize(
    "options",
    [
        {"signature": {"outputs": [{"name": "label", "classes": ["a", "b", "c"]}]}},
        {"loss": "categorical_crossentropy"},
    ],
    ids=["signature", "loss"],
)
def test_sigmoids_of_classes_that_exclude_each_other_have_one_label(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    signature = {"signature": options["signature"]} if "signature" in options else {}
    built = publish(tmp_path, several_labels(**options), **signature)
    assert built.signature is not None
    assert [o.name for o in built.signature.outputs] == ["label", "probabilities"]


def test_sums_of_integers_at_their_bounds_may_be_rounded() -> None:
    signature = Signature(
        "regression",
        (Input("a", "int64", minimum=-(2**24), maximum=2**24, enforced=True),),
        (Output("value", "float32", (-1,)),),
    )
    head = (OutputHead("value", 1, "numbers"),)

    def within(kind: str, difference: float) -> bool:
        values = np.array([2.0**24, -(2.0**24), 1.0], np.float32)
        blocks = parity.reference(lambda rows: {"value": values}, {kind: Rows(np.zeros((3, 1)))})
        answered = np.append(values[:2], np.float32(1.0 + difference))
        answer = keras_parity.tolerate_rounding(lambda rows: {"value": answered}, blocks, signature, head)
        return parity.compare(blocks, answer, signature, keras_parity.TOLERANCE).within

    assert within("extreme", 500.0)
    assert not within("extreme", 5000.0)
    assert not within("edge", 500.0)


def test_a_float64_input_is_compared_on_numbers_that_float32_rounds(tmp_path: Path) -> None:
    built = publish(tmp_path, sequence(shape=(2,), dtype="float64"))
    assert built.signature is not None, built.report
    assert [i.dtype for i in built.signature.inputs] == ["float64", "float64"]
