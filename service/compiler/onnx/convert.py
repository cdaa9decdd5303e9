"""Convert scikit-learn estimators to ONNX: the candidate forms of a model, and one of them as a graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnx import ModelProto
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from skl2onnx.common.exceptions import MissingShapeCalculator
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.preprocessing import QuantileTransformer

from registry.errors import Refused
from registry.signature import Input, Signature
from service.compiler.onnx import converters, graph
from service.compiler.signature import composites
from service.compiler.signature.estimator import input_form

OPSET = {"": 18, "ai.onnx.ml": 3}
"""IsolationForest converts for this pair only; onnxruntime runs it everywhere."""


@dataclass(frozen=True)
class Candidate:
    """One way to pass the features to the same model."""

    floats: Literal["float32", "float64"]
    layout: Literal["tensor", "columns"]  # one input [n, features], or one per feature
    integers: bool = False  # integer columns stay int64

    @property
    def title(self) -> str:
        layout = "one tensor" if self.layout == "tensor" else "one input per column"
        return f"{self.floats}, {layout}" + (", whole numbers as int64" if self.integers else "")


def candidates(model: Any, signature: Signature) -> list[Candidate]:
    """The candidates in the order of their trial. Raises `Refused`, with the reason, for an empty list."""
    form = input_form(model)
    if form not in ("frame", "matrix"):
        raise Refused(f"it takes {form}, which scikit-learn itself has to answer")
    if any(isinstance(visit.estimator, QuantileTransformer) for visit in composites.walk(model)):
        raise Refused("the converter for QuantileTransformer takes up to a minute per feature")
    has_strings = {i.dtype == "string" for i in signature.inputs}
    columns = form == "frame" and (True in has_strings or _selects_columns(model))
    if not columns and len(has_strings) > 1:
        raise Refused("strings and numbers in one array cannot be converted to ONNX; fit on a DataFrame")
    layout: Literal["tensor", "columns"] = "columns" if columns else "tensor"
    floats: tuple[Literal["float64", "float32"], ...] = ("float64", "float32")
    plain = [Candidate(f, layout) for f in floats]
    if columns and any(_is_integer(i) for i in signature.inputs):
        return [Candidate(f, layout, integers=True) for f in floats] + plain
    return plain


def _selects_columns(model: Any) -> bool:
    return any(isinstance(visit.estimator, ColumnTransformer) for visit in composites.walk(model))


def _is_integer(feature: Input) -> bool:
    return feature.dtype in ("int64", "bool") and not feature.nullable


def convert(model: Any, signature: Signature, candidate: Candidate) -> ModelProto:
    """The graph, with the signature's names for its inputs and outputs.

    Raises whatever the converter raises.
    """
    if signature.task == "classification":
        for visit in composites.walk(model):
            if hasattr(visit.estimator, "flatten_transform"):  # of voting's transform; predict ignores it
                visit.estimator.flatten_transform = False  # the only value that skl2onnx converts
    converted = _convert(model, _input_types(signature, candidate))
    if candidate.floats == "float64":
        graph.round_tree_inputs(converted.graph)
    graph.name_values(converted, signature, candidate.layout == "columns")
    return converted


def _convert(model: Any, types: list[tuple[str, Any]]) -> ModelProto:
    """Without a ZipMap, so that probabilities are an array.

    Classifiers that never have a ZipMap do not have the option: the converter raises NameError for it.
    """
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        converted: ModelProto = convert_sklearn(
            model, initial_types=types, options=options, target_opset=OPSET
        )
    except MissingShapeCalculator as error:
        missing = str(error).partition("'sklearn.")[2].partition("'")[0].rpartition(".")[2]
        raise Refused(f"there is no converter for {missing or type(model).__name__}") from error
    except NameError:
        converted = convert_sklearn(model, initial_types=types, target_opset=OPSET)
    return converted


def _input_types(signature: Signature, candidate: Candidate) -> list[tuple[str, Any]]:
    floats = DoubleTensorType if candidate.floats == "float64" else FloatTensorType
    if candidate.layout == "tensor":
        tensor = StringTensorType if signature.inputs[0].dtype == "string" else floats
        return [("input", tensor([None, len(signature.inputs)]))]

    def column(feature: Input) -> Any:
        if feature.dtype == "string":
            return StringTensorType([None, 1])
        return (
            Int64TensorType([None, 1]) if candidate.integers and _is_integer(feature) else floats([None, 1])
        )

    return [(i.name, column(i)) for i in signature.inputs]


def save(model: ModelProto, path: Path) -> int:
    """Write the graph; return its size in bytes."""
    return path.write_bytes(model.SerializeToString())


converters.register()
