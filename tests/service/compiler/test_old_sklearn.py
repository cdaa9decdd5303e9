"""Pickles that older versions of scikit-learn wrote: served as they answered there, or refused by version."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn

from registry.build_messages import BuildResult
from registry.rows import Rows
from registry.signature import Signature
from service.compiler import safeload
from service.compiler.measure import comparison_rows
from service.compiler.signature.estimator import EstimatorRuntime
from service.runtime.onnx_runtime import OnnxRuntime
from tests.service.compiler.helpers import build_file

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests/data/old_sklearn"
PAGE = ROOT / "docs/howto/models-from-elsewhere.md"
VERSIONS = ("1.5.2", "1.6.1", "1.7.2")

NOT_LOADED = ("gradient_boosting", "gradient_boosting_regressor", "hist_gradient_boosting")
REFUSED = {
    "1.5.2": {
        **dict.fromkeys((*NOT_LOADED, "column_transformer"), "does not load with the installed"),
        "imputed_forest": "SimpleImputer was fitted by scikit-learn 1.5.2 and lacks the attribute",
        "ada_boost": "AdaBoostClassifier was fitted by scikit-learn 1.5.2 with the algorithm SAMME.R",
    },
    "1.6.1": {
        **dict.fromkeys((*NOT_LOADED, "column_transformer"), "does not load with the installed"),
        "imputed_forest": "SimpleImputer was fitted by scikit-learn 1.6.1 and lacks the attribute",
    },
    "1.7.2": {
        **dict.fromkeys(NOT_LOADED, "does not load with the installed"),
        **dict.fromkeys(
            ("column_transformer", "imputed_forest"),
            "SimpleImputer was fitted by scikit-learn 1.7.2 and lacks the attribute '_fill_dtype'",
        ),
    },
}
"""By version and model: words of the reason why it is not served. All other models are."""


@cache
def recorded(version: str) -> dict[str, Any]:
    """By model: `columns`, the rows, and `answers`, by output, what the old version answered to them."""
    content: dict[str, Any] = json.loads((DATA / version / "answers.json").read_text())
    return content


def names(version: str, refused: bool) -> list[str]:
    return [name for name in recorded(version) if (name in REFUSED[version]) is refused]


def build(folder: Path, version: str, model: str, **options: Any) -> BuildResult:
    frame = pd.DataFrame(recorded(version)[model]["columns"])
    return build_file(folder, DATA / version / f"{model}.joblib", frame, **options)


def rows_of(signature: Signature, columns: dict[str, list[Any]]) -> Rows:
    arrays = [
        np.array(columns[i.name], dtype=object if i.dtype == "string" else np.float64)
        for i in signature.inputs
    ]
    if any(i.dtype == "string" for i in signature.inputs):
        return Rows(columns=tuple(arrays))
    return Rows(matrix=np.column_stack(arrays))


def assert_answers_as_recorded(folder: Path, version: str, model: str, built: BuildResult) -> None:
    assert built.state == "ready", built.report
    assert built.signature is not None
    artifact = DATA / version / f"{model}.joblib"
    runtimes: list[Any] = [EstimatorRuntime(safeload.load(artifact), built.signature)]
    if built.servable is not None:
        runtimes.append(OnnxRuntime(folder / "out" / built.servable, built.signature))
    entry = recorded(version)[model]
    for runtime in runtimes:
        outputs = runtime.run(rows_of(built.signature, entry["columns"]))
        for name, expected in entry["answers"].items():
            np.testing.assert_allclose(outputs[name], np.array(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", names("1.5.2", refused=False))
def test_models_of_1_5_answer_as_they_did_there(tmp_path: Path, model: str) -> None:
    built = build(tmp_path, "1.5.2", model)
    assert_answers_as_recorded(tmp_path, "1.5.2", model, built)
    assert any("made by scikit-learn 1.5.2" in warning for warning in built.report["warnings"])


@pytest.mark.parametrize(
    ("version", "model"), [(v, model) for v in VERSIONS[1:] for model in names(v, refused=False)]
)
def test_models_of_later_versions_answer_as_they_did_there(tmp_path: Path, version: str, model: str) -> None:
    built = build(tmp_path, version, model, convert=False)
    assert_answers_as_recorded(tmp_path, version, model, built)


@pytest.mark.parametrize(("version", "model"), [(v, m) for v in VERSIONS for m in names(v, refused=True)])
def test_a_model_that_would_fail_or_answer_otherwise_is_refused_by_version(
    tmp_path: Path, version: str, model: str
) -> None:
    built = build(tmp_path, version, model)
    assert built.state == "rejected"
    reason = built.report["reason"]
    assert REFUSED[version][model] in reason
    assert f"scikit-learn {version}" in reason
    assert f"retrain the model with {sklearn.__version__}" in reason
    assert "convert it to ONNX" in reason
    assert "_loss" not in reason


def test_a_model_whose_comparison_fails_is_served_by_the_isolated_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_by_kind = comparison_rows.rows_by_kind

    def fail_for_models(model: Any, *arguments: Any) -> dict[str, Rows]:
        if model is not None:
            raise AttributeError("'Pipeline' object has no attribute 'transform_input'")
        return rows_by_kind(model, *arguments)

    monkeypatch.setattr(comparison_rows, "rows_by_kind", fail_for_models)
    built = build(tmp_path, "1.5.2", "pipeline")
    assert built.runtime == "isolated"
    assert "transform_input" in (built.runtime_reason or "")
    assert_answers_as_recorded(tmp_path, "1.5.2", "pipeline", built)


def test_the_page_names_the_models_that_are_served() -> None:
    """The table's columns are versions, its first column the models of `make.py`."""
    assert f"are served by scikit-learn {sklearn.__version__}" in PAGE.read_text(encoding="utf-8"), (
        "compare again"
    )
    head, *lines = re.findall(r"^\| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    columns = [cell.strip() for cell in head.split("|")]
    served = {}
    for cells in ([cell.strip() for cell in line.split("|")] for line in lines):
        if len(cells) == len(columns):
            for version, cell in zip(columns[1:], cells[1:], strict=True):
                served[version, cells[0].partition(" ")[0].strip("`")] = cell.startswith("yes")
    for version in VERSIONS:
        for model in recorded(version):
            assert served[version, model] is (model not in REFUSED[version]), (version, model)
