"""Keras on a device: a small CNN that recognizes digits, as float32 and int8."""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from demo_steps import FILES, Failed, edge, print_step
from demo_steps.publish import publish
from service.client import Client, ModelRef

NAME = "digits"
TARGET = "digit"
EPOCHS = 4
LEARNING_RATE = 0.004
TEST_ROWS = 500
"""The last rows of the data set; other people wrote them than the first rows."""
TOLERANCE = 1e-4
"""Largest difference of a probability between Keras and LiteRT."""
EXAMPLE = FILES / "digits.csv"
PIXELS = [f"p{i}" for i in range(64)]


class TrainedDigits(NamedTuple):
    file: Path
    rows: pd.DataFrame  # pixels of the hold-out, 0 to 1
    truth: Any  # int64 [rows]: the digits
    probabilities: Any  # float32 [rows, 10]: predictions of Keras


def require_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise SystemExit(
            "TensorFlow is not installed. scripts/setup --keras installs it where it has wheels: Python 3.11 "
            "to 3.13 on Linux, and on macOS with Apple silicon."
        )


def train() -> TrainedDigits:
    """Train the CNN, or load the one of an earlier run: another one would be a new version."""
    keras = _import_keras()
    data = load_digits()
    pixels, digits = (data.images / 16).astype(np.float32)[..., None], data.target
    file = FILES / f"{NAME}.keras"
    if file.exists():
        model = keras.saving.load_model(file)
        print_step("Trained", f"already: {file}")
    else:
        start = time.perf_counter()
        model = _new_cnn(keras)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow's own
            model.fit(pixels[:-TEST_ROWS], digits[:-TEST_ROWS], epochs=EPOCHS, verbose=0)
        model.save(file)
        seconds = time.perf_counter() - start
        rows = f"{len(pixels) - TEST_ROWS} digits of 8 x 8 pixels"
        print_step("Trained", f"a CNN of {model.count_params():,} weights on {rows} in {seconds:.1f} s")
    test_rows = pd.DataFrame(pixels[-TEST_ROWS:].reshape(TEST_ROWS, 64), columns=PIXELS)
    test_rows.assign(**{TARGET: digits[-TEST_ROWS:]}).to_csv(EXAMPLE, index=False)
    probabilities = np.asarray(model(pixels[-TEST_ROWS:], training=False))
    accuracy = np.mean(probabilities.argmax(axis=1) == digits[-TEST_ROWS:])
    size = f"{file.stat().st_size / 1e3:.0f} kB as .keras"
    print_step(
        "Hold-out", f"accuracy {accuracy:.3f} on {TEST_ROWS} digits that were not used for training; {size}"
    )
    return TrainedDigits(file, test_rows, digits[-TEST_ROWS:], probabilities)


def _import_keras() -> Any:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # no log output
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


def _new_cnn(keras: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy")
    return model


def run_digits(client: Client, trained: TrainedDigits) -> None:
    """Publish the CNN, predict over HTTP, export it twice, and run int8 on a device. Raises `Failed`."""
    version = publish(client, NAME, trained.file, EXAMPLE, {"format": "keras", "target": TARGET})
    body = msgspec.json.encode({"instances": trained.rows.to_dict("records")})
    predictions = client.predict(ModelRef(NAME), body)["predictions"]
    difference = float(np.abs(_probabilities(predictions) - trained.probabilities).max())
    same = int(np.sum(_labels(predictions) == trained.probabilities.argmax(axis=1)))
    print_step(
        "Predicted",
        f"{TEST_ROWS} hold-out rows over HTTP: {same} of {TEST_ROWS} labels equal those of Keras,\n"
        f"largest difference of a probability {difference:.1g}",
    )
    if same < TEST_ROWS or difference > TOLERANCE:
        raise Failed("the server's answers differ from those of Keras")
    exports = {quantize: edge.export(client, version, quantize) for quantize in ("none", "int8")}
    edge.print_gate(exports["int8"])
    device = edge.run_on_device(client, NAME, "int8", EXAMPLE)
    before = np.mean(trained.probabilities.argmax(axis=1) == trained.truth)
    after = np.mean(_labels(device.predictions) == trained.truth)
    print_step(
        "On LiteRT",
        f"accuracy {before:.3f} in float32, {after:.3f} in int8;\n"
        f"{exports['none']['bytes']:,} bytes in float32, {exports['int8']['bytes']:,} in int8; "
        f"{device.median_us:.0f} us per row (median)",
    )


def _labels(predictions: list[dict[str, Any]]) -> Any:
    return np.array([p["label"] for p in predictions])


def _probabilities(predictions: list[dict[str, Any]]) -> Any:
    return np.array([[p["probabilities"][str(digit)] for digit in range(10)] for p in predictions])
