"""Which quantizer for Keras models: TensorFlow's own, or ai-edge-quantizer on the float .tflite?

`python -m benchmarks.keras_quantize [--seeds N] [--json]` trains a small CNN on scikit-learn's digits for
each seed and prints means over them: accuracy and agreement with Keras on the held-out digits, largest
difference of a probability, bytes, latency of one row on LiteRT, and the time the quantizing took. Needs the
extra `keras`. TensorFlow talks on stderr.
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
from service.compiler.tflite.quantize import quantize

WAYS = ("none", "float16", "dynamic", "int8")
CALIBRATED = 200
FIGURES = ("accuracy", "agreement", "largest_difference", "bytes", "us_per_row", "seconds")


def trained(seed: int, pixels: Any, shown: Any) -> Any:
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
    model.fit(pixels, shown, epochs=15, verbose=0)
    return model


def by_tensorflow(model: Any, way: str, rows: Any) -> bytes:
    given: dict[str, Any] = {} if way == "none" else {"optimizations": [tf.lite.Optimize.DEFAULT]}
    if way == "float16":
        given["target_spec"] = {"supported_types": [tf.float16]}
    if way == "int8":
        given["representative_dataset"] = lambda: ([row[None]] for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        model.export(file, format="litert", verbose=False, **given)
        return file.read_bytes()


def measured(tflite: bytes, rows: Any, shown: Any, own: Any) -> tuple[float, ...]:
    interpreter = Interpreter(model_content=tflite, num_threads=1)
    run = interpreter.get_signature_runner()
    (name,) = run.get_input_details()
    chances = next(iter(run(**{name: rows}).values()))
    run(**{name: rows[:1]})
    taken = []
    for _ in range(500):
        started = time.perf_counter()
        run(**{name: rows[:1]})
        taken.append(time.perf_counter() - started)
    label = chances.argmax(axis=1)
    agreement = (label == own.argmax(axis=1)).mean()
    return (
        (label == shown).mean(),
        agreement,
        np.abs(chances - own).max(),
        len(tflite),
        np.median(taken) * 1e6,
    )


def compared(seeds: int) -> dict[tuple[str, str], dict[str, float]]:
    found = load_digits()
    pixels, shown = (found.images / 16).astype(np.float32)[..., None], found.target
    table: dict[tuple[str, str], list[tuple[float, ...]]] = collections.defaultdict(list)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(pixels))
        train, held = order[:1200], order[1200:]
        model = trained(seed, pixels[train], shown[train])
        own = np.asarray(model(pixels[held], training=False))
        seen = pixels[train][:CALIBRATED]
        plain = by_tensorflow(model, "none", seen)
        for way in WAYS:
            for tool in ("TensorFlow", "ai-edge-quantizer"):
                started = time.perf_counter()
                if tool == "TensorFlow":
                    made = by_tensorflow(model, way, seen)
                else:
                    made = quantize(plain, way, Rows(seen.reshape(CALIBRATED, -1).astype(np.float64)))  # type: ignore[arg-type]
                took = time.perf_counter() - started
                table[way, tool].append((*measured(made, pixels[held], shown[held], own), took))
    return {
        key: dict(zip(FIGURES, np.mean(rows, axis=0).tolist(), strict=True)) for key, rows in table.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    table = compared(asked.seeds)
    if asked.json:
        print(json.dumps([{"way": way, "quantizer": tool, **row} for (way, tool), row in table.items()]))
        return
    print("| | quantizer | accuracy | agreement | largest difference | bytes | us a row | s to make |")
    print("|---|---|---|---|---|---|---|---|")
    for (way, tool), row in table.items():
        accuracy, agreement, difference, size, latency, took = row.values()
        print(
            f"| {way} | {tool} | {accuracy:.2%} | {agreement:.2%} | {difference:.4f} | {size:,.0f} "
            f"| {latency:.0f} | {took:.2f} |"
        )


if __name__ == "__main__":
    main()
