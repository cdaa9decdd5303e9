"""Online: train a random forest, publish it, and compare its answers over HTTP with scikit-learn's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import msgspec
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, classification_report
from sklearn.model_selection import train_test_split

from demo_steps import FILES, HOME, Failed, print_step
from demo_steps.publish import publish
from service.client import Client, ModelRef, Record

NAME = "breast-cancer"
TARGET = "diagnosis"
TOLERANCE = 1e-5
"""Largest difference of a probability; the server's answers are float32."""
EXAMPLE = FILES / "example.csv"
ROWS = FILES / "rows.json"


class TrainedForest(NamedTuple):
    model: RandomForestClassifier
    rows: pd.DataFrame  # features of the hold-out
    truth: pd.Series  # labels of the hold-out
    accuracy: float
    file: Path


def train() -> TrainedForest:
    """Train a forest on the breast-cancer data and save it."""
    data = load_breast_cancer(as_frame=True)
    labels = data.target.map(dict(enumerate(data.target_names))).rename(TARGET)
    rows, test_rows, truth, test_truth = train_test_split(
        data.data, labels, test_size=0.25, stratify=labels, random_state=0
    )
    start = time.perf_counter()
    model = RandomForestClassifier(n_estimators=100, random_state=0).fit(rows, truth)
    seconds = time.perf_counter() - start
    print_step(
        "Trained", f"{model}, 100 trees, on {len(rows)} rows x {rows.shape[1]} features in {seconds:.1f} s"
    )
    predicted = model.predict(test_rows)
    accuracy = float(accuracy_score(test_truth, predicted))
    print_step(
        "Hold-out", f"accuracy {accuracy:.3f} on {len(test_rows)} rows that were not used for training"
    )
    report = classification_report(test_truth, predicted, output_dict=True)
    lines = [f"{'class':<11}{'precision':>10}{'recall':>8}{'rows':>6}"]
    for name in data.target_names:
        scores = report[name]
        lines.append(
            f"{name:<11}{scores['precision']:>10.3f}{scores['recall']:>8.3f}{scores['support']:>6.0f}"
        )
    print_step("", "\n".join(lines))
    return TrainedForest(model, test_rows, test_truth, accuracy, _save(model, test_rows, test_truth))


def _save(model: RandomForestClassifier, rows: pd.DataFrame, truth: pd.Series) -> Path:
    """Save the model, the hold-out with labels as example, and two rows for curl; return the model's file."""
    FILES.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o700)
    file = FILES / f"{NAME}.joblib"
    joblib.dump(model, file)
    rows.join(truth).to_csv(EXAMPLE, index=False)
    ROWS.write_bytes(predict_body(rows.head(2)))
    print_step("Saved", f"{file} with joblib, {file.stat().st_size / 1e3:.0f} kB")
    return file


def predict_body(rows: pd.DataFrame) -> bytes:
    return msgspec.json.encode({"instances": rows.to_dict("records")})


def run_online(client: Client, trained: TrainedForest) -> Record:
    """Publish the forest, predict the hold-out over HTTP, and return the version. Raises `Failed`."""
    fields = {
        "format": "sklearn-joblib",
        "target": TARGET,
        "metrics": {"holdout_accuracy": trained.accuracy},
    }
    version = publish(client, NAME, trained.file, EXAMPLE, fields)
    if version["runtime"] != "onnx":
        raise Failed(f"the forest runs on {version['runtime']}, expected onnx; report: {version['report']}")
    start = time.perf_counter()
    predictions = client.predict(ModelRef(NAME), predict_body(trained.rows))["predictions"]
    milliseconds = (time.perf_counter() - start) * 1000
    summary, agrees = compare_with_sklearn(trained, predictions)
    print_step(
        "Predicted",
        f"{len(predictions)} hold-out rows over HTTP in {milliseconds:.0f} ms: {summary}; the first answer:\n"
        f"{msgspec.json.encode(predictions[0]).decode()}",
    )
    if not agrees:
        raise Failed("the server's answers differ from scikit-learn's")
    return version


def compare_with_sklearn(trained: TrainedForest, predictions: list[dict[str, Any]]) -> tuple[str, bool]:
    """Compare answers for the hold-out with scikit-learn's: a summary, and whether they agree."""
    same = int(np.sum(trained.model.predict(trained.rows) == [p["label"] for p in predictions]))
    served = np.array([[p["probabilities"][name] for name in trained.model.classes_] for p in predictions])
    difference = float(np.abs(trained.model.predict_proba(trained.rows) - served).max())
    summary = (
        f"{same} of {len(predictions)} labels equal scikit-learn's,\n"
        f"largest difference of a probability {difference:.1g}"
    )
    return summary, same == len(predictions) and difference < TOLERANCE
