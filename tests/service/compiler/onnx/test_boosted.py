"""ONNX files from the converters of XGBoost, LightGBM and CatBoost answer as the libraries did."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.service.compiler.helpers import build_file

DATA = Path(__file__).parents[4] / "tests/data/boosted"


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_a_converted_model_gives_its_librarys_answers(tmp_path: Path, library: str) -> None:
    answers = {"answers": str(DATA / f"{library}.answers.csv"), "answers_media_type": "text/csv"}
    rows = pd.read_csv(DATA / "rows.csv")
    built = build_file(tmp_path, DATA / f"{library}.onnx", rows, format="onnx", **answers)
    assert built.state == "ready", built.report
    compared = built.report["answers"]
    assert (compared["rows"], compared["label_mismatches"]) == (30, 0)
    assert compared["columns"] == ["label", "probability.0", "probability.1", "probability.2"]
    assert compared["largest_difference"] < 1e-6


def test_the_answers_of_another_model_reject_a_converted_one(tmp_path: Path) -> None:
    answers = {"answers": str(DATA / "catboost.answers.csv"), "answers_media_type": "text/csv"}
    rows = pd.read_csv(DATA / "rows.csv")
    built = build_file(tmp_path, DATA / "lightgbm.onnx", rows, format="onnx", **answers)
    assert built.state == "rejected"
    assert "does not give the publisher's answers" in built.report["reason"]
