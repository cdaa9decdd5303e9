from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from registry.errors import Refused
from service.compiler.fit.splitting import VALIDATION_SLOT, SplitCounts, SplitLayout, split_partition
from tests.service.compiler.fit.datasets import cancer, split_frame
from tests.service.compiler.fit.in_process_training import ignore_progress, make_layout, split_all


def read_slot(path: Path, number: int, slots: int) -> pd.DataFrame:
    with pa.ipc.open_file(path) as file:
        batches = [file.get_batch(i) for i in range(number, file.num_record_batches, slots)]
        return pa.Table.from_batches(batches, file.schema).to_pandas()


def numbered_rows(n: int = 1000) -> pd.DataFrame:
    classes = np.random.default_rng(1).choice(["a", "b", "c"], n, p=[0.9, 0.08, 0.02])
    return pd.DataFrame({"row": np.arange(n), "y": classes})


def test_every_row_is_in_one_slot(tmp_path: Path) -> None:
    table = numbered_rows()
    layout = make_layout(table, "y", True, validation=0.2, training_slots=3)
    files = split_all(tmp_path, split_frame(table, 4), layout)
    rows = pd.concat([read_slot(path, s, layout.slots) for path, _ in files for s in range(layout.slots)])
    assert sorted(rows.row) == list(range(1000))
    assert sum(counts.rows for _, counts in files) == 1000


def test_validation_rows_have_the_class_shares_of_the_data(tmp_path: Path) -> None:
    table = numbered_rows(4000)
    layout = make_layout(table, "y", True, validation=0.2)
    files = split_all(tmp_path, split_frame(table, 8), layout)
    validation = pd.concat([read_slot(path, VALIDATION_SLOT, 2) for path, _ in files])
    for label, count in table.y.value_counts().items():
        assert abs((validation.y == label).sum() - 0.2 * count) <= 8, "each partition rounds once"


def test_a_single_training_slot_keeps_the_order_of_the_rows(tmp_path: Path) -> None:
    table = numbered_rows()
    layout = make_layout(table, "y", True)
    ((path, counts),) = split_all(tmp_path, [table], layout)
    pd.testing.assert_frame_equal(read_slot(path, 1, 2), table)
    assert dict(counts.counts) == {label: (0, count) for label, count in table.y.value_counts().items()}


def test_stratified_training_slots_have_equal_shares_of_each_class(tmp_path: Path) -> None:
    table = numbered_rows().sort_values("y", ignore_index=True)
    layout = make_layout(table, "y", True, training_slots=4, stratified=True)
    files = split_all(tmp_path, split_frame(table, 2), layout)
    slots = [pd.concat([read_slot(path, 1 + slot, 5) for path, _ in files]) for slot in range(4)]
    for label, count in table.y.value_counts().items():
        assert all(abs((s.y == label).sum() - count / 4) <= 2 for s in slots)


def test_two_runs_write_the_same_files(tmp_path: Path) -> None:
    layout = make_layout(numbered_rows(), "y", True, validation=0.3, training_slots=2)
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        split_all(tmp_path / run, split_frame(numbered_rows(), 2), layout)
    for name in ("split-0.arrow", "split-1.arrow"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rows_without_a_target_are_counted_and_left_out(tmp_path: Path) -> None:
    for target in (np.array([1.0, np.nan, 3.0]), np.array(["a", None, "b"], dtype=object)):
        table = pd.DataFrame({"x": [1.0, 2.0, 3.0], "y": target})
        layout = make_layout(table, "y", target.dtype == object)
        ((path, counts),) = split_all(tmp_path, [table], layout)
        assert (counts.rows, counts.failed) == (2, 1)
        assert list(read_slot(path, 1, 2).x) == [1.0, 3.0]


def split_columns(tmp_path: Path, layout: SplitLayout, columns: dict[str, Any]) -> SplitCounts:
    batch = pa.RecordBatch.from_pydict(columns)
    return split_partition([batch], layout, 3, tmp_path / "x.arrow", ignore_progress)


def test_a_partition_with_other_columns_is_refused_and_the_column_named(tmp_path: Path) -> None:
    layout = make_layout(pd.DataFrame({"x": [1.0], "city": ["Rome"], "y": [1]}), "y", True)
    with pytest.raises(Refused, match="lacks the column 'city'"):
        split_columns(tmp_path, layout, {"x": [1.0], "y": [1]})
    with pytest.raises(Refused, match="has the column 'town'"):
        split_columns(tmp_path, layout, {"x": [1.0], "city": ["Rome"], "y": [1], "town": ["Bern"]})
    with pytest.raises(Refused, match="column 'x' holds string, in other partitions float64"):
        split_columns(tmp_path, layout, {"x": ["1"], "city": ["Rome"], "y": [1]})
    counts = split_columns(tmp_path, layout, {"city": ["Rome"], "y": [1], "x": pa.array([2], pa.int32())})
    assert counts.rows == 1, "columns may be in any order, and integers are valid float64 values"


def test_features_with_missing_values_are_named_wherever_the_rows_go(tmp_path: Path) -> None:
    layout = make_layout(pd.DataFrame({"x": [1.0], "z": [1.0], "city": ["Rome"], "y": [1]}), "y", True)
    columns = {"x": [1.0, float("nan")], "z": [1.0, 2.0], "city": ["Rome", None], "y": [1, 0]}
    assert split_columns(tmp_path, layout, columns).missing == ("city", "x")
    without_target = {"x": [1.0, None], "z": [1.0, 2.0], "city": ["Rome", "Bern"], "y": [1, None]}
    assert split_columns(tmp_path, layout, without_target).missing == ()


def test_a_numeric_target_of_a_classifier_is_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": np.zeros(20_000), "y": np.arange(20_000) / 7})
    with pytest.raises(Refused, match="more than 10000 classes; if it holds numbers, use a regressor"):
        split_all(tmp_path, [table], make_layout(table, "y", True))


def test_a_partition_larger_than_a_block_has_several_batches_per_slot(tmp_path: Path) -> None:
    table = pd.concat([cancer()] * 500, ignore_index=True)[["mean_radius", "y"]]
    layout = make_layout(table, "y", True, validation=0.1, training_slots=2)
    ((path, counts),) = split_all(tmp_path, [table], layout)
    with pa.ipc.open_file(path) as file:
        assert file.num_record_batches == 5 * 3
    validation = read_slot(path, VALIDATION_SLOT, 3)
    for label, rows in table.y.value_counts().to_dict().items():
        assert abs((validation.y == label).sum() - 0.1 * rows) <= 1
    assert counts.rows == len(table)
