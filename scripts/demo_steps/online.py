"""The online road: a random forest answers over HTTP as it does in this process."""

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

from demo_steps import FILES, HOME, Failed, say
from demo_steps.publish import publish
from service.client import Client, ModelRef, Record

NAME = "breast-cancer"
TARGET = "diagnosis"
TOLERANCE = 1e-5  # of a probability; the answers are float32
EXAMPLE = FILES / "example.csv"
ROWS = FILES / "rows.json"


class Trained(NamedTuple):
    model: RandomForestClassifier
    rows: pd.DataFrame  # the hold-out's features
    truth: pd.Series  # the hold-out's labels
    accuracy: float
    file: Path


def train() -> Trained:
    data = load_breast_cancer(as_frame=True)
    labels = data.target.map(dict(enumerate(data.target_names))).rename(TARGET)
    rows, held_rows, truth, held_truth = train_test_split(
        data.data, labels, test_size=0.25, stratify=labels, random_state=0
    )
    started = time.perf_counter()
    model = RandomForestClassifier(n_estimators=100, random_state=0).fit(rows, truth)
    took = time.perf_counter() - started
    say("Trained", f"{model}, 100 trees, on {len(rows)} rows x {rows.shape[1]} features in {took:.1f} s")
    guessed = model.predict(held_rows)
    accuracy = float(accuracy_score(held_truth, guessed))
    say("Hold-out", f"accuracy {accuracy:.3f} on {len(held_rows)} rows it has not seen")
    report = classification_report(held_truth, guessed, output_dict=True)
    lines = [f"{'class':<11}{'precision':>10}{'recall':>8}{'rows':>6}"]
    for name in data.target_names:
        of = report[name]
        lines.append(f"{name:<11}{of['precision']:>10.3f}{of['recall']:>8.3f}{of['support']:>6.0f}")
    say("", "\n".join(lines))
    return Trained(model, held_rows, held_truth, accuracy, _save(model, held_rows, held_truth))


def _save(model: RandomForestClassifier, rows: pd.DataFrame, truth: pd.Series) -> Path:
    """The model; beside it the hold-out with its labels as example, and two rows for curl."""
    FILES.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o700)
    file = FILES / f"{NAME}.joblib"
    joblib.dump(model, file)
    rows.join(truth).to_csv(EXAMPLE, index=False)
    ROWS.write_bytes(body(rows.head(2)))
    say("Saved", f"{file} with joblib, {file.stat().st_size / 1e3:.0f} kB")
    return file


def body(rows: pd.DataFrame) -> bytes:
    return msgspec.json.encode({"instances": rows.to_dict("records")})


def road(client: Client, trained: Trained) -> Record:
    """Publishes the forest and asks it every row of the hold-out. Raises `Failed`."""
    about = {
        "format": "sklearn-joblib",
        "target": TARGET,
        "metrics": {"holdout_accuracy": trained.accuracy},
    }
    version = publish(client, NAME, trained.file, EXAMPLE, about)
    if version["runtime"] != "onnx":
        raise Failed(f"this forest should run on onnx; its report: {version['report']}")
    started = time.perf_counter()
    given = client.predict(ModelRef(NAME), body(trained.rows))["predictions"]
    took = (time.perf_counter() - started) * 1000
    words, agrees = agreement(trained, given)
    say(
        "Predicted",
        f"{len(given)} hold-out rows over HTTP in {took:.0f} ms: {words}; the first row's answer:\n"
        f"{msgspec.json.encode(given[0]).decode()}",
    )
    if not agrees:
        raise Failed("the server's answers are not scikit-learn's")
    return version


def agreement(trained: Trained, given: list[dict[str, Any]]) -> tuple[str, bool]:
    """Are the answers to the hold-out scikit-learn's own? In words, and yes or no."""
    same = int(np.sum(trained.model.predict(trained.rows) == [p["label"] for p in given]))
    served = np.array([[p["probabilities"][name] for name in trained.model.classes_] for p in given])
    apart = float(np.abs(trained.model.predict_proba(trained.rows) - served).max())
    words = (
        f"{same} of {len(given)} labels are scikit-learn's,\nlargest difference of a probability {apart:.1g}"
    )
    return words, same == len(given) and apart < TOLERANCE
