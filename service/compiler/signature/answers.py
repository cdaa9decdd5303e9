"""An estimator's own answers as named arrays: which methods a task calls, and the outputs they fill."""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.utils import get_tags

from registry.errors import Refused
from registry.rows import Array, Outputs
from registry.signature import DType, Output, Scalar, Task
from service.compiler.signature import row_layout


def tasks(model: Any) -> tuple[Task, ...]:
    """What `model` can be served as; the first is what it is by itself. Empty when it cannot answer."""
    found: list[Task] = []
    if hasattr(model, "predict"):
        if is_classifier(model):
            found.append("classification")
        elif is_outlier_detector(model):
            found.append("outlier")
        elif is_clusterer(model) or get_tags(model).estimator_type == "density_estimator":
            found.append("clustering")  # a mixture predicts a component
        elif is_regressor(model) or not hasattr(model, "transform"):
            found.append("regression")
    if hasattr(model, "transform"):
        found.append("transform")
    return tuple(found)


def answer(model: Any, task: Task, rows: Any) -> Outputs:
    """The arrays of `task`, named as in `registry.signature.Output`, in the dtypes the model gives them.

    On one thread, whatever `n_jobs` the model was trained with.
    """
    with joblib.parallel_config(backend="sequential"):
        return _answer(model, task, rows)


def _answer(model: Any, task: Task, rows: Any) -> Outputs:
    if task == "classification":
        return _classification(model, rows)
    if task == "regression":
        predicted = _dense(model.predict(rows))
        return {"values": predicted} if _multiple(predicted) else {"value": predicted.reshape(-1)}
    if task == "clustering":
        return {"cluster": _dense(model.predict(rows)).reshape(-1)}
    if task == "outlier":
        score = _dense(model.decision_function(rows)).reshape(-1)
        return {"label": _dense(model.predict(rows)).reshape(-1), "score": score}
    vector = _dense(model.transform(rows))
    return {"vector": vector.reshape(-1, 1) if vector.ndim == 1 else vector}


def outputs(model: Any, task: Task, answered: Outputs) -> tuple[Output, ...]:
    """The typed outputs for one answer of `answer`. Raises `Refused` when no signature can hold them."""
    return tuple(_output(model, task, name, array, answered) for name, array in answered.items())


def _output(model: Any, task: Task, name: str, array: Array, answered: Outputs) -> Output:
    shape = (-1, *array.shape[1:])
    if len(shape) > 2:
        raise Refused(f"{row_layout.name(model)} answers with {array.ndim}-dimensional arrays")
    if task == "classification":
        target, _, last = name.rpartition(".")  # "y0.label", "label"
        label = answered[f"{target}.label" if target else "label"]
        classes = _class_labels(model, int(target[1:]) if target else None, label)
        dtype: DType = "float64" if last == "probabilities" else _plain(label if classes is None else classes)
        return Output(name, dtype, shape, None if classes is None else scalars(classes))
    if name in ("label", "cluster"):
        return Output(name, "int64", shape)
    targets = tuple(f"y{i}" for i in range(shape[1])) if name == "values" else None
    return Output(name, _plain(array), shape, targets)


def _classification(model: Any, rows: Any) -> Outputs:
    label = _dense(model.predict(rows))
    chances = model.predict_proba(rows) if hasattr(model, "predict_proba") else None
    if not _multiple(label):
        answered = {"label": label.reshape(-1)}
        if chances is not None:
            answered["probabilities"] = _dense(chances[0] if isinstance(chances, list) else chances)
        return answered
    answered = {}
    for i in range(label.shape[1]):
        answered[f"y{i}.label"] = label[:, i]
        if chances is not None:
            answered[f"y{i}.probabilities"] = _chances(chances, i)
    return answered


def _chances(chances: Any, i: int) -> Array:
    """Output `i` of predict_proba: a list of [n, k], or [n, t] chances of 1 for indicator outputs."""
    if isinstance(chances, list):
        return _dense(chances[i])
    positive = _dense(chances)[:, i]
    return np.column_stack([1.0 - positive, positive])


def _class_labels(model: Any, index: int | None, label: Array) -> Array | None:
    """The classes of output `index`, in the order of the probabilities' columns."""
    known = getattr(model, "classes_", None)
    if known is None:
        return None
    if index is None:
        return np.asarray(known[0] if isinstance(known, list) else known)
    if isinstance(known, list):
        return np.asarray(known[index])
    return np.asarray([False, True]) if label.dtype == bool else np.asarray([0, 1])


def scalars(values: Array) -> tuple[Scalar, ...]:
    """As JSON's own types: str, bool, int, float."""
    dtype = _plain(values)
    return tuple(str(v) if dtype == "string" else v for v in values.tolist())


def _plain(values: Array) -> DType:
    """The signature's dtype for an array of the estimator's. Raises `Refused` for mixed objects."""
    kind: str = values.dtype.kind
    if kind == "O":
        kinds = {"s" if isinstance(v, str) else np.asarray(v).dtype.kind for v in values.ravel().tolist()}
        kind = (
            "S" if kinds <= {"s"} else kinds.pop() if len(kinds) == 1 else "f" if kinds <= {"i", "f"} else "?"
        )
    if kind in "iu":
        return "int64"
    if kind == "b":
        return "bool"
    if kind == "f":
        return "float32" if values.dtype == np.float32 else "float64"
    if kind in "SU":
        return "string"
    raise Refused(f"the model answers with values of mixed kinds ({values.dtype}), which no column can hold")


def _multiple(predicted: Array) -> bool:
    return predicted.ndim == 2 and predicted.shape[1] != 1


def _dense(values: Any) -> Array:
    """Sparse matrices and data frames as plain arrays."""
    if hasattr(values, "toarray"):
        values = values.toarray()
    return np.asarray(values)
