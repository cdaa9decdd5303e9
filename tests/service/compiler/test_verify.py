"""Checks of a built version's runtimes, in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from registry.build_messages import BuildResult, VerifyRequest, VerifyResult
from registry.rows import Outputs, Rows
from registry.vocabulary import AnsweringRuntime
from service.compiler.verify import verify_runtime
from service.runtime import libraries
from service.runtime.forest_runtime import ForestRuntime
from tests.service.compiler.helpers import build_model

FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildResult]:
    """A forest with an ONNX graph and a table of nodes, and its folder."""
    folder = tmp_path_factory.mktemp("forest")
    model = RandomForestClassifier(5, random_state=0).fit(FRAME, FRAME["a"] > 0)
    return folder, build_model(folder, model, FRAME)


def verify(folder: Path, built: BuildResult, runtime: AnsweringRuntime, file: Path) -> VerifyResult:
    assert built.signature is not None
    return verify_runtime(
        VerifyRequest(
            runtime=runtime,
            file=str(file),
            measured=str(folder / "out" / (built.measured or "")),
            signature=built.signature,
            tolerance=2e-6,
            out=str(folder),
        )
    )


@pytest.mark.parametrize("runtime", ["onnx", "forest", "isolated"])
def test_every_runtime_of_a_build_agrees(built: tuple[Path, BuildResult], runtime: AnsweringRuntime) -> None:
    folder, result = built
    files = {"onnx": result.servable, "forest": result.forest, "isolated": "../model.joblib"}
    checked = verify(folder, result, runtime, folder / "out" / (files[runtime] or ""))
    assert (checked.state, checked.report["label_mismatches"]) == ("ready", 0)
    assert set(checked.report["rows"]) == {"example", "random", "wide", "threshold"}
    assert checked.libraries == libraries.versions_for([runtime])
    assert checked.measured is None


def test_a_table_that_answers_rows_alone_differently_does_not_agree(
    built: tuple[Path, BuildResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Differing(ForestRuntime):
        def run(self, rows: Rows) -> Outputs:
            outputs = super().run(rows)
            if len(rows) == 1:
                outputs["probabilities"] = outputs["probabilities"] + 1e-9
            return outputs

    monkeypatch.setattr("service.compiler.verify.ForestRuntime", Differing)
    folder, result = built
    checked = verify(folder, result, "forest", folder / "out" / (result.forest or ""))
    assert checked.state == "rejected"
    assert "differently alone and together" in checked.report["reason"]


def test_the_build_records_the_libraries_that_its_answers_depend_on(
    built: tuple[Path, BuildResult],
) -> None:
    assert built[1].libraries == libraries.versions_for(["onnx", "forest"])
    assert {"onnxruntime", "llvmlite", "numba", "numpy", "trivium"} == set(built[1].libraries)


def test_another_model_differs_and_its_answers_are_saved_for_an_acceptance(
    built: tuple[Path, BuildResult], tmp_path: Path
) -> None:
    folder, result = built
    other = RandomForestClassifier(5, random_state=0).fit(FRAME, FRAME["b"] > 0)
    checked = verify(
        folder, result, "onnx", tmp_path / "out" / (build_model(tmp_path, other, FRAME).servable or "")
    )
    assert checked.state == "rejected"
    assert "labels differ" in checked.report["reason"]
    assert checked.measured is not None


def test_a_runtime_that_fails_on_the_rows_has_no_figures(
    built: tuple[Path, BuildResult], tmp_path: Path
) -> None:
    folder, result = built
    wider = FRAME.assign(d=1.0)
    other = RandomForestClassifier(5, random_state=0).fit(wider, FRAME["b"] > 0)
    file = tmp_path / "out" / (build_model(tmp_path, other, wider).servable or "")
    checked = verify(folder, result, "onnx", file)
    assert (checked.state, list(checked.report)) == ("rejected", ["reason"])
    assert checked.report["reason"].startswith("it fails on example rows: ")


def test_a_runtime_that_cannot_load_its_file_differs(built: tuple[Path, BuildResult]) -> None:
    folder, result = built
    for runtime in ("onnx", "forest", "isolated", "tflite"):
        checked = verify(folder, result, runtime, folder / "example.csv")
        assert checked.state == "rejected"
        assert checked.report["reason"]
