"""A loaded model names the rows that it refuses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from registry.errors import DeadlineExceeded, FieldError, Invalid, Unavailable
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.runtime import call_cost, loading
from service.runtime.loading import LoadedModel, RuntimeSpec

SIGNATURE = Signature("regression", (Input("a", "float64"),), (Output("value", "float64", (-1,)),))


class Reciprocal:
    """Refuses every batch with a negative number; answers 1 / a."""

    bytes = 0

    def run(self, rows: Rows) -> Outputs:
        assert rows.matrix is not None
        if (rows.matrix < 0).any():
            raise Invalid("the model refuses these rows: math domain error")
        with np.errstate(divide="ignore"):
            return {"value": 1.0 / rows.matrix[:, 0]}

    def close(self) -> None:
        pass


def loaded(requires_finite: bool = False) -> LoadedModel:
    return LoadedModel("m", 1, "onnx", SIGNATURE, Reciprocal(), requires_finite=requires_finite)


def rows(*values: float) -> Rows:
    return Rows(matrix=np.array(values, dtype=float)[:, None])


def test_the_rows_that_a_model_refuses_are_named() -> None:
    with pytest.raises(Invalid, match=r"^instance 1: the model refuses this row: math domain error") as error:
        loaded().run(rows(1, -1, 2, -2))
    message = "the model refuses this row: math domain error"
    assert error.value.errors == (FieldError(message, 1), FieldError(message, 3))


class Slow(Reciprocal):
    def run(self, rows: Rows) -> Outputs:
        if len(rows) > 1:
            raise DeadlineExceeded("the model did not answer within 0.1 s")
        return super().run(rows)


def test_a_model_whose_cost_cannot_be_measured_within_the_deadline_is_loaded() -> None:
    model = LoadedModel("m", 1, "isolated", SIGNATURE, Slow())
    assert model.cost == call_cost.UNKNOWN
    assert model.run(rows(2.0))["value"].tolist() == [0.5]


class Call(NamedTuple):
    rows: Rows
    deadline: float = float("inf")

    def is_abandoned(self) -> bool:
        return False


def test_of_joint_calls_only_one_with_an_infinite_answer_is_refused() -> None:
    results = loaded(requires_finite=True).run_each([Call(rows(1, 2)), Call(rows(4, 0)), Call(rows(5))])
    first, second, third = results
    assert isinstance(first, dict)
    assert isinstance(third, dict)
    assert (first["value"].tolist(), third["value"].tolist()) == ([1.0, 0.5], [0.2])
    assert isinstance(second, Invalid)
    assert [fault.instance for fault in second.errors] == [1]


def test_a_single_refused_row_is_named() -> None:
    with pytest.raises(Invalid) as error:
        loaded().run(rows(-1))
    assert [fault.instance for fault in error.value.errors] == [0]


def test_rows_with_an_infinite_answer_are_refused_where_the_estimator_refuses_them() -> None:
    with pytest.raises(Invalid, match=r"^instance 2: .*its value is not finite"):
        loaded(requires_finite=True).run(rows(1, 2, 0))
    assert np.isinf(loaded().run(rows(1, 2, 0))["value"][2])


def test_the_models_own_error_is_raised_when_the_search_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "SEARCH_S", -1.0)
    with pytest.raises(Invalid, match=r"^the model refuses these rows: math domain error") as error:
        loaded().run(rows(1, -1, 2))
    assert not error.value.errors


def test_an_unavailable_runtime_is_not_a_refused_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(rows: Rows) -> Outputs:
        raise Unavailable("the child ended")

    model = loaded()
    monkeypatch.setattr(model.runtime, "run", unavailable)
    with pytest.raises(Unavailable, match="the child ended"):
        model.run(rows(1, 2))


@pytest.mark.parametrize(
    ("format_", "runtime", "task", "expected"),
    [
        ("sklearn-joblib", "onnx", "regression", True),
        ("sklearn-joblib", "isolated", "regression", False),
        ("sklearn-joblib", "onnx", "transform", False),
        ("keras", "tflite", "regression", False),
        ("onnx", "onnx", "regression", False),
    ],
)
def test_only_converted_estimators_require_finite_answers(
    format_: str, runtime: str, task: str, expected: bool
) -> None:
    signature = Signature(task, SIGNATURE.inputs, SIGNATURE.outputs)  # type: ignore[arg-type]
    spec = RuntimeSpec("m", 1, runtime, format_, "blob", None, signature)  # type: ignore[arg-type]
    assert spec.requires_finite is expected
