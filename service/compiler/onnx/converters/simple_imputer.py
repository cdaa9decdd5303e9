"""SimpleImputer in ONNX for strings, doubles and integers; skl2onnx's converter has float32 numbers only."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx.common._registration import get_shape_calculator
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, StringTensorType
from skl2onnx.operator_converters.common import concatenate_variables
from sklearn.impute import SimpleImputer

from service.compiler.onnx.converters.node_writer import NodeWriter
from service.runtime.graph_conventions import MISSING_STRING

_ALIAS = "SklearnSimpleImputer"


def register() -> None:
    update_registered_converter(
        SimpleImputer, _ALIAS, get_shape_calculator(_ALIAS), convert_imputer, overwrite=True
    )


def convert_imputer(scope: Any, operator: Any, container: Any) -> None:
    """Raises NotImplementedError for missing values other than NaN, indicators, and dropped columns."""
    model, nodes = operator.raw_operator, NodeWriter(scope, operator, container)
    fill = np.asarray(model.statistics_)
    if not (isinstance(model.missing_values, float) and np.isnan(model.missing_values)):
        raise NotImplementedError(f"an imputer of {model.missing_values!r}")
    if model.indicator_ is not None or any(v is None or v != v for v in fill.tolist()):
        raise NotImplementedError("an imputer that adds or drops columns")
    rows = concatenate_variables(scope, operator.inputs, container)
    rows = rows[0] if isinstance(rows, list) else rows
    output = operator.outputs[0]
    width = [1, len(fill)]
    if isinstance(output.type, StringTensorType):
        missing = nodes.cast(_is_missing_string(nodes, rows), TensorProto.BOOL)
        values = nodes.constant(TensorProto.STRING, width, [str(v).encode() for v in fill])
        nodes.add("Where", missing, values, rows, version=9, out=output.full_name)
        return
    if not isinstance(output.type, FloatTensorType | DoubleTensorType):
        nodes.add("Identity", rows, out=output.full_name)  # integers are never missing
        return
    dtype = TensorProto.DOUBLE if isinstance(output.type, DoubleTensorType) else TensorProto.FLOAT
    values = nodes.constant(dtype, width, [float(v) for v in fill])
    nodes.add("Where", nodes.add("IsNaN", rows), values, rows, version=9, out=output.full_name)


def _is_missing_string(nodes: NodeWriter, rows: str) -> str:
    """int64: 1 where a value is `MISSING_STRING`, else 0."""
    mapping: dict[str, Any] = {"keys_strings": [MISSING_STRING], "values_int64s": [1], "default_int64": 0}
    return nodes.add("LabelEncoder", rows, version=2, op_domain="ai.onnx.ml", **mapping)
