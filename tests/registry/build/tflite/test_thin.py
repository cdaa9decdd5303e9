from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from tests.registry.build.tflite.edge import at_thresholds, both

X, Y = make_classification(2000, 8, n_informative=6, n_classes=3, random_state=0)


@pytest.mark.parametrize(
    "model",
    [
        DecisionTreeClassifier(random_state=0),
        LogisticRegression(max_iter=500),
        RandomForestClassifier(20, random_state=0, max_depth=7),
    ],
    ids=lambda m: type(m).__name__,
)
def test_the_tflite_file_answers_as_the_estimator_does(tmp_path: Path, model: Any) -> None:
    model.fit(X, Y)
    expected, got = both(tmp_path, model, np.concatenate([X, at_thresholds(model, X)]))
    assert np.array_equal(expected["label"], got["label"])
    assert np.allclose(expected["probabilities"], got["probabilities"], atol=1e-6)
