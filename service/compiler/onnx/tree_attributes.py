"""Our own ONNX form of scikit-learn's tree ensembles, registered with the converter in place of its own.

The library's form weighs each leaf by 1/trees and adds float32: two classes with equal votes end up a
rounding apart, so ties (common with an even number of trees) get another label than scikit-learn gives.
It rounds the thresholds of histogram boosting, which compares doubles, and drops where missing values go.
Here the trees add up doubles as scikit-learn does; what the operator returns as float32 is sent in two
halves that are exact together. Being vectorised it is also some 20 times quicker.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from registry.rows import Array
from service.compiler.trees.tree_arrays import Tree

MANTISSA = 22
"""Bits of float32's 24 that a sum of coarse halves may use."""


def attributes(tables: list[Tree]) -> dict[str, Any]:
    """Of one TreeEnsembleRegressor. With twice the targets, coarse halves come first, then fine ones."""
    sizes = [len(t.feature) for t in tables]
    tree = np.repeat(np.arange(len(tables)), sizes)
    node = np.concatenate([np.arange(n) for n in sizes])
    inner = np.concatenate([t.left for t in tables]) >= 0
    values = np.where(inner[:, None], 0.0, np.concatenate([t.values for t in tables]))
    halves, at, target, weight = _weights(values, np.flatnonzero(~inner), len(tables))

    def branch(name: str) -> list[int]:
        kept: list[int] = np.where(inner, np.concatenate([getattr(t, name) for t in tables]), 0).tolist()
        return kept

    return {
        "n_targets": halves * values.shape[1],
        "nodes_treeids": tree.tolist(),
        "nodes_nodeids": node.tolist(),
        "nodes_featureids": branch("feature"),
        "nodes_modes": np.where(inner, "BRANCH_LEQ", "LEAF").tolist(),
        "nodes_values_as_tensor": _doubles(
            np.where(inner, np.concatenate([t.threshold for t in tables]), 0.0)
        ),
        "nodes_truenodeids": branch("left"),
        "nodes_falsenodeids": branch("right"),
        "nodes_missing_value_tracks_true": branch("missing_left"),
        "target_treeids": tree[at].tolist(),
        "target_nodeids": node[at].tolist(),
        "target_ids": target.tolist(),
        "target_weights_as_tensor": _doubles(weight),
    }


def _weights(values: Array, leaves: Array, trees: int) -> tuple[int, Array, Array, Array]:
    """(halves, node, target, weight); zeros are left out, but each leaf has one weight.

    Coarse halves are multiples of a power of two so large that their sum over all trees is exact in
    float32; a fine half is what is left, and its rounding is 2**-22 of next to nothing. Fully grown
    classification trees vote with whole numbers and need no fine half.
    """
    largest = float(np.abs(values).max(initial=0.0)) * trees
    step = 2.0 ** (np.ceil(np.log2(largest)) - MANTISSA) if largest > 0 else 1.0
    coarse = np.rint(values / step) * step
    both = coarse if (coarse == values).all() else np.hstack([coarse, values - coarse])
    at, target = np.nonzero(both)
    silent = np.setdiff1d(leaves, at)
    at, target = np.concatenate([at, silent]), np.concatenate([target, np.zeros_like(silent)])
    return both.shape[1] // values.shape[1], at, target, both[at, target]


def _doubles(values: Array) -> TensorProto:
    return helper.make_tensor("", TensorProto.DOUBLE, [len(values)], values.astype("<f8").tobytes(), raw=True)


class Nodes:
    """Adds nodes to a converter's container; methods return the name of the new value."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self._scope = scope
        self._container = container
        self.input = operator.inputs[0].full_name

    def add(
        self, kind: str, *inputs: str, version: int = 13, out: str | None = None, **attributes: Any
    ) -> str:
        output = out or str(self._scope.get_unique_variable_name(kind.lower()))
        name = self._scope.get_unique_operator_name(kind)
        self._container.add_node(kind, list(inputs), [output], name=name, op_version=version, **attributes)
        return output

    def cast(self, name: str, kind: int) -> str:
        return self.add("Cast", name, to=kind)

    def constant(self, kind: int, shape: list[int], values: list[Any]) -> str:
        name = str(self._scope.get_unique_variable_name("constant"))
        self._container.add_initializer(name, kind, shape, values)
        return name

    def double(self, *values: float) -> str:
        return self.constant(TensorProto.DOUBLE, [len(values)], list(values))

    def trees(self, tables: list[Tree], rounded: bool) -> str:
        """The sums over `tables` as a double [n, targets]; `rounded`: the input to float32 before."""
        source = self.cast(self.input, TensorProto.FLOAT) if rounded else self.input
        source = self.cast(source, TensorProto.DOUBLE)
        tree = attributes(tables)
        sums = self.add("TreeEnsembleRegressor", source, version=3, op_domain="ai.onnx.ml", **tree)
        sums = self.cast(sums, TensorProto.DOUBLE)
        targets = tables[0].values.shape[1]
        if tree["n_targets"] == targets:
            return sums
        shape = self.constant(TensorProto.INT64, [3], [-1, 2, targets])
        axis = self.constant(TensorProto.INT64, [1], [1])
        return self.add("ReduceSum", self.add("Reshape", sums, shape), axis, keepdims=0)
