"""TensorFlow's quantizer compared with ai-edge-quantizer for Keras models.

    python -m benchmarks.keras_quantize [--seeds N] [--json]

Trains a small CNN on scikit-learn's digits for each seed and prints means: accuracy and agreement with Keras
on the held-out digits, largest difference of a probability, bytes, latency of one row on LiteRT, and the time
of the quantization. Needs the extra `keras`. TensorFlow logs to stderr.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from registry.rows import Rows
from registry.vocabulary import QUANTIZE_MODES
from service.compiler.tflite.quantize import quantize

MODES = QUANTIZE_MODES
CALIBRATION_ROWS = 200
FIGURES = ("accuracy", "agreement", "largest_difference", "bytes", "us_per_row", "seconds")


def train_cnn(seed: int, pixels: Any, digits: Any) -> Any:
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(pixels, digits, epochs=15, verbose=0)
    return model


def quantize_with_tensorflow(model: Any, mode: str, rows: Any) -> bytes:
    options: dict[str, Any] = {} if mode == "none" else {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if mode == "float16":
        options["target_spec"] = {"supported_types": [tf.float16]}
    if mode == "int8":
        options["representative_dataset"] = lambda: ([row[None]] for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        model.export(file, format="litert", verbose=False, **options)
        return file.read_bytes()


def measure(tflite: bytes, rows: Any, digits: Any, keras_probabilities: Any) -> tuple[float, ...]:
    interpreter = Interpreter(model_content=tflite, num_threads=1)
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    probabilities = next(iter(run(**{name: rows}).values()))
    run(**{name: rows[:1]})
    times = []
    for _ in range(500):
        start = time.perf_counter()
        run(**{name: rows[:1]})
        times.append(time.perf_counter() - start)
    labels = probabilities.argmax(axis=1)
    agreement = (labels == keras_probabilities.argmax(axis=1)).mean()
    return (
        (labels == digits).mean(),
        agreement,
        np.abs(probabilities - keras_probabilities).max(),
        len(tflite),
        np.median(times) * 1e6,
    )


def compare(seeds: int) -> dict[tuple[str, str], dict[str, float]]:
    data = load_digits()
    pixels, digits = (data.images / 16).astype(np.float32)[..., None], data.target
    table: dict[tuple[str, str], list[tuple[float, ...]]] = collections.defaultdict(list)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(pixels))
        train, test = order[:1200], order[1200:]
        model = train_cnn(seed, pixels[train], digits[train])
        keras_probabilities = np.asarray(model(pixels[test], training=False))
        calibration = pixels[train][:CALIBRATION_ROWS]
        plain = quantize_with_tensorflow(model, "none", calibration)
        for mode in MODES:
            for tool in ("TensorFlow", "ai-edge-quantizer"):
                start = time.perf_counter()
                if tool == "TensorFlow":
                    tflite = quantize_with_tensorflow(model, mode, calibration)
                else:
                    rows = Rows(calibration.reshape(CALIBRATION_ROWS, -1).astype(np.float64))
                    tflite = quantize(plain, mode, rows)
                seconds = time.perf_counter() - start
                figures = measure(tflite, pixels[test], digits[test], keras_probabilities)
                table[mode, tool].append((*figures, seconds))
    return {
        key: dict(zip(FIGURES, np.mean(rows, axis=0).tolist(), strict=True)) for key, rows in table.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = compare(options.seeds)
    if options.json:
        print(json.dumps([{"mode": mode, "quantizer": tool, **row} for (mode, tool), row in table.items()]))
        return
    print("| | quantizer | accuracy | agreement | largest difference | bytes | us per row | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for (mode, tool), row in table.items():
        accuracy, agreement, difference, size, latency, seconds = row.values()
        print(
            f"| {mode} | {tool} | {accuracy:.2%} | {agreement:.2%} | {difference:.4f} | {size:,.0f} "
            f"| {latency:.0f} | {seconds:.2f} |"
        )


if __name__ == "__main__":
    main()
