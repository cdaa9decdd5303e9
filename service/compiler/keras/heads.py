"""The meaning of a Keras model's outputs, and their conversion to a signature's outputs."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from registry.rows import Array, Outputs
from registry.signature import Output, Signature

HeadKind = Literal[
    "probabilities", "logits", "probability", "logit", "label probabilities", "label logits", "numbers"
]
"""`probabilities`: of k classes. `probability`: of the second of two classes. `label probabilities`: of k
labels that are independent of each other. `logits`, `logit`, `label logits`: the values before their softmax
or sigmoid. `numbers`: a regression or a vector."""

TRANSPARENT_LAYERS = frozenset({"ActivityRegularization", "Dropout", "Flatten", "Identity", "Reshape"})
"""Layers that do not change the numbers of an output."""


class OutputHead(msgspec.Struct, frozen=True):
    """One output of the model: its name, the count of its numbers per row, and their meaning."""

    name: str
    width: int
    kind: HeadKind

    @property
    def labels(self) -> int:
        """The number of answers with a label: one, or one per independent label."""
        return self.width if self.kind.startswith("label ") else 1


def to_outputs(raw: list[Array], heads: tuple[OutputHead, ...], signature: Signature) -> Outputs:
    """Convert the model's own arrays [rows, ...] to the signature's outputs."""
    flat = [a.reshape(len(a), -1).astype(np.float32, copy=False) for a in raw]
    if signature.task != "classification":
        name = signature.outputs[0].name
        joined = np.concatenate(flat, axis=1)
        return {name: joined.reshape(-1) if name == "value" else joined}
    probabilities = [p for array, head in zip(flat, heads, strict=True) for p in _probabilities(array, head)]
    outputs: Outputs = {}
    for prefix, array in zip(label_prefixes(heads), probabilities, strict=True):
        classes = next(o.classes for o in signature.outputs if o.name == f"{prefix}label") or ()
        outputs[f"{prefix}label"] = _class_array(classes)[array.argmax(axis=1)]
        outputs[f"{prefix}probabilities"] = array
    return outputs


def label_prefixes(heads: tuple[OutputHead, ...]) -> list[str]:
    """What the names of the outputs of each label start with: nothing, or `y0.`, `y1.`, ... of several."""
    count = sum(h.labels for h in heads)
    return [f"y{i}." for i in range(count)] if count > 1 else [""]


def _class_array(classes: tuple[Any, ...]) -> Array:
    return np.array(classes, dtype=object if isinstance(classes[0], str) else None)


def _probabilities(array: Array, head: OutputHead) -> list[Array]:
    """[rows, classes] of each label of the output."""
    if head.kind == "probabilities":
        return [array]
    if head.kind == "logits":
        powers = np.exp(array - array.max(axis=1, keepdims=True))
        return [np.asarray(powers / powers.sum(axis=1, keepdims=True))]
    if head.kind in ("logit", "label logits"):
        array = 1.0 / (1.0 + np.exp(-array))
    return [np.concatenate([1.0 - array[:, [i]], array[:, [i]]], axis=1) for i in range(head.width)]


def to_graph_outputs(tf: Any, raw: list[Any], heads: tuple[OutputHead, ...], task: str) -> dict[str, Any]:
    """`to_outputs` with TensorFlow operators; labels are class indices. The keys are `graph_output_names`."""
    flat = [a if len(a.shape) == 2 else tf.reshape(a, (-1, h.width)) for a, h in zip(raw, heads, strict=True)]
    flat = [tf.cast(a, tf.float32) for a in flat]
    if task != "classification":
        outputs = [tf.concat(flat, axis=1) if len(flat) > 1 else flat[0]]
    else:
        outputs = []
        for array, head in zip(flat, heads, strict=True):
            for probabilities in _graph_probabilities(tf, array, head):
                outputs += [tf.argmax(probabilities, axis=1, output_type=tf.int64), probabilities]
    return dict(zip(graph_output_names(len(outputs)), outputs, strict=True))


def _graph_probabilities(tf: Any, array: Any, head: OutputHead) -> list[Any]:
    """`_probabilities` with TensorFlow operators."""
    if head.kind == "probabilities":
        return [array]
    if head.kind == "logits":
        return [tf.nn.softmax(array)]
    if head.kind in ("logit", "label logits"):
        array = tf.sigmoid(array)
    columns = tf.split(array, head.width, axis=1) if head.width > 1 else [array]
    return [tf.concat([1.0 - column, column], axis=1) for column in columns]


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
    """The signature's outputs. `classes` are those of each label."""
    if task == "classification":
        outputs = []
        for prefix, of_label in zip(label_prefixes(heads), classes, strict=True):
            outputs += [
                Output(f"{prefix}label", _label_dtype(of_label[0]), (-1,), of_label),
                Output(f"{prefix}probabilities", "float32", (-1, len(of_label)), of_label),
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
