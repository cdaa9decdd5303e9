"""From a pickle and an example to a version: what a build answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

from registry.rows import Rows
from tests.registry.build.helpers import publish, runtime


def test_a_forest_with_a_csv_example_becomes_onnx(tmp_path: Path) -> None:
    data = load_breast_cancer(as_frame=True)
    model = RandomForestClassifier(100, random_state=0).fit(data.data, data.target)
    built = publish(tmp_path, model, data.frame, target="target")
    assert (built.state, built.runtime) == ("ready", "onnx")
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == list(data.data.columns)
    assert [o.name for o in built.signature.outputs] == ["label", "probabilities"]
    assert built.signature.outputs[0].classes == (0, 1)
    assert built.metrics["accuracy"] > 0.99
    assert built.report["parity"]["label_mismatches"] == 0
    assert set(built.report["parity"]["rows"]) == {"example", "random", "wide", "threshold"}
    assert msgspec.json.decode(msgspec.json.encode(built.report)) == built.report

    answered = runtime(tmp_path, built).run(Rows(matrix=data.data.to_numpy()))
    assert (answered["label"] == model.predict(data.data)).all()
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(data.data), atol=1e-6)


def test_the_example_row_is_in_the_signature(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.0, 9.0, 4.0] * 5, "b": [1, 2, 3, 4] * 5})
    built = publish(tmp_path, RandomForestClassifier(3).fit(frame, [0, 1, 0, 1] * 5), frame)
    assert built.signature is not None
    a, b = built.signature.inputs
    assert (a.dtype, a.example, a.minimum, a.maximum, a.nullable) == ("float64", 1.5, 1.5, 9.0, False)
    assert (b.dtype, b.example) == ("int64", 1)
