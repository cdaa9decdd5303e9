"""The edge road for Keras: a small CNN that reads digits, in float32 and in int8."""

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

from demo_steps import FILES, Failed, edge, say
from demo_steps.publish import publish
from service.client import Client, ModelRef

NAME = "digits"
TARGET = "digit"
EPOCHS = 12
HELD = 500  # the last rows, written by other people than the first
TOLERANCE = 1e-4  # of a probability, between Keras and LiteRT
EXAMPLE = FILES / "digits.csv"
PIXELS = [f"p{i}" for i in range(64)]


class Digits(NamedTuple):
    file: Path
    rows: pd.DataFrame  # the hold-out's pixels, from 0 to 1
    truth: Any  # int64 [rows]: what they show
    probabilities: Any  # float32 [rows, 10]: Keras' own answers


def check() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise SystemExit(
            "TensorFlow is not installed. scripts/setup --keras installs it where there are wheels of it: "
            "Python 3.11 to 3.13 on Linux, and on macOS with Apple's processors."
        )


def train() -> Digits:
    """The CNN of the run before, when there is one: a new one would be a new version."""
    keras = _keras()
    found = load_digits()
    pixels, shown = (found.images / 16).astype(np.float32)[..., None], found.target
    file = FILES / f"{NAME}.keras"
    if file.exists():
        model = keras.saving.load_model(file)
        say("Trained", f"already: {file}")
    else:
        started = time.perf_counter()
        model = _cnn(keras)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what TensorFlow says of itself
            model.fit(pixels[:-HELD], shown[:-HELD], epochs=EPOCHS, verbose=0)
        model.save(file)
        took = time.perf_counter() - started
        weights = f"{model.count_params():,} weights"
        say("Trained", f"a CNN of {weights} on {len(pixels) - HELD} digits of 8 x 8 pixels in {took:.1f} s")
    rows = pd.DataFrame(pixels[-HELD:].reshape(HELD, 64), columns=PIXELS)
    rows.assign(**{TARGET: shown[-HELD:]}).to_csv(EXAMPLE, index=False)
    own = np.asarray(model(pixels[-HELD:], training=False))
    accuracy = np.mean(own.argmax(axis=1) == shown[-HELD:])
    say("Hold-out", f"accuracy {accuracy:.3f} on {HELD} digits it has not seen; {_size(file)} as .keras")
    return Digits(file, rows, shown[-HELD:], own)


def _keras() -> Any:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # else it talks of both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


def _cnn(keras: Any) -> Any:
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
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def road(client: Client, digits: Digits) -> None:
    """Publishes the CNN, asks it over HTTP, exports it twice, runs int8 as a device does. Raises `Failed`."""
    version = publish(client, NAME, digits.file, EXAMPLE, {"format": "keras", "target": TARGET})
    body = msgspec.json.encode({"instances": digits.rows.to_dict("records")})
    given = client.predict(ModelRef(NAME), body)["predictions"]
    apart = float(np.abs(_probabilities(given) - digits.probabilities).max())
    same = int(np.sum(_labels(given) == digits.probabilities.argmax(axis=1)))
    say(
        "Predicted",
        f"{HELD} hold-out rows over HTTP: {same} of {HELD} labels are Keras' own,\n"
        f"largest difference of a probability {apart:.1g}",
    )
    if same < HELD or apart > TOLERANCE:
        raise Failed("the server's answers are not Keras'")
    made = {how: edge.export(client, version, how) for how in ("none", "int8")}
    edge.tell(made["int8"])
    ran = edge.on_device(client, NAME, "int8", EXAMPLE)
    before = np.mean(digits.probabilities.argmax(axis=1) == digits.truth)
    after = np.mean(_labels(ran.predictions) == digits.truth)
    say(
        "On LiteRT",
        f"accuracy {before:.3f} in float32, {after:.3f} in int8;\n"
        f"{made['none']['bytes']:,} bytes in float32, {made['int8']['bytes']:,} in int8; "
        f"{ran.median_us:.0f} us for one row (median)",
    )


def _labels(given: list[dict[str, Any]]) -> Any:
    return np.array([p["label"] for p in given])


def _probabilities(given: list[dict[str, Any]]) -> Any:
    return np.array([[p["probabilities"][str(digit)] for digit in range(10)] for p in given])


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e3:.0f} kB"
