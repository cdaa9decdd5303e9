"""An estimator's answers as named arrays: the tasks it supports, the methods it calls, its typed outputs."""

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector, is_regressor
from sklearn.utils import get_tags

from registry.errors import Refused
from registry.rows import Array, Outputs
from registry.signature import DType, Output, Scalar, Task


def tasks(model: Any) -> tuple[Task, ...]:
    """The tasks that `model` can be served as, its default first. Empty without a suitable method."""
    possible: list[Task] = []
    if hasattr(model, "predict"):
        if is_classifier(model):
            possible.append("classification")
        elif is_outlier_detector(model):
            possible.append("outlier")
        elif is_clusterer(model) or get_tags(model).estimator_type == "density_estimator":
            possible.append("clustering")  # a mixture predicts a component
        elif is_regressor(model) or not hasattr(model, "transform"):
            possible.append("regression")
    if hasattr(model, "transform"):
        possible.append("transform")
    return tuple(possible)


def answer(model: Any, task: Task, rows: Any) -> Outputs:
    """The arrays of `task`, named as in `registry.signature.Output`, in the dtypes that the model returns.

    Runs on one thread, whatever `n_jobs` the model was trained with.
    """
    with joblib.parallel_config(backend="sequential"):
        return _answer(model, task, rows)


def _answer(model: Any, task: Task, rows: Any) -> Outputs:
    if task == "classification":
        return _classification(model, rows)
    if task == "regression":
        predicted = _dense(model.predict(rows))
        return {"values": predicted} if _has_columns(predicted) else {"value": predicted.reshape(-1)}
    if task == "clustering":
        return {"cluster": _dense(model.predict(rows)).reshape(-1)}
    if task == "outlier":
        score = _dense(model.decision_function(rows)).reshape(-1)
        return {"label": _dense(model.predict(rows)).reshape(-1), "score": score}
    vector = _dense(model.transform(rows))
    # SparsePCA returns a 1-D array for a single row, other transformers for a single column.
    return {"vector": vector.reshape(len(rows), -1) if vector.ndim == 1 else vector}


def _classification(model: Any, rows: Any) -> Outputs:
    label = _dense(model.predict(rows))
    probabilities = model.predict_proba(rows) if hasattr(model, "predict_proba") else None
    if not _has_columns(label):
        outputs = {"label": label.reshape(-1)}
        if probabilities is not None:
            single = probabilities[0] if isinstance(probabilities, list) else probabilities
            outputs["probabilities"] = _dense(single)
        return outputs
    outputs = {}
    for i in range(label.shape[1]):
        outputs[f"y{i}.label"] = label[:, i]
        if probabilities is not None:
            outputs[f"y{i}.probabilities"] = _probabilities_of(probabilities, i)
    return outputs


def _probabilities_of(probabilities: Any, target: int) -> Array:
    """Those of one target: from a list of [n, k], or from [n, t] probabilities of 1 (indicator outputs)."""
    if isinstance(probabilities, list):
        return _dense(probabilities[target])
    positive = _dense(probabilities)[:, target]
    return np.column_stack([1.0 - positive, positive])


def outputs(model: Any, task: Task, answered: Outputs) -> tuple[Output, ...]:
    """The typed outputs for one result of `answer`. Raises `Refused` when no signature can hold them."""
    return tuple(_output(model, task, name, array, answered) for name, array in answered.items())


def _output(model: Any, task: Task, name: str, array: Array, answered: Outputs) -> Output:
    shape = (-1, *array.shape[1:])
    if len(shape) > 2:
        raise Refused(f"{type(model).__name__} returns {array.ndim}-dimensional arrays")
    if task == "classification":
        target, _, last = name.rpartition(".")  # "y0.label", "label"
        label = answered[f"{target}.label" if target else "label"]
        classes = _class_labels(model, int(target[1:]) if target else None, label)
        labels = label if classes is None else classes
        dtype: DType = "float64" if last == "probabilities" else _signature_dtype(labels)
        return Output(name, dtype, shape, None if classes is None else scalars(classes))
    if name in ("label", "cluster"):
        return Output(name, "int64", shape)
    targets = tuple(f"y{i}" for i in range(shape[1])) if name == "values" else None
    return Output(name, _signature_dtype(array), shape, targets)


def _class_labels(model: Any, target: int | None, label: Array) -> Array | None:
    """The classes of one target, in the order of the columns of its probabilities."""
    classes = getattr(model, "classes_", None)
    if classes is None:
        return None
    if target is None:
        return np.asarray(classes[0] if isinstance(classes, list) else classes)
    if isinstance(classes, list):
        return np.asarray(classes[target])
    return np.asarray([False, True]) if label.dtype == bool else np.asarray([0, 1])


def scalars(values: Array) -> tuple[Scalar, ...]:
    """`values` as JSON's own types: str, bool, int, float."""
    dtype = _signature_dtype(values)
    listed = [v.item() if isinstance(v, np.generic) else v for v in values.tolist()]  # of an array of objects
    return tuple(str(v) if dtype == "string" else v for v in listed)


def _signature_dtype(values: Array) -> DType:
    """The signature's dtype for an array of the estimator's. Raises `Refused` for mixed objects."""
    kind: str = values.dtype.kind
    if kind == "O":
        kind = _common_kind(values)
    if kind in "iu":
        return "int64"
    if kind == "b":
        return "bool"
    if kind == "f":
        return "float32" if values.dtype == np.float32 else "float64"
    if kind in "SU":
        return "string"
    raise Refused(f"the model returns values of mixed types ({values.dtype}), which no column can hold")


def _common_kind(objects: Array) -> str:
    """numpy's kind code for all values of an object array; "?" for mixed types."""
    kinds = {"S" if isinstance(v, str) else np.asarray(v).dtype.kind for v in objects.ravel().tolist()}
    if kinds <= {"S"}:
        return "S"
    if len(kinds) == 1:
        return kinds.pop()
    return "f" if kinds <= {"i", "f"} else "?"


def _has_columns(predicted: Array) -> bool:
    return predicted.ndim == 2 and predicted.shape[1] != 1


def _dense(values: Any) -> Array:
    """Sparse matrices and data frames as plain arrays."""
    if hasattr(values, "toarray"):
        values = values.toarray()
    return np.asarray(values)
