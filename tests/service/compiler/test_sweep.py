"""Every scikit-learn estimator is served with its own answers, or rejected by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.build_messages import BuildResult
from registry.rows import Array
from service.compiler.example import read
from service.compiler.signature.inputs import example_rows
from tests.service.compiler import sweep
from tests.service.compiler.helpers import runtime

pytestmark = pytest.mark.slow


def dense(values: Any) -> Array:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def own_answers(case: sweep.SweepCase, task: str) -> dict[str, Array]:
    """The estimator's own answers, by the names of the signature's outputs."""
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
    probabilities = model.predict_proba(rows) if hasattr(model, "predict_proba") else None
    if predicted.ndim == 1:
        return {"label": predicted} | ({} if probabilities is None else {"probabilities": probabilities})
    answers: dict[str, Array] = {}
    for i in range(predicted.shape[1]):
        answers[f"y{i}.label"] = predicted[:, i]
        if isinstance(probabilities, list):
            answers[f"y{i}.probabilities"] = probabilities[i]
        elif probabilities is not None:
            answers[f"y{i}.probabilities"] = np.column_stack([1 - probabilities[:, i], probabilities[:, i]])
    return answers


@pytest.mark.parametrize("name", sweep.names())
@pytest.mark.filterwarnings("ignore")  # warnings of libraries during fit are not tested
def test_every_estimator_is_served_with_its_own_answers_or_rejected_by_name(
    tmp_path: Path, name: str
) -> None:
    case, built = sweep.fit_and_build(tmp_path, name)
    assert case is not None
    assert built is not None
    assert_row_is_current(name, built)
    if not (hasattr(case.model, "predict") or hasattr(case.model, "transform")) or name in sweep.NOT_ROWS:
        assert built.state == "rejected"
        assert name in built.report["reason"]
        return
    assert built.state == "ready", built.report
    assert built.signature is not None
    rows = example_rows(built.signature.inputs, read(tmp_path / "example.csv", "text/csv"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answered = runtime(tmp_path, built).run(rows)
        own = own_answers(case, built.signature.task)
    assert set(answered) == set(own) == {o.name for o in built.signature.outputs}
    for output in built.signature.outputs:
        expected, actual = own[output.name], answered[output.name]
        assert actual.shape == expected.shape
        if output.dtype in ("float64", "float32") and not output.name.endswith("label"):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
        else:
            assert actual.tolist() == expected.tolist()


def assert_row_is_current(name: str, built: BuildResult) -> None:
    """docs/runtimes.md has the same line. Floating point units decide between onnx and drifting results."""
    written = next(line for line in sweep.TABLE.read_text().splitlines() if line.startswith(f"| {name} |"))
    current = sweep.row(name, built)
    close = ("| onnx |", "drifts |")
    assert written == current or all(any(c in line for c in close) for line in (written, current)), (
        "docs/runtimes.md is outdated: update it with `python -m tests.service.compiler.sweep`\n"
        f"{written}\n{current}"
    )


def test_the_table_names_every_estimator() -> None:
    written = [line.split(" | ")[0].removeprefix("| ") for line in sweep.TABLE.read_text().splitlines()]
    assert [name for name in written if name in sweep.names()] == sweep.names()
