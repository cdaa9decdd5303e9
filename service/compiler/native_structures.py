"""Check the arrays that scikit-learn's compiled code follows without checks: nodes of trees, sparse matrices.

A damaged or altered pickle may hold a node whose child does not exist. scikit-learn uses its number as an
address in memory: the process crashes, or answers with what lies there. The rules of a sound tree are those
of scikit-learn's own builders: a child's number is greater than its parent's, and no node has two parents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.neighbors._ball_tree import BinaryTree32 as BallTree32
from sklearn.neighbors._ball_tree import BinaryTree64 as BallTree64
from sklearn.neighbors._kd_tree import BinaryTree32 as KDTree32
from sklearn.neighbors._kd_tree import BinaryTree64 as KDTree64
from sklearn.tree import BaseDecisionTree
from sklearn.tree._tree import Tree

from registry.errors import Refused
from registry.rows import Array
from service.compiler.object_graph import Member


def check(member: Member) -> None:
    """Raise `Refused`, naming the tree and the node, when compiled code cannot follow `member`'s arrays."""
    value = member.value
    if isinstance(value, Tree):
        _check_tree(value, member)
    elif isinstance(value, BaseDecisionTree):
        _check_width(getattr(value, "tree_", None), value, member, ".tree_")
    elif isinstance(value, BaseGradientBoosting):
        _check_gradient_boosting(value, member)
    elif isinstance(value, BaseHistGradientBoosting):
        _check_histogram_boosting(value, member)
    elif isinstance(value, KDTree32 | KDTree64 | BallTree32 | BallTree64):
        _check_neighbors(value, member)
    elif sparse.issparse(value) and value.format in ("csr", "csc", "bsr"):
        _check_sparse(value, member)


def _check_tree(tree: Any, member: Member) -> None:
    count = tree.node_count
    if not 0 < count <= tree.capacity:
        raise _damaged(member, f"has {count} nodes, and memory for {tree.capacity}")
    left, right = tree.children_left, tree.children_right
    inner = left != -1
    _check_children(left, right, inner, member)
    _check_features(tree.feature, inner, tree.n_features, member)


def _check_children(left: Array, right: Array, inner: Array, member: Member) -> None:
    """`inner` [nodes]: the nodes that have children. Raises `Refused`."""
    parents = np.flatnonzero(inner)
    children = np.concatenate([left[parents], right[parents]]).astype(np.int64)
    owners = np.concatenate([parents, parents])
    wrong = (children <= owners) | (children >= len(left))
    if wrong.any():
        first = np.flatnonzero(wrong)[np.argmin(owners[wrong])]
        raise _damaged(
            member,
            f"is not sound: its node {owners[first]} has the child {children[first]}, but a child's number "
            f"is greater than its parent's and less than {len(left)}, the number of nodes",
        )
    repeated = np.flatnonzero(np.bincount(children, minlength=1) > 1)
    if len(repeated):
        raise _damaged(member, f"is not sound: its node {repeated[0]} is the child of two nodes")


def _check_features(feature: Array, inner: Array, features: int, member: Member) -> None:
    """`features`: the number of columns of the rows that the tree receives."""
    wrong = inner & ((feature < 0) | (feature >= features))
    if wrong.any():
        node = int(np.flatnonzero(wrong)[0])
        raise _damaged(
            member,
            f"is not sound: its node {node} splits on the feature {feature[node]}, but the tree has the "
            f"features 0 to {features - 1}",
        )


def _check_width(tree: Any, owner: Any, member: Member, step: str) -> None:
    """The estimator checks that rows have `n_features_in_` columns; its tree is given them unchecked."""
    width = getattr(owner, "n_features_in_", None)
    if isinstance(tree, Tree) and width is not None and tree.n_features != width:
        raise _damaged(
            Member(tree, step, member), f"splits {tree.n_features} features, its estimator takes {width}"
        )


def _check_gradient_boosting(model: Any, member: Member) -> None:
    members = np.asarray(getattr(model, "estimators_", []), dtype=object).ravel().tolist()
    for number, estimator in enumerate(members):
        _check_width(getattr(estimator, "tree_", None), model, member, f".estimators_[{number}].tree_")


def _check_histogram_boosting(model: Any, member: Member) -> None:
    for iteration, predictors in enumerate(getattr(model, "_predictors", [])):
        for number, predictor in enumerate(predictors):
            step = f"._predictors[{iteration}][{number}]"
            _check_predictor(predictor, model.n_features_in_, Member(predictor, step, member))


def _check_predictor(predictor: Any, features: int, member: Member) -> None:
    nodes = predictor.nodes
    if not len(nodes):
        raise _damaged(member, "has no nodes")
    inner = nodes["is_leaf"] == 0
    _check_children(nodes["left"], nodes["right"], inner, member)
    _check_features(nodes["feature_idx"], inner, features, member)
    categorical = inner & (nodes["is_categorical"] != 0)
    bitsets = min(len(predictor.raw_left_cat_bitsets), len(predictor.binned_left_cat_bitsets))
    wrong = categorical & (nodes["bitset_idx"] >= bitsets)
    if wrong.any():
        raise _damaged(member, f"is not sound: its node {np.flatnonzero(wrong)[0]} names categories it lacks")


def _check_neighbors(tree: Any, member: Member) -> None:
    """Node `i` of a KD or ball tree has the children 2i + 1 and 2i + 2, and a range of the training rows."""
    data, indices, nodes, bounds, _, _, count = tree.__getstate__()[:7]
    rows = len(data)
    if not (0 < count == len(nodes) == bounds.shape[1] and len(indices) == rows):
        raise _damaged(member, "has arrays of sizes that do not fit each other")
    if bounds.shape[2] != data.shape[1]:
        raise _damaged(member, f"bounds {bounds.shape[2]} features; its rows have {data.shape[1]}")
    if rows and (indices.min() < 0 or indices.max() >= rows):
        raise _damaged(member, f"is not sound: it lists rows outside 0 to {rows - 1}")
    start, end = nodes["idx_start"], nodes["idx_end"]
    without_children = (2 * np.arange(count) + 2 >= count) & (nodes["is_leaf"] == 0)
    wrong = (start < 0) | (end < start) | (end > rows) | without_children
    if wrong.any():
        node = int(np.flatnonzero(wrong)[0])
        raise _damaged(member, f"is not sound: its node {node} has rows or children that do not exist")


def _check_sparse(matrix: Any, member: Member) -> None:
    try:
        matrix.check_format(full_check=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(member, f"is not a sound sparse matrix: {error}") from error


def _damaged(member: Member, fault: str) -> Refused:
    kind = "tree" if "ree" in type(member.value).__name__ else "sparse matrix"
    return Refused(f"the model is damaged or was altered: the {kind} {member.path()} {fault}")
