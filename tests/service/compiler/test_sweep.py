"""Every scikit-learn estimator publishes and answers as it does itself; the others are refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.rows import Array
from service.compiler.example import read
from service.compiler.signature.inputs import example_rows
from tests.service.compiler import sweep
from tests.service.compiler.helpers import runtime

pytestmark = pytest.mark.slow


def dense(values: Any) -> Array:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def own_answers(case: sweep.Case, task: str) -> dict[str, Array]:
    """What the estimator itself says, by the names of the signature's outputs."""
    model, rows = case.model, case.rows
    if task == "transform":
        vector = dense(model.transform(rows))
        return {"vector": vector.reshape(len(case.frame), -1)}
    predicted = dense(model.predict(rows))
    if task == "outlier":
        return {"label": predicted, "score": model.decision_function(rows)}
    if task == "clustering":
        return {"cluster": predicted}
    if task == "regression":
        return (
            {"values": predicted}
            if predicted.ndim == 2 and predicted.shape[1] > 1
            else {"value": predicted.ravel()}
        )
    chances = model.predict_proba(rows) if hasattr(model, "predict_proba") else None
    if predicted.ndim == 1:
        return {"label": predicted} | ({} if chances is None else {"probabilities": chances})
    answers: dict[str, Array] = {}
    for i in range(predicted.shape[1]):
        answers[f"y{i}.label"] = predicted[:, i]
        if isinstance(chances, list):
            answers[f"y{i}.probabilities"] = chances[i]
        elif chances is not None:
            answers[f"y{i}.probabilities"] = np.column_stack([1 - chances[:, i], chances[:, i]])
    return answers


@pytest.mark.parametrize("name", sweep.names())
@pytest.mark.filterwarnings("ignore")  # what libraries say while fitting is not what is tested
def test_every_estimator_answers_as_it_does_itself_or_is_refused_by_name(tmp_path: Path, name: str) -> None:
    case, built = sweep.built(tmp_path, name)
    assert case is not None
    assert built is not None
    assert_row_is_current(name, built)
    if not (hasattr(case.model, "predict") or hasattr(case.model, "transform")) or name in sweep.NO_ROWS:
        assert built.state == "rejected"
        assert name in built.report["reason"]
        return
    assert built.state == "ready", built.report
    assert built.signature is not None
    rows = example_rows(built.signature.inputs, read(tmp_path / "example.csv", "text/csv"))
    if name in ("HashingVectorizer", "FeatureHasher"):  # a million numbers for each row
        case.frame, case.rows, rows = case.frame[:4], case.rows[:4], rows.take(slice(0, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answered = runtime(tmp_path, built).run(rows)
        own = own_answers(case, built.signature.task)
    assert set(answered) == set(own) == {o.name for o in built.signature.outputs}
    for output in built.signature.outputs:
        expected, got = own[output.name], answered[output.name]
        assert got.shape == expected.shape
        if output.dtype in ("float64", "float32") and not output.name.endswith("label"):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
        else:
            assert got.tolist() == expected.tolist()


def assert_row_is_current(name: str, built: sweep.Built) -> None:
    """docs/runtimes.md says the same. Between onnx and drifting a machine's own arithmetic may decide."""
    written = next(line for line in sweep.TABLE.read_text().splitlines() if line.startswith(f"| {name} |"))
    now = sweep.row(name, built)
    close = ("| onnx |", "drifts |")
    assert written == now or all(any(c in line for c in close) for line in (written, now)), (
        f"docs/runtimes.md is stale: write it with `python -m tests.service.compiler.sweep`\n{written}\n{now}"
    )


def test_the_table_names_every_estimator() -> None:
    written = [line.split(" | ")[0].removeprefix("| ") for line in sweep.TABLE.read_text().splitlines()]
    assert [name for name in written if name in sweep.names()] == sweep.names()
