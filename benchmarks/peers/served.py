"""The model that a peer serves, from the folder in the variable `BENCH_MODEL`.

`model.joblib` is the fitted classifier. `columns.json` has the dtype of each column by name for a model of
mixed columns, which needs a frame, and is `null` for a model of numbers, which gets an array: the cheapest
input that scikit-learn accepts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import joblib
import numpy as np

FOLDER = Path(os.environ["BENCH_MODEL"])
COLUMNS: dict[str, str] | None = json.loads((FOLDER / "columns.json").read_text())
BATCHING = os.environ.get("BENCH_BATCHING") == "1"
MAX_BATCH = int(os.environ.get("BENCH_MAX_BATCH", "1"))

if COLUMNS:
    import pandas as pd


def load() -> Any:
    return joblib.load(FOLDER / "model.joblib")


def to_input(instances: list[Any]) -> Any:
    """Return rows as `predict_proba` takes them: lists of numbers, or records of a mixed model."""
    if COLUMNS is None:
        return np.asarray(instances, np.float64)
    return pd.DataFrame(instances, columns=list(COLUMNS)).astype(COLUMNS)
