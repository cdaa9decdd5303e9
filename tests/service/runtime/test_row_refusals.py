"""Rows that a model refuses are found among the others, with a bounded number of calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from registry.errors import DeadlineExceeded, Invalid, StaleTask, Unavailable
from registry.rows import Outputs, Rows
from service.runtime import row_refusals
from service.runtime.isolated_runtime import CallFailed, RestartPending
from service.runtime.row_refusals import RowScorer, ScoredRows


class Model:
    """Answers each row with its first value. `fail` may raise an error for the values of a call."""

    def __init__(self, fail: Callable[[list[float]], None]) -> None:
        self._fail = fail
        self.calls: list[int] = []  # the number of rows of each call

    def run(self, rows: Rows) -> Outputs:
        assert rows.matrix is not None
        values = rows.matrix[:, 0]
        self.calls.append(len(values))
        self._fail(values.tolist())
        return {"value": values}


def numbers(count: int) -> Rows:
    return Rows(matrix=np.arange(float(count)).reshape(-1, 1))


def refusing(bad: set[int]) -> Model:
    def fail(values: list[float]) -> None:
        if found := bad & set(map(int, values)):
            raise Invalid(f"the model refuses these rows: {min(found)}")

    return Model(fail)


def run(model: Model, rows: Rows, max_refused: float = 1e9, finite: bool = False) -> ScoredRows:
    return RowScorer(model.run, finite).run(rows, lambda: None, max_refused)


def messages(scored: ScoredRows) -> dict[int, str]:
    return {row: error.message for row, error in scored.refused.items()}


@pytest.mark.parametrize(
    ("count", "bad"),
    [
        (1, []), (1, [0]), (2, [1]), (16, [0, 15]), (17, [16]), (1000, [0, 499, 500, 999]), (40, range(40)),
        (300, range(0, 300, 3)),
    ],
)  # fmt: skip
def test_refused_rows_are_named_and_the_others_answered_in_order(count: int, bad: list[int]) -> None:
    scored = run(refusing(set(bad)), numbers(count))
    assert messages(scored) == {row: f"the model refuses this row: {row}" for row in bad}
    assert np.flatnonzero(~scored.accepted).tolist() == list(bad)
    valid = [row for row in range(count) if row not in bad]
    assert valid == ([] if scored.outputs is None else scored.outputs["value"].tolist())


def test_one_refused_row_among_many_takes_few_calls() -> None:
    model = refusing({40_000})
    run(model, numbers(65_536))
    assert len(model.calls) <= 1 + 6 * 8
    assert sum(model.calls) < 3 * 65_536


def test_a_model_that_refuses_every_row_is_called_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_refusals, "MAX_CALLS", 50)
    model = refusing(set(range(5000)))
    scorer = RowScorer(model.run)
    for _ in range(2):
        scored = scorer.run(numbers(5000), lambda: None)
        assert len(scored.refused) == 5000
    assert len(model.calls) < 150
    assert "refuses a block of 5000 rows with this one" in messages(scored)[7]
    assert "not tried alone" in messages(scored)[7]


def test_rows_are_not_searched_for_once_the_job_fails_anyway() -> None:
    model = refusing(set(range(5000)))
    scored = run(model, numbers(5000), max_refused=10)
    assert len(scored.refused) == 5000
    assert len(model.calls) < 200


def test_the_search_ends_when_the_job_is_cancelled() -> None:
    model = refusing({3})

    def cancel() -> None:
        raise StaleTask(1)

    with pytest.raises(StaleTask):
        RowScorer(model.run).run(numbers(100), cancel)
    assert model.calls == [100]


@pytest.mark.parametrize("error", [CallFailed("its process ended"), DeadlineExceeded("too slow")])
def test_a_row_that_ends_the_process_twice_fails_alone(error: Unavailable) -> None:
    def fail(values: list[float]) -> None:
        if 70 in values:
            raise error

    model = Model(fail)
    scored = run(model, numbers(100))
    assert messages(scored) == {70: f"the model fails for this row: {error}"}
    assert scored.outputs is not None
    assert len(scored.outputs["value"]) == 99
    assert model.calls.count(1) == 4  # 69, 70 twice, and 77


def test_a_row_whose_call_fails_once_is_answered() -> None:
    failures = 3

    def fail(values: list[float]) -> None:
        nonlocal failures
        if 7 in values and failures:
            failures -= 1
            raise CallFailed("its process ended")

    assert run(Model(fail), numbers(256)).refused == {}


def test_a_broken_model_fails_after_a_bounded_number_of_calls() -> None:
    def fail(values: list[float]) -> None:
        raise CallFailed("the model failed: AttributeError")

    model = Model(fail)
    with pytest.raises(Unavailable, match=r"calls failed in one partition, the last one: .*AttributeError"):
        run(model, numbers(1000))
    assert len(model.calls) == row_refusals.MAX_LOST_CALLS + 1


def test_an_error_that_no_row_causes_is_raised_at_once() -> None:
    def fail(values: list[float]) -> None:
        raise Unavailable("the model cannot be loaded")

    model = Model(fail)
    with pytest.raises(Unavailable, match="cannot be loaded"):
        run(model, numbers(1000))
    assert model.calls == [1000]


def test_a_delayed_restart_is_awaited() -> None:
    pauses = [0.001, 0.001]

    def fail(values: list[float]) -> None:
        if pauses:
            raise RestartPending(pauses.pop())

    model = Model(fail)
    assert run(model, numbers(10)).refused == {}
    assert model.calls == [10, 10, 10]


def test_a_restart_that_is_delayed_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(values: list[float]) -> None:
        raise RestartPending(3600)

    with pytest.raises(Unavailable, match="restarted in"):
        run(Model(fail), numbers(10))


@pytest.mark.parametrize("finite", [False, True])
def test_rows_with_infinite_answers_are_refused_where_the_estimator_refuses_them(finite: bool) -> None:
    rows = Rows(matrix=np.array([[1.0], [np.inf], [2.0], [np.nan]]))
    scored = run(Model(lambda values: None), rows, finite=finite)
    assert list(scored.refused) == ([1, 3] if finite else [])
    assert scored.outputs is not None
    assert len(scored.outputs["value"]) == (2 if finite else 4)
    if finite:
        assert messages(scored)[1].startswith("the model refuses this row: its value is not finite")
