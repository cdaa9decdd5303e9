"""Builds with the publisher's answers, of every format but Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from registry.build_messages import BuildResult
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.tflite.conversion import convert
from tests.service.compiler.helpers import build_file, build_model

FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=["a", "b", "c"])
LABELS = np.where(FRAME["a"] + FRAME["b"] > 0, "high", "low")


def answers_of(model: Any, rows: Any = FRAME) -> pd.DataFrame:
    """The columns of a batch output, computed by the model itself."""
    table = pd.DataFrame({"label": model.predict(rows)})
    for name, column in zip(model.classes_, model.predict_proba(rows).T, strict=True):
        table[f"probability.{name}"] = column
    return table


def written(folder: Path, answers: pd.DataFrame) -> dict[str, str]:
    """The answers as CSV: the options of a build."""
    answers.to_csv(folder / "answers.csv", index=False)
    return {"answers": str(folder / "answers.csv"), "answers_media_type": "text/csv"}


def changed(answers: pd.DataFrame) -> pd.DataFrame:
    """As another release of a library may answer: three other probabilities and another label."""
    other = answers.copy()
    numbers = other.columns[-1]
    other.loc[[3, 7, 9], numbers] += 0.01
    other.loc[5, "label"] = "low" if other.loc[5, "label"] == "high" else "high"
    return other


def check_rejected(built: BuildResult) -> None:
    assert built.state == "rejected"
    assert "1 labels differ and 3 numbers are off by up to 0.01 in 40 rows" in built.report["reason"]
    assert sorted(w["row"] for w in built.report["answers"]["worst"]) == [3, 5, 7, 9]


def test_answers_of_the_same_model_are_within_the_bounds(tmp_path: Path) -> None:
    model = RandomForestClassifier(10, random_state=0).fit(FRAME, LABELS)
    built = build_model(tmp_path, model, FRAME, **written(tmp_path, answers_of(model)))
    assert (built.state, built.runtime) == ("ready", "onnx")
    report = built.report["answers"]
    assert (report["rows"], report["label_mismatches"], report["worst"]) == (40, 0, [])
    assert report["largest_difference"] < 1e-6
    assert report["bounds"]["probabilities"] == {"absolute": 1e-5}


def test_other_answers_reject_a_converted_model(tmp_path: Path) -> None:
    model = LogisticRegression().fit(FRAME, LABELS)
    check_rejected(build_model(tmp_path, model, FRAME, **written(tmp_path, changed(answers_of(model)))))


def test_other_answers_reject_an_isolated_model(tmp_path: Path) -> None:
    model = make_pipeline(FunctionTransformer(np.sin), LogisticRegression()).fit(FRAME, LABELS)
    right = build_model(tmp_path, model, FRAME, **written(tmp_path, answers_of(model)))
    assert (right.state, right.runtime) == ("ready", "isolated")
    (tmp_path / "out").rename(tmp_path / "first")
    check_rejected(build_model(tmp_path, model, FRAME, **written(tmp_path, changed(answers_of(model)))))


def test_other_answers_reject_an_onnx_file(tmp_path: Path) -> None:
    rows = FRAME.to_numpy(np.float32)
    model = LogisticRegression().fit(rows, LABELS)
    file = tmp_path / "model.onnx"
    file.write_bytes(to_onnx(model, rows[:1]).SerializeToString())
    answers = answers_of(model, rows)
    right = build_file(tmp_path, file, FRAME, format="onnx", **written(tmp_path, answers))
    assert right.state == "ready", right.report
    (tmp_path / "out").rename(tmp_path / "first")
    check_rejected(build_file(tmp_path, file, FRAME, format="onnx", **written(tmp_path, changed(answers))))


def test_other_answers_reject_a_tflite_file(tmp_path: Path) -> None:
    model = LogisticRegression().fit(FRAME.to_numpy(), LABELS)
    file = tmp_path / "model.tflite"
    file.write_bytes(convert(model, describe(model, None, Corrections.read(None)).signature))
    frame = FRAME.set_axis(["x0", "x1", "x2"], axis=1)
    answers = answers_of(model, FRAME.to_numpy())
    right = build_file(tmp_path, file, frame, format="tflite", **written(tmp_path, answers))
    assert right.state == "ready", right.report
    (tmp_path / "out").rename(tmp_path / "first")
    check_rejected(build_file(tmp_path, file, frame, format="tflite", **written(tmp_path, changed(answers))))


def test_rows_with_missing_values_that_the_model_refuses_are_not_compared(tmp_path: Path) -> None:
    model = LinearRegression().fit(FRAME, FRAME["c"])
    example = FRAME.copy()
    example.loc[2, "b"] = np.nan
    answers = pd.DataFrame({"value": model.predict(FRAME)})
    answers.loc[2, "value"] = np.nan
    built = build_model(tmp_path, model, example, **written(tmp_path, answers))
    assert built.state == "ready", built.report
    assert built.report["answers"]["rows"] == 39


def test_an_example_longer_than_what_is_read_has_answers_for_all_its_rows(tmp_path: Path) -> None:
    frame = pd.concat([FRAME] * 251, ignore_index=True)  # 10,040 rows
    model = LinearRegression().fit(FRAME, FRAME["c"])
    answers = pd.DataFrame({"value": model.predict(frame)})
    short = build_model(tmp_path, model, frame, **written(tmp_path, answers.iloc[:10_000]))
    assert short.report["reason"].startswith("the answers have 10000 rows and the example has 10040")
    (tmp_path / "out").rename(tmp_path / "first")
    assert (
        build_model(tmp_path, model, frame, **written(tmp_path, answers)).report["answers"]["rows"] == 10_000
    )


def test_rows_that_the_model_refuses_reject_the_answers_with_its_reason(tmp_path: Path) -> None:
    frame = pd.DataFrame({"city": ["Bern", "Genf"] * 20})
    model = make_pipeline(OneHotEncoder(), FunctionTransformer(abs), LogisticRegression())
    model.fit(frame, [0, 1] * 20)
    answers = pd.DataFrame({"label": model.predict(frame)})
    example = frame.copy()
    example.loc[30, "city"] = "Chur"  # after the rows that the description of the model looks at
    built = build_model(tmp_path, model, example, **written(tmp_path, answers))
    assert built.state == "rejected"
    assert "Chur" in built.report["reason"]
