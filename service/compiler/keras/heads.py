"""What a Keras model's outputs mean: from raw arrays to a signature's, in numpy and in the graph alike."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy as np

from registry.rows import Array, Outputs
from registry.signature import Output, Signature

Kind = Literal["chances", "logits", "chance", "logit", "numbers"]
"""`chances`: of k classes. `chance`: of the second of two. `logits`, `logit`: the same before the softmax or
sigmoid. `numbers`: nothing but numbers."""

PASS_ON = frozenset({"ActivityRegularization", "Dropout", "Flatten", "Identity", "Reshape"})


class Head(msgspec.Struct, frozen=True):
    """One output of the model: its name, the numbers it gives for a row, and what they are."""

    name: str
    width: int
    kind: Kind


def answer(raw: list[Array], heads: tuple[Head, ...], signature: Signature) -> Outputs:
    """The signature's arrays from the model's own [rows, ...]."""
    flat = [a.reshape(len(a), -1).astype(np.float32, copy=False) for a in raw]
    found: Outputs = {}
    if signature.task == "classification":
        for number, (array, head) in enumerate(zip(flat, heads, strict=True)):
            chances = _chances(array, head)
            label = f"y{number}.label" if len(heads) > 1 else "label"
            classes = next(o.classes for o in signature.outputs if o.name == label) or ()
            found[label] = _labels(classes)[chances.argmax(axis=1)]
            found[label.removesuffix("label") + "probabilities"] = chances
        return found
    name = signature.outputs[0].name
    joined = np.concatenate(flat, axis=1)
    return {name: joined.reshape(-1) if name == "value" else joined}


def _labels(classes: tuple[Any, ...]) -> Array:
    return np.array(classes, dtype=object if isinstance(classes[0], str) else None)


def _chances(array: Array, head: Head) -> Array:
    if head.kind == "logits":
        raised = np.exp(array - array.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))
    if head.kind == "logit":
        array = 1.0 / (1.0 + np.exp(-array))
    return array if head.kind == "chances" else np.concatenate([1.0 - array, array], axis=1)


def graph(tf: Any, raw: list[Any], heads: tuple[Head, ...], task: str) -> dict[str, Any]:
    """The same with TensorFlow's operators, labels as indices, named by `names`."""
    flat = [a if len(a.shape) == 2 else tf.reshape(a, (-1, h.width)) for a, h in zip(raw, heads, strict=True)]
    flat = [tf.cast(a, tf.float32) for a in flat]
    made = []
    if task != "classification":
        joined = tf.concat(flat, axis=1) if len(flat) > 1 else flat[0]
        # a model may end in its own input, and a graph's output must be an operator's
        made.append(joined)
    for array, head in zip(flat, heads, strict=True) if task == "classification" else ():
        if head.kind == "logits":
            array = tf.nn.softmax(array)
        elif head.kind == "logit":
            array = tf.sigmoid(array)
        if head.kind in ("chance", "logit"):
            array = tf.concat([1.0 - array, array], axis=1)
        made += [tf.argmax(array, axis=1, output_type=tf.int64), array]
    return dict(zip(names(len(made)), made, strict=True))


def names(count: int) -> list[str]:
    """Of the graph's outputs, in the order of the signature's, until it is stamped with those."""
    return [f"output{i:03}" for i in range(count)]


def activation(tensor: Any) -> str:
    """The last activation before an output, in lower case: softmax, sigmoid, linear, ..."""
    operation, node, index = tensor._keras_history
    if hasattr(operation, "layers") and hasattr(operation, "outputs"):
        return activation(operation.outputs[index])
    own = getattr(operation, "activation", None)
    if own is not None and getattr(own, "__name__", "") != "linear":
        return str(getattr(own, "__name__", type(own).__name__)).lower()
    kind = type(operation).__name__
    if kind in PASS_ON or kind == "Activation":
        return activation(operation._inbound_nodes[node].input_tensors[0])
    return "linear" if kind not in ("Softmax", "Sigmoid") else kind.lower()


def outputs(task: str, heads: tuple[Head, ...], classes: list[tuple[Any, ...]]) -> tuple[Output, ...]:
    """The typed outputs. `classes` are each classifying head's."""
    if task == "classification":
        typed = []
        for number, known in enumerate(classes):
            prefix = f"y{number}." if len(heads) > 1 else ""
            dtype = _dtype(known[0])
            typed += [
                Output(f"{prefix}label", dtype, (-1,), known),
                Output(f"{prefix}probabilities", "float32", (-1, len(known)), known),
            ]
        return tuple(typed)
    width = sum(h.width for h in heads)
    if task == "transform":
        return (Output("vector", "float32", (-1, width)),)
    if width == 1:
        return (Output("value", "float32", (-1,)),)
    return (Output("values", "float32", (-1, width), _targets(heads)),)


def _targets(heads: tuple[Head, ...]) -> tuple[str, ...]:
    if len(heads) == 1:
        return tuple(f"y{i}" for i in range(heads[0].width))
    each = [[h.name] if h.width == 1 else [f"{h.name}_{i}" for i in range(h.width)] for h in heads]
    return tuple(name for names in each for name in names)


def _dtype(label: Any) -> Any:
    if isinstance(label, bool):
        return "bool"
    return "int64" if isinstance(label, int) else "float64" if isinstance(label, float) else "string"
