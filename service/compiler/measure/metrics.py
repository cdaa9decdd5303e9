"""Accuracy or R2 on the example, when the example has a column of true values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from sklearn.metrics import accuracy_score, r2_score

from registry.rows import Outputs
from registry.signature import Signature


def measure(signature: Signature, answered: Outputs, truth: pa.Array) -> dict[str, float]:
    """`accuracy` for a classifier, `r2` for a regressor with one target; empty for every other model.

    Raises ValueError, with the reason, when the true values are not of the type that the model returns.
    """
    present = np.asarray(truth.is_valid())
    true = np.array(truth.drop_null().to_pylist())
    if not len(true):
        raise ValueError("the target column is empty")
    if signature.task == "classification" and "label" in answered:
        label = answered["label"][present]
        dtype = signature.outputs[0].dtype
        if (true.dtype.kind in "SU") != (dtype == "string"):
            raise ValueError(f"the target column holds {truth.type}, the model's labels are {dtype}")
        return {"accuracy": float(accuracy_score(true.astype(label.dtype), label))}
    if signature.task == "regression" and "value" in answered:
        if true.dtype.kind not in "iufb":
            raise ValueError(f"the target column holds {truth.type}, the model returns numbers")
        if len(true) < 2:
            raise ValueError("R2 needs at least two rows")
        return {"r2": float(r2_score(true.astype(np.float64), answered["value"][present]))}
    return {}
