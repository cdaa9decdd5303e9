"""The file of a table of nodes: a loaded table equals the saved one, and damaged files are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingClassifier, IsolationForest, RandomForestClassifier

from registry.errors import Refused
from service.compiler.trees.flatten import flatten
from service.runtime import node_file
from service.runtime.nodes import NodeTable, round_down
from tests.service.compiler.tflite import cases

DATA = cases.data(300)
FEATURES = cases.FEATURES
FOREST = flatten(RandomForestClassifier(5, random_state=0).fit(DATA.with_missing, DATA.labels))
BOOSTED = flatten(GradientBoostingClassifier(n_estimators=3, random_state=0).fit(DATA.x, DATA.three))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "forest.nodes"
    node_file.save(FOREST, path)
    return path


@pytest.mark.parametrize(
    "nodes",
    [FOREST, BOOSTED, flatten(IsolationForest(n_estimators=5, random_state=0).fit(DATA.x))],
    ids=["fractions", "softmax", "isolation"],
)
def test_a_loaded_table_equals_the_saved_table(tmp_path: Path, nodes: NodeTable) -> None:
    size = node_file.save(nodes, tmp_path / "forest.nodes")
    assert size == (tmp_path / "forest.nodes").stat().st_size
    read, steps = node_file.load(tmp_path / "forest.nodes", FEATURES)
    assert steps == ()
    for field in fields(NodeTable):
        if field.name == "threshold" and nodes.rounded:
            np.testing.assert_array_equal(read.threshold, round_down(nodes.threshold))
            assert read.threshold.dtype == np.float32
        elif field.name != "cover":
            np.testing.assert_array_equal(getattr(read, field.name), getattr(nodes, field.name))
            assert type(getattr(read, field.name)) is type(getattr(nodes, field.name))


def test_the_arrays_of_a_file_are_mapped_and_read_only(saved: Path) -> None:
    read, _ = node_file.load(saved, FEATURES)
    arrays = (read.feature, read.threshold, read.left, read.missing_left, read.values, read.root)
    for array in arrays:
        assert not array.flags.writeable
        assert array.ctypes.data % node_file.ALIGNMENT == 0
        while not isinstance(array, np.memmap):
            assert isinstance(array.base, np.ndarray)
            array = array.base


def test_a_table_stays_usable_when_its_file_is_deleted(tmp_path: Path) -> None:
    node_file.save(FOREST, tmp_path / "forest.nodes")
    read, _ = node_file.load(tmp_path / "forest.nodes", FEATURES)
    (tmp_path / "forest.nodes").unlink()
    np.testing.assert_array_equal(read.values, FOREST.values)


def write_changed(path: Path, copy: Path, **parts: Any) -> Path:
    """Write a copy of the file with other parts. The value None removes a part."""
    content = {**node_file.read_parts(path), **parts}
    kept = {name: np.asarray(part) for name, part in content.items() if part is not None}
    node_file.write_parts(copy, kept)
    return copy


def with_value(name: str, at: int, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(parts: dict[str, Any]) -> dict[str, Any]:
        array = parts[name].copy()
        array[at] = value
        return {name: array}

    return change


INNER = int(np.flatnonzero(~FOREST.leaf)[3])
LEAF = int(np.flatnonzero(FOREST.leaf)[0])
DAMAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a feature beyond the rows": with_value("feature", INNER, FEATURES),
    "a negative feature": with_value("feature", INNER, -1),
    "a child beyond the nodes": with_value("left", INNER, len(FOREST.left) - 1),
    "a negative child": with_value("left", INNER, -5),
    "a cycle": with_value("left", INNER, 0),
    "a child of two parents": lambda p: with_value("left", INNER, int(p["left"][INNER + 1]))(p),
    "a leaf with a threshold": with_value("threshold", LEAF, 0.5),
    "a leaf that sends missing values right": with_value("missing_left", LEAF, False),
    "a root beyond the nodes": with_value("root", 1, len(FOREST.left)),
    "a root inside a tree": with_value("root", 1, int(FOREST.root[1]) + 1),
    "an empty forest": lambda p: {"root": p["root"][:0]},
    "no nodes at all": lambda p: {
        name: p[name][:0]
        for name in ("feature", "threshold", "left", "missing_left", "values", "root", "weight")
    },
    "a column too short": lambda p: {"threshold": p["threshold"][:-1]},
    "another dtype": lambda p: {"left": p["left"].astype(np.int64)},
    "another number of dimensions": lambda p: {"values": p["values"][:, 0]},
    "thresholds that are not rounded": lambda p: {"threshold": p["threshold"].astype(np.float64)},
    "a slope of another type": lambda p: {"slope": np.array([1.0])},
    "a cut of text": lambda p: {"cut": np.array("1.0")},
    "blocks of fractions": lambda p: {"blocks": p["blocks"].astype(np.float64)},
    "a leaf value missing": lambda p: {"values": p["values"][:-1]},
    "leaf values too wide": lambda p: {"values": np.hstack([p["values"], p["values"]])},
    "leaf values of width 0": lambda p: {"values": p["values"][:, :0]},
    "more answers than leaf values": lambda p: {"outputs": 99, "base": np.zeros(99)},
    "blocks of another width": lambda p: {"blocks": p["blocks"] + 1},
    "an empty block": lambda p: {"blocks": np.array([0, int(p["blocks"].sum())])},
    "a negative block": lambda p: {"blocks": np.array([-1, int(p["blocks"].sum()) + 1])},
    "no answers": lambda p: {"outputs": 0, "base": np.zeros(0), "values": p["values"][:, :0]},
    "one base too many": lambda p: {"base": np.zeros(len(p["base"]) + 1)},
    "a weight too many": lambda p: {"weight": np.ones(len(p["weight"]) + 1)},
    "a child that is its parent's neighbour on the left": with_value("left", INNER, INNER - 1),
    "a column too long": lambda p: {"feature": np.append(p["feature"], np.int32(0))},
    "missing sides too few": lambda p: {"missing_left": p["missing_left"][:-1]},
    "one step without numbers": lambda p: {
        "operations": ["add", "add"],
        "numbers": np.ones((1, FEATURES)),
    },
    "steps of another dtype": lambda p: {
        "operations": ["add"],
        "numbers": np.ones((1, FEATURES), np.float32),
    },
    "a weight missing": lambda p: {"weight": p["weight"][:-1]},
    "targets beyond the answers": lambda p: {
        "target": np.full(5, 5, np.int32),
        "values": np.ascontiguousarray(p["values"][:, :1]),
    },
    "an unknown link": lambda p: {"link": "exec"},
    "a part missing": lambda p: {"left": None},
    "an unknown column step": lambda p: {"operations": ["exec"], "numbers": np.ones((1, FEATURES))},
    "column steps of another width": lambda p: {"operations": ["add"], "numbers": np.ones((1, 1))},
    "pickled objects": lambda p: {"link": np.array([print], dtype=object)},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_refused(tmp_path: Path, saved: Path, damage: Callable[[Any], Any]) -> None:
    parts = damage(node_file.read_parts(saved))
    with pytest.raises(Refused, match="table of nodes"):
        node_file.load(write_changed(saved, tmp_path / "damaged.npz", **parts), FEATURES)


def of_targets(parts: dict[str, Any], target: list[int]) -> dict[str, Any]:
    """One value per leaf, which each of the five trees adds to one of the answers."""
    values = np.ascontiguousarray(parts["values"][:, :1])
    return {"target": np.array(target, np.int32), "values": values, "link": "softmax"}


@pytest.mark.parametrize(
    ("target", "accepted"),
    [
        ([0, 1, 2, 3, FOREST.outputs - 1], True),
        ([0, 1, 2, 3, FOREST.outputs], False),
        ([0, 1, 2, 3, -1], False),
        ([0, 1, 2, 3], False),
        ([0, 1, 2, 3, 4, 0], False),
    ],
)
def test_each_tree_adds_to_one_of_the_answers(
    tmp_path: Path, saved: Path, target: list[int], accepted: bool
) -> None:
    parts = of_targets(node_file.read_parts(saved), target)
    path = write_changed(saved, tmp_path / "targets.npz", **parts)
    if accepted:
        assert node_file.load(path, FEATURES)[0].target is not None
        wide = write_changed(path, tmp_path / "wide.npz", values=np.hstack([parts["values"]] * 2))
        with pytest.raises(Refused, match="adds to an unknown answer"):
            node_file.load(wide, FEATURES)
    else:
        with pytest.raises(Refused, match=r"unknown answer|different lengths"):
            node_file.load(path, FEATURES)


def test_the_last_feature_is_accepted_and_the_next_is_not(saved: Path) -> None:
    last = int(FOREST.feature.max())
    node_file.load(saved, last + 1)
    with pytest.raises(Refused, match="unknown features"):
        node_file.load(saved, last)


def test_a_table_for_wider_rows_is_refused(saved: Path) -> None:
    with pytest.raises(Refused, match="unknown features"):
        node_file.load(saved, 2)


@given(st.data())
def test_changed_bytes_are_refused_or_have_no_effect(saved: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=5)):
        content[at] ^= data.draw(st.integers(1, 255))
    damaged = saved.with_name("damaged.npz")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        read, _ = node_file.load(damaged, FEATURES)
    except Refused:
        return
    np.testing.assert_array_equal(read.left, FOREST.left)
    np.testing.assert_array_equal(read.values, FOREST.values)


@given(
    left_children=st.lists(st.integers(-3, 12), min_size=1, max_size=9),
    root=st.lists(st.integers(-2, 9), max_size=3),
)
def test_all_paths_of_a_loaded_table_end_at_a_leaf(
    saved: Path, left_children: list[int], root: list[int]
) -> None:
    own = np.arange(len(left_children))
    children = np.array(left_children, dtype=np.int32)
    parts = {
        "left": children,
        "root": np.array(root, dtype=np.int32),
        "feature": np.zeros(len(left_children), np.int32),
        "threshold": np.where(children == own, np.inf, 0.0).astype(np.float32),
        "missing_left": np.ones(len(left_children), bool),
        "values": np.ones((len(left_children), FOREST.outputs)),
        "weight": np.ones(len(root)),
    }
    try:
        nodes, _ = node_file.load(write_changed(saved, saved.with_name("generated.npz"), **parts), 1)
    except Refused:
        return
    at = np.broadcast_to(nodes.root, (2, nodes.trees))
    for _ in range(len(left_children)):
        right = np.array([[False], [True]]) & ~nodes.leaf[at]
        at = nodes.left[at] + right
        assert ((at >= 0) & (at < len(left_children))).all()
    assert nodes.leaf[at].all()
