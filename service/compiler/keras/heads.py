"""The meaning of a Keras model's outputs, and their conversion to a signature's outputs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from registry.rows import Array, Outputs
from registry.signature import Output, Signature

HeadKind = Literal["probabilities", "logits", "probability", "logit", "numbers"]
"""`probabilities`: of k classes. `probability`: of the second of two classes. `logits`, `logit`: the values
before their softmax or sigmoid. `numbers`: a regression or a vector."""

TRANSPARENT_LAYERS = frozenset({"ActivityRegularization", "Dropout", "Flatten", "Identity", "Reshape"})
"""Layers that do not change the numbers of an output."""


class OutputHead(msgspec.Struct, frozen=True):
    """One output of the model: its name, the count of its numbers per row, and their meaning."""

    name: str
    width: int
    kind: HeadKind


def to_outputs(raw: list[Array], heads: tuple[OutputHead, ...], signature: Signature) -> Outputs:
    """Convert the model's own arrays [rows, ...] to the signature's outputs."""
    flat = [a.reshape(len(a), -1).astype(np.float32, copy=False) for a in raw]
    if signature.task != "classification":
        name = signature.outputs[0].name
        joined = np.concatenate(flat, axis=1)
        return {name: joined.reshape(-1) if name == "value" else joined}
    outputs: Outputs = {}
    for number, (array, head) in enumerate(zip(flat, heads, strict=True)):
        probabilities = _probabilities(array, head)
        label = f"y{number}.label" if len(heads) > 1 else "label"
        classes = next(o.classes for o in signature.outputs if o.name == label) or ()
        outputs[label] = _class_array(classes)[probabilities.argmax(axis=1)]
        outputs[label.removesuffix("label") + "probabilities"] = probabilities
    return outputs


def _class_array(classes: tuple[Any, ...]) -> Array:
    return np.array(classes, dtype=object if isinstance(classes[0], str) else None)


def _probabilities(array: Array, head: OutputHead) -> Array:
    if head.kind == "logits":
        powers = np.exp(array - array.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    if head.kind == "logit":
        array = 1.0 / (1.0 + np.exp(-array))
    return array if head.kind == "probabilities" else np.concatenate([1.0 - array, array], axis=1)


def to_graph_outputs(tf: Any, raw: list[Any], heads: tuple[OutputHead, ...], task: str) -> dict[str, Any]:
    """`to_outputs` with TensorFlow operators; labels are class indices. The keys are `graph_output_names`."""
    flat = [a if len(a.shape) == 2 else tf.reshape(a, (-1, h.width)) for a, h in zip(raw, heads, strict=True)]
    flat = [tf.cast(a, tf.float32) for a in flat]
    if task != "classification":
        outputs = [tf.concat(flat, axis=1) if len(flat) > 1 else flat[0]]
    else:
        outputs = []
        for array, head in zip(flat, heads, strict=True):
            if head.kind == "logits":
                array = tf.nn.softmax(array)
            elif head.kind == "logit":
                array = tf.sigmoid(array)
            if head.kind in ("probability", "logit"):
                array = tf.concat([1.0 - array, array], axis=1)
            outputs += [tf.argmax(array, axis=1, output_type=tf.int64), array]
    return dict(zip(graph_output_names(len(outputs)), outputs, strict=True))


def graph_output_names(count: int) -> list[str]:
    """Temporary names of the graph's outputs, in the signature's order, until `stamp` renames them."""
    return [f"output{i:03}" for i in range(count)]


def last_activation(tensor: Any) -> str:
    """The last activation before an output, in lower case: softmax, sigmoid, linear, ..."""
    operation, node, index = tensor._keras_history
    if hasattr(operation, "layers") and hasattr(operation, "outputs"):
        return last_activation(operation.outputs[index])
    activation = getattr(operation, "activation", None)
    if activation is not None and getattr(activation, "__name__", "") != "linear":
        return str(getattr(activation, "__name__", type(activation).__name__)).lower()
    kind = type(operation).__name__
    if kind in TRANSPARENT_LAYERS or kind == "Activation":
        return last_activation(operation._inbound_nodes[node].input_tensors[0])
    return "linear" if kind not in ("Softmax", "Sigmoid") else kind.lower()


def typed_outputs(
    task: str, heads: tuple[OutputHead, ...], classes: list[tuple[Any, ...]]
) -> tuple[Output, ...]:
    """The signature's outputs. `classes` are those of each classifying head."""
    if task == "classification":
        outputs = []
        for number, of_head in enumerate(classes):
            prefix = f"y{number}." if len(heads) > 1 else ""
            outputs += [
                Output(f"{prefix}label", _label_dtype(of_head[0]), (-1,), of_head),
                Output(f"{prefix}probabilities", "float32", (-1, len(of_head)), of_head),
            ]
        return tuple(outputs)
    width = sum(h.width for h in heads)
    if task == "transform":
        return (Output("vector", "float32", (-1, width)),)
    if width == 1:
        return (Output("value", "float32", (-1,)),)
    return (Output("values", "float32", (-1, width), _target_names(heads)),)


def _target_names(heads: tuple[OutputHead, ...]) -> tuple[str, ...]:
    if len(heads) == 1:
        return tuple(f"y{i}" for i in range(heads[0].width))
    names = [[h.name] if h.width == 1 else [f"{h.name}_{i}" for i in range(h.width)] for h in heads]
    return tuple(name for of_head in names for name in of_head)


def _label_dtype(label: Any) -> Any:
    if isinstance(label, bool):
        return "bool"
    return "int64" if isinstance(label, int) else "float64" if isinstance(label, float) else "string"
