"""scikit-learn to ONNX: which forms are worth trying for a model, and one of them as a graph."""

from __future__ import annotations

from collections.abc import Iterator
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
from service.compiler.onnx import graph, imputer_converter, tree_converters
from service.compiler.signature import row_layout

OPSET = {"": 18, "ai.onnx.ml": 3}
"""IsolationForest converts for this pair only; onnxruntime runs it everywhere."""


@dataclass(frozen=True)
class Candidate:
    """One way to feed the same model."""

    floats: Literal["float32", "float64"]
    layout: Literal["tensor", "columns"]  # one input [n, features], or one per feature
    integers: bool = False  # whole-number columns stay int64

    @property
    def title(self) -> str:
        return f"{self.floats}, {'one tensor' if self.layout == 'tensor' else 'one input per column'}" + (
            ", whole numbers as int64" if self.integers else ""
        )


def candidates(model: Any, signature: Signature) -> list[Candidate]:
    """The likelier first. Raises `Refused`, in plain words, when there is nothing to try."""
    kind = row_layout.kind(model)
    if kind not in ("frame", "matrix"):
        raise Refused(f"it takes {kind}, which scikit-learn itself has to answer")
    if any(isinstance(e, QuantileTransformer) for e in inside(model)):
        raise Refused("the converter for QuantileTransformer takes up to a minute per feature")
    strings = {i.dtype == "string" for i in signature.inputs}
    columns = kind == "frame" and (True in strings or _selects_columns(model))
    if not columns and len(strings) > 1:
        raise Refused("strings and numbers in one array have no ONNX form; fit on a DataFrame instead")
    layout: Literal["tensor", "columns"] = "columns" if columns else "tensor"
    floats: tuple[Literal["float64", "float32"], ...] = ("float64", "float32")
    if columns and any(i.dtype in ("int64", "bool") and not i.nullable for i in signature.inputs):
        whole = [Candidate(f, layout, True) for f in floats]
        return whole + [Candidate(f, layout) for f in floats]
    return [Candidate(f, layout) for f in floats]


def convert(model: Any, signature: Signature, candidate: Candidate) -> ModelProto:
    """The graph, its outputs named as the signature's. Raises whatever the converter raises."""
    for part in inside(model):
        if signature.task == "classification" and hasattr(part, "flatten_transform"):
            part.flatten_transform = (
                False  # of voting's transform; the converter wants it so, predict ignores it
            )
    converted = _converted(model, _types(signature, candidate))
    if candidate.floats == "float64":
        graph.round_tree_inputs(converted.graph)
    graph.name_values(converted, signature, candidate.layout == "columns")
    return converted


def _converted(model: Any, types: list[tuple[str, Any]]) -> ModelProto:
    """Without a ZipMap: probabilities are an array. Classifiers that never have one don't know the option."""
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    try:
        converted: ModelProto = convert_sklearn(
            model, initial_types=types, options=options, target_opset=OPSET
        )
    except MissingShapeCalculator as error:
        missing = str(error).partition("'sklearn.")[2].partition("'")[0].rpartition(".")[2]
        raise Refused(f"there is no converter for {missing or row_layout.name(model)}") from error
    except NameError:
        converted = convert_sklearn(model, initial_types=types, target_opset=OPSET)
    return converted


def save(model: ModelProto, path: Path) -> int:
    """Returns the bytes written."""
    return path.write_bytes(model.SerializeToString())


def _types(signature: Signature, candidate: Candidate) -> list[tuple[str, Any]]:
    floats = DoubleTensorType if candidate.floats == "float64" else FloatTensorType
    if candidate.layout == "tensor":
        kind = StringTensorType if signature.inputs[0].dtype == "string" else floats
        return [("input", kind([None, len(signature.inputs)]))]

    def column(given: Input) -> Any:
        if given.dtype == "string":
            return StringTensorType([None, 1])
        if candidate.integers and given.dtype in ("int64", "bool") and not given.nullable:
            return Int64TensorType([None, 1])
        return floats([None, 1])

    return [(i.name, column(i)) for i in signature.inputs]


def inside(model: Any) -> Iterator[Any]:
    """`model` and the estimators in it, as far as its parameters show them."""
    yield model
    if hasattr(model, "get_params"):
        for value in model.get_params(deep=True).values():
            if hasattr(value, "get_params") and not isinstance(value, type):
                yield value


def _selects_columns(model: Any) -> bool:
    return any(isinstance(e, ColumnTransformer) for e in inside(model))


tree_converters.register()
imputer_converter.register()
