from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from registry.errors import Refused
from service.compiler.fit.dealing import HELD_OUT, Dealt, Layout, deal
from tests.service.compiler.fit.data import cancer, cut
from tests.service.compiler.fit.trainer import dealt, layout_of, no_one


def slot(path: Path, number: int, slots: int) -> pd.DataFrame:
    with pa.ipc.open_file(path) as file:
        batches = [file.get_batch(i) for i in range(number, file.num_record_batches, slots)]
        return pa.Table.from_batches(batches, file.schema).to_pandas()


def numbered(n: int = 1000) -> pd.DataFrame:
    classes = np.random.default_rng(1).choice(["a", "b", "c"], n, p=[0.9, 0.08, 0.02])
    return pd.DataFrame({"row": np.arange(n), "y": classes})


def shares(frames: Sequence[pd.DataFrame]) -> list[dict[str, int]]:
    return [frame.y.value_counts().to_dict() for frame in frames]


def test_every_row_is_in_one_slot(tmp_path: Path) -> None:
    table = numbered()
    layout = layout_of(table, "y", True, validation=0.2, hands=3)
    found = dealt(tmp_path, cut(table, 4), layout)
    rows = pd.concat([slot(path, s, layout.slots) for path, _ in found for s in range(layout.slots)])
    assert sorted(rows.row) == list(range(1000))
    assert sum(d.rows for _, d in found) == 1000


def test_the_hold_out_keeps_the_classes_shares_over_all_partitions(tmp_path: Path) -> None:
    table = numbered(4000)
    layout = layout_of(table, "y", True, validation=0.2)
    found = dealt(tmp_path, cut(table, 8), layout)
    held = pd.concat([slot(path, HELD_OUT, 2) for path, _ in found])
    for label, count in table.y.value_counts().items():
        assert abs((held.y == label).sum() - 0.2 * count) <= 8, "each partition rounds once"


def test_rows_that_stay_together_stay_in_their_order(tmp_path: Path) -> None:
    table = numbered()
    layout = layout_of(table, "y", True)
    ((path, found),) = dealt(tmp_path, [table], layout)
    pd.testing.assert_frame_equal(slot(path, 1, 2), table)
    assert dict(found.counts) == {label: (0, count) for label, count in table.y.value_counts().items()}


def test_hands_get_each_classes_share_when_dealt_by_class(tmp_path: Path) -> None:
    table = numbered().sort_values("y", ignore_index=True)
    layout = layout_of(table, "y", True, hands=4, by_class=True)
    found = dealt(tmp_path, cut(table, 2), layout)
    hands = [pd.concat([slot(path, 1 + h, 5) for path, _ in found]) for h in range(4)]
    for label, count in table.y.value_counts().items():
        assert all(abs((h.y == label).sum() - count / 4) <= 2 for h in hands)


def test_the_same_rows_are_held_out_at_every_run(tmp_path: Path) -> None:
    layout = layout_of(numbered(), "y", True, validation=0.3, hands=2)
    for again in ("one", "two"):
        (tmp_path / again).mkdir()
        dealt(tmp_path / again, cut(numbered(), 2), layout)
    for name in ("dealt-0.arrow", "dealt-1.arrow"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rows_without_a_target_are_counted_and_left_out(tmp_path: Path) -> None:
    for target in (np.array([1.0, np.nan, 3.0]), np.array(["a", None, "b"], dtype=object)):
        table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": target})
        layout = layout_of(table, "y", target.dtype == object)
        ((path, found),) = dealt(tmp_path, [table], layout)
        assert (found.rows, found.failed) == (2, 1)
        assert list(slot(path, 1, 2).x) == [1.0, 3.0]


def deal_into(tmp_path: Path, layout: Layout, columns: dict[str, Any]) -> Dealt:
    return deal([pa.RecordBatch.from_pydict(columns)], layout, 3, tmp_path / "x.arrow", no_one)


def test_a_partition_with_other_columns_is_refused_by_the_column(tmp_path: Path) -> None:
    layout = layout_of(pd.DataFrame({"x": [1.0], "city": ["Rome"], "y": [1]}), "y", True)
    with pytest.raises(Refused, match="lacks the column 'city'"):
        deal_into(tmp_path, layout, {"x": [1.0], "y": [1]})
    with pytest.raises(Refused, match="has the column 'town'"):
        deal_into(tmp_path, layout, {"x": [1.0], "city": ["Rome"], "y": [1], "town": ["Bern"]})
    with pytest.raises(Refused, match="column 'x' holds string, in other partitions float64"):
        deal_into(tmp_path, layout, {"x": ["1"], "city": ["Rome"], "y": [1]})
    found = deal_into(tmp_path, layout, {"city": ["Rome"], "y": [1], "x": pa.array([2], pa.int32())})
    assert found.rows == 1, "the order of the columns is free, and whole numbers are numbers"


def test_a_number_is_not_taken_for_thousands_of_classes(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": np.zeros(20_000), "y": np.arange(20_000) / 7})
    with pytest.raises(Refused, match="more than 10000 classes: is it a regression"):
        dealt(tmp_path, [table], layout_of(table, "y", True))


def test_partitions_larger_than_a_block_are_dealt_block_by_block(tmp_path: Path) -> None:
    table = pd.concat([cancer()] * 500, ignore_index=True)[["mean_radius", "y"]]
    layout = layout_of(table, "y", True, validation=0.1, hands=2)
    ((path, found),) = dealt(tmp_path, [table], layout)
    with pa.ipc.open_file(path) as file:
        assert file.num_record_batches == 5 * 3
    held = slot(path, HELD_OUT, 3)
    for counts in shares([table, held])[0].items():
        assert abs((held.y == counts[0]).sum() - 0.1 * counts[1]) <= 1
    assert found.rows == len(table)
