"""Small fitted models to publish, and their bytes."""

from __future__ import annotations

import hashlib
import io
from typing import Any


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pickle_model(model: object) -> bytes:
    """Return the model as joblib writes it."""
    import joblib

    buffer = io.BytesIO()
    joblib.dump(model, buffer)
    return buffer.getvalue()


def cancer_forest(trees: int = 100, depth: int | None = None) -> tuple[Any, bytes, list[dict[str, float]]]:
    """Return a random forest for the breast-cancer data, an example as CSV, and rows to predict."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    data = load_breast_cancer(as_frame=True)
    model = RandomForestClassifier(trees, max_depth=depth, random_state=0).fit(data.data, data.target)
    return model, data.data.head(50).to_csv(index=False).encode(), data.data.to_dict("records")
