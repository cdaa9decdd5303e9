"""The choice between a model's candidate graphs: the figures of each trial and the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

from registry.errors import Refused, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import parity
from service.compiler.measure.parity import ParityFigures, ReferenceBlock
from service.compiler.onnx import candidates, convert
from service.compiler.onnx.candidates import CandidateChoice, CandidateTrial
from service.compiler.onnx.convert import Candidate
from service.runtime.onnx_runtime import OnnxRuntime
from tests.service.compiler.tflite.litert_helpers import signature_of

ROWS = np.arange(12.0).reshape(6, 2)
MODEL = LinearRegression().fit(ROWS, ROWS[:, 0])
SIGNATURE = signature_of(MODEL)
DOUBLE, SINGLE = Candidate("float64", "tensor"), Candidate("float32", "tensor")


def answer(rows: Rows) -> Outputs:
    return {"value": MODEL.predict(rows.matrix)}


def blocks() -> list[ReferenceBlock]:
    return parity.reference(answer, {"random": Rows(ROWS), "wide": Rows(ROWS * 10)})


class Shifted:
    """The runtime of a graph, with answers off by a number of the candidate's own."""

    def __init__(self, path: Path, signature: Signature, shifts: list[float]) -> None:
        self._runtime, self._shift = OnnxRuntime(path, signature), shifts.pop(0)

    def run(self, rows: Rows) -> Outputs:
        return {"value": self._runtime.run(rows)["value"] + self._shift}


def choose(folder: Path, *shifts: float) -> CandidateChoice:
    remaining = list(shifts)
    return candidates.choose(
        MODEL, SIGNATURE, answer, blocks, folder, lambda path, signature: Shifted(path, signature, remaining)
    )


def test_the_first_candidate_within_the_bounds_is_chosen(tmp_path: Path) -> None:
    choice = choose(tmp_path, 0.0)
    (trial,) = choice.trials
    assert choice.chosen is trial
    assert choice.reason == "answers as scikit-learn does, fed as float64, one tensor"
    assert trial.file == tmp_path / "candidate-0.onnx"
    entry = trial.to_json()
    assert (entry["outcome"], entry["rows"]) == ("within bounds", {"random": 6, "wide": 6})
    assert entry["bytes"] == trial.file.stat().st_size > 0
    assert (entry["input_dtype"], entry["form"]) == ("float64", "float64, one tensor")
    assert "error" not in entry or entry["error"] is None
    assert 0 < entry["convert_s"] < 600, "seconds, and not a time of day"
    assert 0 <= entry["parity_s"] < 600
    timed = CandidateTrial(DOUBLE, convert_s=1.23456, parity_s=0.00004).to_json()
    assert (timed["convert_s"], timed["parity_s"]) == (1.2346, 0.0)


def test_a_candidate_with_other_answers_is_deleted_and_the_next_is_tried(tmp_path: Path) -> None:
    choice = choose(tmp_path, 1.0, 0.0)
    first, second = choice.trials
    assert (first.file, first.to_json()["outcome"]) == (None, "drifts")
    assert choice.chosen is second
    assert [p.name for p in tmp_path.iterdir()] == ["candidate-1.onnx"]


def test_the_reason_names_the_figures_of_the_best_candidate(tmp_path: Path) -> None:
    choice = choose(tmp_path, 1.0, 5.5e-5)  # relative to the numbers: within the bounds from 60 on
    assert choice.chosen is None
    figures = choice.trials[1].figures
    assert figures is not None
    assert (figures.beyond, figures.worst) == (9, "random")
    assert choice.reason == (
        f"its ONNX form drifts: 9 numbers are off by up to {figures.largest_difference:.2g} in 12 rows, "
        "most on random rows"
    )
    assert list(tmp_path.iterdir()) == []


def trial(**figures: Any) -> CandidateTrial:
    return CandidateTrial(DOUBLE, ParityFigures(rows={"example": 3, "random": 4}, **figures))


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        (
            [trial(label_mismatches=2, beyond=1, largest_difference=0.5, worst="example")],
            "its ONNX form drifts: 2 labels differ and 1 numbers are off by up to 0.5 in 7 rows, "
            "most on example rows",
        ),
        (
            [trial(label_mismatches=2, worst="random")],
            "its ONNX form drifts: 2 labels differ in 7 rows, most on random rows",
        ),
        (
            [trial(error="random rows: no"), trial(label_mismatches=9, worst="random")],
            "its ONNX form drifts: 9 labels differ in 7 rows, most on random rows",
        ),
        (
            [trial(label_mismatches=1, beyond=9, worst="a"), trial(label_mismatches=2, worst="b")],
            "its ONNX form drifts: 1 labels differ and 9 numbers are off by up to 0 in 7 rows, "
            "most on a rows",
        ),
        (
            [trial(beyond=3, worst="a"), trial(beyond=2, worst="b")],
            "its ONNX form drifts: 2 numbers are off by up to 0 in 7 rows, most on b rows",
        ),
        ([trial(error="random rows: no")], "its ONNX form fails on random rows: no"),
        (
            [CandidateTrial(DOUBLE, error="first"), CandidateTrial(SINGLE, error="second")],
            "it does not convert to ONNX (first)",
        ),
    ],
)
def test_the_reason_for_no_graph_is_that_of_the_best_trial(trials: list[CandidateTrial], reason: str) -> None:
    assert candidates._explain_failure(trials) == reason


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Refused("refused"), "refused"),
        (Unavailable("unavailable"), "unavailable"),
        (MemoryError(), "converting it needs more memory than a build may use"),
        (RuntimeError("anything"), "RuntimeError: anything"),
    ],
)
def test_a_candidate_that_does_not_load_has_an_error_and_no_file(
    tmp_path: Path, error: Exception, message: str
) -> None:
    def load(path: Path, signature: Signature) -> Any:
        assert path.exists()
        raise error

    choice = candidates.choose(MODEL, SIGNATURE, answer, blocks, tmp_path, load)
    assert choice.chosen is None
    assert [t.to_json()["outcome"] for t in choice.trials] == ["failed", "failed"]
    assert all(message in t.to_json()["error"] for t in choice.trials)
    assert all(t.to_json().keys().isdisjoint({"rows", "beyond"}) for t in choice.trials)
    assert list(tmp_path.iterdir()) == []
    assert "it does not convert to ONNX" in choice.reason


FRAME = pd.DataFrame({"city": ["x", "y"] * 3, "size": [1.0, 2.0, 3.0] * 2, "count": [1, 2, 3, 4, 5, 6]})
NUMBER = Input("size", "float64")
LABEL = (Output("label", "int64", (-1,), (0, 1)),)


def layouts(model: Any, *inputs: Input) -> list[Candidate]:
    return convert.candidates(model, Signature("classification", inputs, LABEL))


def test_columns_are_separate_inputs_where_a_frame_holds_text_or_is_split() -> None:
    columns = [Candidate("float64", "columns"), Candidate("float32", "columns")]
    plain = LogisticRegression().fit(FRAME[["size"]], [0, 1] * 3)
    assert layouts(plain, NUMBER) == [DOUBLE, SINGLE]
    split = make_pipeline(ColumnTransformer([("a", "passthrough", ["size"])]), LogisticRegression())
    assert layouts(split.fit(FRAME[["size"]], [0, 1] * 3), NUMBER) == columns
    text = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(FRAME[["city"]], [0, 1] * 3)
    assert layouts(text, Input("city", "string")) == columns
    assert [c.title for c in columns] == [
        "float64, one input per column",
        "float32, one input per column",
    ]


@pytest.mark.parametrize(
    ("feature", "whole"),
    [
        (Input("count", "int64"), True),
        (Input("count", "bool"), True),
        (Input("count", "int64", nullable=True), False),
        (Input("count", "float64"), False),
    ],
)
def test_whole_numbers_without_missing_values_are_tried_as_int64_first(feature: Input, whole: bool) -> None:
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(FRAME[["city", "count"]], [0, 1] * 3)
    tried = layouts(model, Input("city", "string"), feature)
    assert [c.integers for c in tried] == ([True, True, False, False] if whole else [False, False])
    assert [c.floats for c in tried] == ["float64", "float32"] * (2 if whole else 1)


def test_models_that_no_graph_can_answer_for_have_no_candidates() -> None:
    texts = make_pipeline(CountVectorizer(), LogisticRegression()).fit(["good film", "bad film"], [0, 1])
    with pytest.raises(Refused, match="it takes texts, which scikit-learn itself has to answer"):
        layouts(texts, Input("text", "string"))
    quantiles = make_pipeline(QuantileTransformer(n_quantiles=2), LogisticRegression())
    with pytest.raises(Refused, match="QuantileTransformer takes up to a minute"):
        layouts(quantiles.fit(FRAME[["size"]], [0, 1] * 3), NUMBER)


def test_a_model_that_cannot_be_compared_is_not_converted(tmp_path: Path) -> None:
    def incomplete() -> list[ReferenceBlock]:
        raise AttributeError("'Pipeline' object has no attribute 'transform_input'")

    choice = candidates.choose(MODEL, SIGNATURE, answer, incomplete, tmp_path, OnnxRuntime)
    assert choice.chosen is None
    assert choice.reason.startswith(
        "it cannot be compared with an ONNX form (AttributeError: 'Pipeline' object"
    )
    choice = candidates.choose(MODEL, SIGNATURE, answer, list, tmp_path, OnnxRuntime)
    assert (choice.chosen, choice.reason.split(" rows")[0]) == (None, "it answers none of the")
