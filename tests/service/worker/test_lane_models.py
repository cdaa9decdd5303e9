"""A worker's models: loaded once, shared where they may be, and gone when others are wanted more."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from registry.errors import Unavailable
from registry.rows import Outputs, Rows
from service.runtime.loading import ModelRuntime
from service.worker.lane_models import MAX_UNUSED, LaneModels
from tests.registry.helpers import threads


class Small:
    bytes = 1

    def __init__(self, version_id: int) -> None:
        self.version_id = version_id
        self.closed = 0

    def run(self, rows: Rows) -> Outputs:
        return {}

    def close(self) -> None:
        self.closed += 1


class Loads:
    """Versions above 100 cannot be shared."""

    def __init__(self) -> None:
        self.made: list[Small] = []
        self.models = LaneModels(self._load, lambda runtime: self.number(runtime) <= 100)

    def _load(self, version_id: int) -> ModelRuntime:
        if version_id == 13:
            raise Unavailable("it is broken")
        self.made.append(Small(version_id))
        return self.made[-1]

    def number(self, runtime: ModelRuntime) -> int:
        assert isinstance(runtime, Small)
        return runtime.version_id

    @property
    def loaded(self) -> Counter[int]:
        return Counter(m.version_id for m in self.made)

    @property
    def closed(self) -> list[int]:
        return [m.version_id for m in self.made if m.closed]

    def use(self, *version_ids: int) -> None:
        for version_id in version_ids:
            with self.models.using(version_id) as runtime:
                assert self.number(runtime) == version_id


@pytest.fixture
def loads() -> Loads:
    return Loads()


def together(loads: Loads, version_id: int, lanes: int = 4) -> list[ModelRuntime | BaseException]:
    """The runtimes that lanes have in use at the same moment."""
    gate = threading.Barrier(lanes)

    def use() -> ModelRuntime:
        with loads.models.using(version_id) as runtime:
            gate.wait(60)
            return runtime

    return threads(*[use] * lanes)


def test_lanes_share_a_runtime_that_is_loaded_once(loads: Loads) -> None:
    assert len(set(map(id, together(loads, 1)))) == 1
    loads.use(1, 1)
    assert loads.loaded == {1: 1}


def test_each_lane_has_its_own_runtime_if_it_cannot_be_shared(loads: Loads) -> None:
    assert len(set(map(id, together(loads, 101)))) == 4
    together(loads, 101)  # the same four
    assert loads.loaded == {101: 4}


def test_the_least_recently_used_version_is_evicted_first(loads: Loads) -> None:
    loads.use(*range(1, MAX_UNUSED + 1), 1, 50)
    assert loads.closed == [2]
    loads.use(2)
    assert loads.loaded[2] == 2
    assert loads.closed == [2, 3]


def test_all_runtimes_of_a_version_are_evicted_together(loads: Loads) -> None:
    together(loads, 101, lanes=3)
    loads.use(*range(1, MAX_UNUSED + 1))
    assert loads.closed == [101] * 3


def test_a_version_in_use_is_not_evicted(loads: Loads) -> None:
    with loads.models.using(1), loads.models.using(101):
        loads.use(*range(2, MAX_UNUSED + 4))
        assert not {1, 101} & set(loads.closed)
    loads.use(60)
    assert {1, 101} <= set(loads.closed)
    assert {m.closed for m in loads.made} <= {0, 1}


def test_a_failed_load_raises_its_error_and_is_retried(loads: Loads) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable, match="it is broken"), loads.models.using(13):
            pass
    assert [str(e) for e in together(loads, 13)] == ["it is broken"] * 4
    loads.use(1)


def test_a_runtime_is_reused_after_an_error(loads: Loads) -> None:
    with pytest.raises(ValueError, match="odd"), loads.models.using(101):
        raise ValueError("odd")
    loads.use(101)
    assert loads.loaded == {101: 1}


def test_close_closes_each_runtime_once(loads: Loads) -> None:
    together(loads, 101)
    loads.use(1)
    loads.models.close()
    loads.models.close()
    assert [m.closed for m in loads.made] == [1] * 5
