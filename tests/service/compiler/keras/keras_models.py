"""Small Keras models, made in less than a second each, and handmade archives."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import warnings
import zipfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits, load_iris
from sklearn.neural_network import MLPClassifier

from registry.build_messages import BuildRequest, BuildResult
from registry.rows import Rows
from service.compiler.build import build_version
from service.runtime.tflite_runtime import TfliteRuntime
from tests.conftest import require_tensorflow

require_tensorflow(allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class LazyModule:
    """A module that is imported at its first use: Keras takes seconds, and few processes run these tests."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") and attribute != "__version__":
            raise AttributeError(attribute)  # pytest looks for marks at everything that a test file imports
        return getattr(_imported(self._name), attribute)


@cache
def _imported(name: str) -> ModuleType:
    gc.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from TensorFlow's own imports
        module = import_module(name)
    gc.collect()
    gc.freeze()  # as after the collection of the tests, see tests/conftest.py
    gc.enable()
    return module


keras: Any = LazyModule("keras")
layers: Any = LazyModule("keras.layers")
TRAINING_ROWS = 1200  # of the 1,797 digits


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(pixels, digits): float32 [n, 8, 8, 1] from 0 to 1, and int64 [n]."""
    dataset = load_digits()
    return (dataset.images / 16).astype(np.float32)[..., None], dataset.target


def digits_frame(rows: slice) -> pd.DataFrame:
    """The digits as a table: p0 to p63, and `digit`."""
    pixels, target = digits()
    frame = pd.DataFrame(pixels[rows].reshape(-1, 64), columns=[f"p{i}" for i in range(64)])
    return frame.assign(digit=target[rows])


@cache
def cnn() -> Any:
    keras.utils.set_random_seed(0)
    normalization = layers.BatchNormalization()
    head = [layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax")]
    convolutions = [
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        normalization,
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Flatten(),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1)), *convolutions, layers.Dropout(0.2), *head])
    pixels, target = digits()
    values = pixels[:TRAINING_ROWS]
    for layer in convolutions:
        if layer is normalization:
            mean, variance = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
            layer.set_weights([*layer.get_weights()[:2], mean, variance])
        values = np.asarray(layer(values))
    fit_dense(head, values, target[:TRAINING_ROWS])
    return compiled(model, "sparse_categorical_crossentropy")


@cache
def iris() -> Any:
    keras.utils.set_random_seed(0)
    rows, species = load_iris(return_X_y=True)
    head = [layers.Dense(16, "relu"), layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((4,)), layers.Normalization(), *head])
    model.layers[0].adapt(rows)
    fit_dense(head, np.asarray(model.layers[0](rows)), species)
    return compiled(model, "sparse_categorical_crossentropy")


@cache
def regression() -> Any:
    keras.utils.set_random_seed(0)
    return compiled(keras.Sequential([keras.Input((3,)), layers.Dense(8, "gelu"), layers.Dense(1)]), "mse")


def compiled(model: Any, loss: str) -> Any:
    """The model with an optimizer and its variables, as after `fit`."""
    model.compile("adam", loss)
    model.optimizer.build(model.trainable_variables)
    return model


def fit_dense(head: list[Any], rows: np.ndarray, classes: np.ndarray) -> None:
    """Fit a hidden layer (ReLU) and a softmax with scikit-learn: Keras needs seconds to compile a `fit`."""
    fitted = MLPClassifier(head[0].units, learning_rate_init=0.01, batch_size=50, max_iter=30, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        fitted.fit(rows, classes)
    for layer, weights, bias in zip(head, fitted.coefs_, fitted.intercepts_, strict=True):
        layer.set_weights([weights, bias])


@cache
def tied_on_edge_rows() -> Any:
    """Two classes with equal probabilities wherever both features are equal.

    Both logits are then the same number, computed as tanh(x) and as 2 * sigmoid(2x) - 1. Rounding decides the
    label, and it differs between Keras and LiteRT.
    """
    rows = keras.Input((2,))
    weights = np.tile(np.random.default_rng(1).normal(size=4).astype(np.float32), (2, 1))
    tanh = layers.Dense(4, "tanh", use_bias=False)
    sigmoid = layers.Dense(4, "sigmoid", use_bias=False)
    difference = layers.Dense(1, use_bias=False)
    first = keras.ops.sum(tanh(rows), axis=1, keepdims=True)
    second = keras.ops.sum(layers.Rescaling(2.0, -1.0)(sigmoid(rows)), axis=1, keepdims=True)
    logits = layers.Concatenate()([first, second + difference(rows)])
    model = keras.Model(rows, layers.Softmax()(logits))
    tanh.set_weights([weights])
    sigmoid.set_weights([2 * weights])
    difference.set_weights([np.array([[4.0], [-4.0]], dtype=np.float32)])
    return model


@cache
def two_inputs() -> Any:
    """Inputs: word numbers `word` [n, 3] and a float `size` [n, 1]. Output: one of two classes."""
    keras.utils.set_random_seed(0)
    words, size = keras.Input((3,), dtype="int32", name="word"), keras.Input((1,), name="size")
    embedded = layers.Flatten()(layers.Embedding(10, 4)(words))
    hidden = layers.Dense(8, "tanh")(layers.Concatenate()([embedded, size]))
    return keras.Model([words, size], layers.Dense(1, activation="sigmoid", name="kind")(hidden))


@cache
def exported(name: str, rows: int | None = None) -> bytes:
    """The model of this name as .tflite, exported by Keras itself, with Keras' own names and shapes."""
    model = globals()[name]()
    shapes = [keras.InputSpec(shape=(rows, *i.shape[1:]), dtype=i.dtype, name=i.name) for i in model.inputs]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "model.tflite"
        model.export(file, format="litert", verbose=False, **({"input_signature": shapes} if rows else {}))
        return file.read_bytes()


def save(folder: Path, model: Any) -> Path:
    file = folder / "model.keras"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(file)
    return file


def publish(folder: Path, model: Any, frame: pd.DataFrame | None = None, **options: Any) -> BuildResult:
    return publish_file(folder, save(folder, model), frame, **options)


class Published(NamedTuple):
    """A build, and the directory with its artifact `model.keras`, its `example.csv`, and its output."""

    folder: Path
    built: BuildResult


def published_cnn(folder: Path) -> Published:
    frame = digits_frame(slice(TRAINING_ROWS, None))
    return Published(folder, publish(folder, cnn(), frame, target="digit"))


def publish_file(
    folder: Path, artifact: Path, frame: pd.DataFrame | None = None, format: str = "keras", **options: Any
) -> BuildResult:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    if frame is not None:
        frame.to_csv(folder / "example.csv", index=False)
        options |= {"example": str(folder / "example.csv"), "example_media_type": "text/csv"}
    return build_version(BuildRequest(artifact=str(artifact), out=str(out), format=format, **options))  # type: ignore[arg-type]


def served(folder: Path, built: BuildResult) -> TfliteRuntime:
    assert (built.state, built.runtime) == ("ready", "tflite"), built.report
    assert built.servable is not None
    assert built.signature is not None
    return TfliteRuntime(folder / "out" / built.servable, built.signature)


def rows(values: Any) -> Rows:
    return Rows(matrix=np.asarray(values, dtype=np.float64))


def archive(
    path: Path, config: Any, weights: bytes = b"weights", version: str = "3.15.1", **files: bytes
) -> Path:
    """Write a .keras file with this configuration."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", json.dumps({"keras_version": version}))
        file.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        file.writestr("model.weights.h5", weights)
        for name, content in files.items():
            file.writestr(name, content)
    return path
