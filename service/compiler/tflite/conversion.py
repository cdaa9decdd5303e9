"""Convert a fitted estimator and its signature to the bytes of a .tflite file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.errors import Refused
from registry.signature import Signature
from service.compiler.tflite import compose
from service.compiler.tflite.converter import CompiledOutputs, ConversionContext
from service.compiler.tflite.graph_columns import GraphColumns, RawColumns, to_tensor
from service.compiler.tflite.metadata import ENTRY
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import ROWS, GraphTensor

SEARCH_STEPS = 7
"""Conversions tried to meet a limit of the size: the fraction of nodes is exact to a hundredth."""


@dataclass(frozen=True)
class TfliteConversion:
    """A .tflite file, and a description of what was removed from tree ensembles ("" for nothing)."""

    content: bytes
    reduction: str


def convert(model: Any, signature: Signature) -> bytes:
    """Convert to a float32 .tflite with the input `input` [rows, features] and the outputs of the task.

    Raises `Refused`, naming the estimator or the feature, for estimators without a TFLite form and for text.
    """
    return convert_reduced(model, signature, 1.0).content


def convert_reduced(model: Any, signature: Signature, fraction: float) -> TfliteConversion:
    """As `convert`, with only about `fraction` of the nodes of every tree ensemble in the model."""
    if texts := [i.name for i in signature.inputs if i.dtype == "string"]:
        raise Refused(f"feature {texts[0]!r} is text; the input of a converted .tflite is numbers")
    graph = Graph(len(signature.inputs))
    float32_rows = all(i.dtype == "float32" for i in signature.inputs)
    scaler_dtype = np.float32 if float32_rows else np.float64
    context = ConversionContext(graph, compose.compile_model, scaler_dtype, fraction)
    columns = GraphColumns((RawColumns(np.arange(len(signature.inputs))),))
    compiled = compose.compile_model(context, model, columns)
    tensors = _output_tensors(graph, signature, model, compiled)
    # Each output is a copy: it must not be the input, a constant, or the tensor of another output.
    outputs = {name: graph.reshape(t, (ROWS, *t.shape[1:])) for name, t in tensors.items()}
    entry = json.dumps(_metadata(model, signature, outputs)).encode()
    reduction = "; ".join(dict.fromkeys(context.reductions))
    return TfliteConversion(graph.finish(outputs, {ENTRY: entry}), reduction)


def convert_within(model: Any, signature: Signature, max_bytes: int) -> TfliteConversion:
    """The largest conversion of at most `max_bytes`, with smaller tree ensembles where necessary.

    Raises `Refused` when even the smallest conversion is larger, as always for a model without trees.
    """
    best = convert_reduced(model, signature, 1.0)
    if len(best.content) <= max_bytes:
        return best
    smallest = convert_reduced(model, signature, 0.0)
    if len(smallest.content) > max_bytes:
        raise Refused(
            f"{type(model).__name__} needs {len(best.content)} bytes as .tflite, and at least "
            f"{len(smallest.content)} with smaller tree ensembles; {max_bytes} are allowed"
        )
    low, high, best = 0.0, 1.0, smallest
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        candidate = convert_reduced(model, signature, middle)
        if len(candidate.content) <= max_bytes:
            low, best = middle, candidate
        else:
            high = middle
    return best


def _output_tensors(
    graph: Graph, signature: Signature, model: Any, compiled: CompiledOutputs
) -> dict[str, GraphTensor]:
    """The task's outputs by name. Raises `Refused` when the compiled estimator lacks one of them."""
    tensors: dict[str, GraphTensor | None] = {}
    if signature.task == "classification":
        several = any("." in o.name for o in signature.outputs)
        for number, label in enumerate(compiled.labels):
            prefix = f"y{number}." if several else ""
            tensors[f"{prefix}label"] = label
            if compiled.probabilities:
                tensors[f"{prefix}probabilities"] = compiled.probabilities[number]
    elif signature.task == "regression":
        tensors["value"] = compiled.value
    elif signature.task == "outlier":
        tensors |= {"label": compiled.labels[0] if compiled.labels else None, "score": compiled.score}
    elif signature.task == "transform":
        tensors["vector"] = to_tensor(graph, compiled.columns) if compiled.columns is not None else None
    else:
        tensors["cluster"] = compiled.labels[0] if compiled.labels else None
    names = ["value" if o.name == "values" else o.name for o in signature.outputs]
    if missing := [name for name in names if tensors.get(name) is None]:
        raise Refused(f"{type(model).__name__} has no TFLite form for its output {missing[0]!r}")
    return {name: tensor for name in names if (tensor := tensors[name]) is not None}


def _metadata(model: Any, signature: Signature, outputs: dict[str, GraphTensor]) -> dict[str, Any]:
    entries = []
    for output, (name, tensor) in zip(signature.outputs, outputs.items(), strict=True):
        entry: dict[str, Any] = {"name": name, "shape": list(tensor.shape)}
        if output.classes is not None:
            entry["classes"] = list(output.classes)
        entries.append(entry)
    features = [i.name for i in signature.inputs]
    return {"task": signature.task, "features": features, "outputs": entries, "model": type(model).__name__}
