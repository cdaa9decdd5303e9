"""The runtimes of a worker's lanes: loaded once, shared if possible, and evicted when unused."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from registry.errors import Unavailable
from registry.rows import Outputs, Rows
from service.runtime.loading import ModelRuntime
from service.worker.lane_models import MAX_UNUSED, LaneModels
from tests.registry.helpers import threads


class StubRuntime:
    bytes = 1

    def __init__(self, version_id: int) -> None:
        self.version_id = version_id
        self.times_closed = 0

    def run(self, rows: Rows) -> Outputs:
        return {}

    def close(self) -> None:
        self.times_closed += 1


class LaneModelBench:
    """`LaneModels` with stub runtimes.

    Versions above 100 cannot be shared, and version 13 cannot be loaded.
    """

    def __init__(self) -> None:
        self.runtimes: list[StubRuntime] = []
        self.fallbacks: dict[int, str | None] = {}
        self.lane_models = LaneModels(
            self._load, lambda runtime: self.number(runtime) <= 100, self.fallbacks.get
        )

    def _load(self, version_id: int) -> ModelRuntime:
        if version_id == 13:
            raise Unavailable("cannot be loaded")
        self.runtimes.append(StubRuntime(version_id))
        return self.runtimes[-1]

    def number(self, runtime: ModelRuntime) -> int:
        assert isinstance(runtime, StubRuntime)
        return runtime.version_id

    @property
    def loaded(self) -> Counter[int]:
        return Counter(r.version_id for r in self.runtimes)

    @property
    def closed(self) -> list[int]:
        return [r.version_id for r in self.runtimes if r.times_closed]

    def use(self, *version_ids: int) -> None:
        for version_id in version_ids:
            with self.lane_models.using(version_id) as runtime:
                assert self.number(runtime) == version_id


@pytest.fixture
def bench() -> LaneModelBench:
    return LaneModelBench()


def use_at_once(bench: LaneModelBench, version_id: int, lanes: int = 4) -> list[ModelRuntime | BaseException]:
    """Use the version in `lanes` threads at the same moment; return their runtimes."""
    gate = threading.Barrier(lanes)

    def use() -> ModelRuntime:
        with bench.lane_models.using(version_id) as runtime:
            gate.wait(60)
            return runtime

    return threads(*[use] * lanes)


def test_lanes_share_a_runtime_that_is_loaded_once(bench: LaneModelBench) -> None:
    assert len(set(map(id, use_at_once(bench, 1)))) == 1
    bench.use(1, 1)
    assert bench.loaded == {1: 1}


def test_each_lane_has_its_own_runtime_if_it_cannot_be_shared(bench: LaneModelBench) -> None:
    assert len(set(map(id, use_at_once(bench, 101)))) == 4
    use_at_once(bench, 101)  # reuses the same four
    assert bench.loaded == {101: 4}


def test_the_least_recently_used_version_is_evicted_first(bench: LaneModelBench) -> None:
    bench.use(*range(1, MAX_UNUSED + 1), 1, 50)
    assert bench.closed == [2]
    bench.use(2)
    assert bench.loaded[2] == 2
    assert bench.closed == [2, 3]


def test_all_runtimes_of_a_version_are_evicted_together(bench: LaneModelBench) -> None:
    use_at_once(bench, 101, lanes=3)
    bench.use(*range(1, MAX_UNUSED + 1))
    assert bench.closed == [101] * 3


def test_a_version_in_use_is_not_evicted(bench: LaneModelBench) -> None:
    with bench.lane_models.using(1), bench.lane_models.using(101):
        bench.use(*range(2, MAX_UNUSED + 4))
        assert not {1, 101} & set(bench.closed)
    bench.use(60)
    assert {1, 101} <= set(bench.closed)
    assert {r.times_closed for r in bench.runtimes} <= {0, 1}


def test_a_failed_load_raises_its_error_and_is_retried(bench: LaneModelBench) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be loaded"), bench.lane_models.using(13):
            pass
    assert [str(e) for e in use_at_once(bench, 13)] == ["cannot be loaded"] * 4
    bench.use(1)


def test_a_runtime_is_reused_after_an_error(bench: LaneModelBench) -> None:
    with pytest.raises(ValueError, match="invalid row"), bench.lane_models.using(101):
        raise ValueError("invalid row")
    bench.use(101)
    assert bench.loaded == {101: 1}


def test_close_closes_each_runtime_once(bench: LaneModelBench) -> None:
    use_at_once(bench, 101)
    bench.use(1)
    bench.lane_models.close()
    bench.lane_models.close()
    assert [r.times_closed for r in bench.runtimes] == [1] * 5


@pytest.mark.parametrize("version_id", [1, 101])
def test_a_version_with_another_fallback_is_loaded_again(bench: LaneModelBench, version_id: int) -> None:
    with bench.lane_models.using(version_id):
        bench.fallbacks[version_id] = "isolated"
        bench.use(version_id)
        assert (bench.loaded[version_id], bench.closed) == (2, [])  # the first is still in use
    assert bench.closed == [version_id]
    bench.use(version_id)
    assert bench.loaded[version_id] == 2
