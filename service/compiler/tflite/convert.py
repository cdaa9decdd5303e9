"""From a fitted estimator and its signature to the bytes of a .tflite file."""

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

SEARCHED = 7
"""Conversions tried for a bound on the bytes: to within a hundredth of the nodes."""


@dataclass(frozen=True)
class Converted:
    """A .tflite file, and in words what was given up for its size ("" for nothing)."""

    content: bytes
    reduction: str


def convert(model: Any, signature: Signature) -> bytes:
    """A float32 .tflite: input `input` [rows, features]; outputs as the signature's task says.

    Raises `Refused` by name for what has no TFLite form, and for features that are no numbers.
    """
    return reduced(model, signature, 1.0).content


def reduced(model: Any, signature: Signature, fraction: float) -> Converted:
    """As `convert`, but of every tree ensemble in the model only about `fraction` of the nodes."""
    if texts := [i.name for i in signature.inputs if i.dtype == "string"]:
        raise Refused(f"feature {texts[0]!r} is text; the input of a .tflite of ours is numbers")
    graph = Graph(len(signature.inputs))
    single = all(i.dtype == "float32" for i in signature.inputs)
    context = ConversionContext(graph, compose.compile_model, np.float32 if single else np.float64, fraction)
    answer = compose.compile_model(
        context, model, GraphColumns((RawColumns(np.arange(len(signature.inputs))),))
    )
    outputs = {name: _owned(graph, made) for name, made in _outputs(graph, signature, model, answer).items()}
    entry = json.dumps(_described(model, signature, outputs)).encode()
    return Converted(graph.finish(outputs, {ENTRY: entry}), "; ".join(dict.fromkeys(context.reduction)))


def within(model: Any, signature: Signature, max_bytes: int) -> Converted:
    """The largest conversion of at most `max_bytes`, by aggregating tree ensembles where it must.

    Raises `Refused` when even the smallest is larger, or there are no trees to aggregate.
    """
    best = reduced(model, signature, 1.0)
    if len(best.content) <= max_bytes:
        return best
    smallest = reduced(model, signature, 0.0)
    if len(smallest.content) > max_bytes:
        raise Refused(
            f"{type(model).__name__} takes {len(best.content)} bytes as .tflite, and not less than "
            f"{len(smallest.content)} with trees aggregated; {max_bytes} are allowed"
        )
    low, high, best = 0.0, 1.0, smallest
    for _ in range(SEARCHED):
        middle = (low + high) / 2
        tried = reduced(model, signature, middle)
        if len(tried.content) <= max_bytes:
            low, best = middle, tried
        else:
            high = middle
    return best


def _outputs(
    graph: Graph, signature: Signature, model: Any, answer: CompiledOutputs
) -> dict[str, GraphTensor]:
    """The task's outputs by name. Raises `Refused` when the estimator's compiled form does not give them."""
    made: dict[str, GraphTensor | None] = {}
    if signature.task == "classification":
        several = any("." in o.name for o in signature.outputs)
        for number, label in enumerate(answer.labels):
            before = f"y{number}." if several else ""
            made[f"{before}label"] = label
            if answer.probabilities:
                made[f"{before}probabilities"] = answer.probabilities[number]
    elif signature.task == "regression":
        made["value"] = answer.value
    elif signature.task == "outlier":
        made |= {"label": answer.labels[0] if answer.labels else None, "score": answer.score}
    elif signature.task == "transform":
        made["vector"] = to_tensor(graph, answer.columns) if answer.columns is not None else None
    else:
        made["cluster"] = answer.labels[0] if answer.labels else None
    wanted = ["value" if o.name == "values" else o.name for o in signature.outputs]
    if missing := [name for name in wanted if made.get(name) is None]:
        raise Refused(f"{type(model).__name__} has no TFLite form for its output {missing[0]!r}")
    return {name: found for name in wanted if (found := made[name]) is not None}


def _owned(graph: Graph, made: GraphTensor) -> GraphTensor:
    """An output must be a tensor of its own: not the input, a constant, nor the output of another name."""
    return graph.reshape(made, (ROWS, *made.shape[1:]))


def _described(model: Any, signature: Signature, outputs: dict[str, GraphTensor]) -> dict[str, Any]:
    described = []
    for output, (name, made) in zip(signature.outputs, outputs.items(), strict=True):
        entry: dict[str, Any] = {"name": name, "shape": list(made.shape)}
        if output.classes is not None:
            entry["classes"] = list(output.classes)
        described.append(entry)
    features = [i.name for i in signature.inputs]
    return {"task": signature.task, "features": features, "outputs": described, "model": type(model).__name__}
