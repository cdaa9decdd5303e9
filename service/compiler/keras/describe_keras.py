"""From a loaded Keras model, an example and what the user corrects, to a version's signature."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import NUMERIC, DType, Input, Scalar, Signature, Task
from service.compiler.example import Example
from service.compiler.keras import heads as keras_heads
from service.compiler.keras.heads import Head
from service.compiler.keras.load import KerasModel
from service.compiler.signature import describe
from service.compiler.signature.corrections import Corrections

MAX_FEATURES = 20_000
"""Each feature has a name and a column: an image of 128 x 128 is 16,384 of them."""


@dataclass(frozen=True)
class Described:
    """As `describe.Described`, and what each output of the model is."""

    signature: Signature
    heads: tuple[Head, ...]
    rows: Rows | None
    truth: pa.Array | None
    warnings: list[str]


def describe_model(model: KerasModel, sample: Example | None, corrections: Corrections) -> Described:
    """Raises `Refused`, naming the input or output, when the model cannot be served as asked."""
    warnings: list[str] = []
    names = _names(model, sample, corrections, warnings)
    inputs = _inputs(model, names, sample, corrections)
    heads, task = describe_heads(model, corrections)
    rows = describe.table(inputs, sample) if sample is not None else None
    truth = sample.target if sample is not None else None
    if task == "classification":
        count = len(heads)
        given = [
            _classes(h, f"y{i}." if count > 1 else "", corrections, truth, warnings)
            for i, h in enumerate(heads)
        ]
    else:
        given = []
    signature = Signature(task, inputs, corrections.check_outputs(keras_heads.outputs(task, heads, given)))
    if rows is not None:
        signature, kept = _kept(model, heads, signature, rows, warnings)
        rows = rows.take(kept)
        truth = truth.filter(pa.array(kept)) if truth is not None else None
    return Described(signature, heads, rows, truth, warnings)


def _names(
    model: KerasModel, sample: Example | None, corrections: Corrections, warnings: list[str]
) -> list[str]:
    """The features in order: the example's columns, the given names, or the inputs' own."""
    width = sum(model.sizes)
    if width > MAX_FEATURES:
        raise Refused(f"the model takes {width} numbers a row; more than {MAX_FEATURES} are not served")
    own = [f"x{i}" for i in range(width)]
    if len(model.sizes) > 1:
        each = zip(model.inputs, model.sizes, strict=True)
        own = [
            name
            for i, size in each
            for name in ([i.name] if size == 1 else [f"{i.name}_{k}" for k in range(size)])
        ]
    if sample is None:
        names = corrections.names if len(corrections.names) == width else own
    elif set(own) <= set(sample.columns):
        names = own
        if extra := [n for n in sample.columns if n not in own]:
            warnings.append(f"no features, and left out of the example: {', '.join(map(repr, extra[:10]))}")
    else:
        names = list(sample.columns)
    if len(names) != width:
        raise Refused(
            f"the model takes {width} numbers a row, the example has {len(names)} columns "
            f"({', '.join(names[:10])}); if one of them holds the true value, name it as the target"
        )
    corrections.require_known(names)
    return names


def _inputs(
    model: KerasModel, names: list[str], sample: Example | None, corrections: Corrections
) -> tuple[Input, ...]:
    kinds: list[DType] = []
    for given, size in zip(model.inputs, model.sizes, strict=True):
        whole = given.dtype.startswith(("int", "uint"))
        kinds += ["int64" if whole else "bool" if given.dtype == "bool" else "float32"] * size
    found = []
    for name, kind in zip(names, kinds, strict=True):
        dtype = corrections.dtype(name) or kind
        if dtype not in NUMERIC:
            raise Refused(
                f"the given dtype of {name!r} is {dtype}; a Keras model served on LiteRT takes numbers"
            )
        found.append(describe.describe_input(name, sample, dtype))
    return corrections.apply(tuple(found))


def describe_heads(model: KerasModel, corrections: Corrections) -> tuple[tuple[Head, ...], Task]:
    """What the outputs are: by the given task, else by the last activation and the loss."""
    tensors = list(model.model.outputs)
    sizes = []
    for tensor in tensors:
        if None in tensor.shape[1:]:
            raise Refused(f"the output {tensor.name!r} has the open shape {list(tensor.shape)}")
        sizes.append(int(np.prod(tensor.shape[1:], dtype=np.int64)))
    last = [keras_heads.activation(t) for t in tensors]
    flat = [size == (t.shape[-1] if len(t.shape) > 1 else 1) for t, size in zip(tensors, sizes, strict=True)]
    classes = [
        f and (a in ("softmax", "sigmoid") or model.archive.logits) for a, f in zip(last, flat, strict=True)
    ]
    tasks: list[Task] = ["regression", "transform"]
    if all(flat):
        tasks.insert(0 if all(classes) else 2, "classification")
    task = corrections.pick_task("the model", tuple(tasks))
    if corrections.task is None and any(classes) and not all(classes):
        raise Refused(
            "some of the model's outputs are classes and others numbers; give the task, or publish two"
        )
    names = list(getattr(model.model, "output_names", None) or [f"output{i}" for i in range(len(tensors))])
    return tuple(Head(n, s, _kind(task, a, s)) for n, s, a in zip(names, sizes, last, strict=True)), task


def _kind(task: Task, last: str, size: int) -> keras_heads.Kind:
    if task != "classification":
        return "numbers"
    if size == 1:
        return "chance" if last == "sigmoid" else "logit"
    return "chances" if last in ("softmax", "sigmoid") else "logits"


def _classes(
    head: Head, prefix: str, corrections: Corrections, truth: pa.Array | None, warnings: list[str]
) -> tuple[Scalar, ...]:
    """The given ones, or the target's own values in sorted order, or 0 to k - 1."""
    count = max(head.width, 2)
    given = {o.name: o.classes for o in corrections.outputs}
    classes = given.get(f"{prefix}label") or given.get(f"{prefix}probabilities")
    if classes is not None:
        if len(classes) != count or len({type(c) for c in classes}) > 1 or len(set(classes)) != count:
            raise Refused(f"{len(classes)} classes are given for the {count} of the output {head.name!r}")
        return classes
    numbered = tuple(range(count))
    seen = [] if truth is None or prefix else sorted(set(truth.drop_null().to_pylist()))
    if not seen or (all(isinstance(v, int | float) for v in seen) and set(seen) <= set(numbered)):
        if [type(v) for v in seen] == [bool, bool]:
            return (False, True)
        return numbered
    if len(seen) != count:
        warnings.append(
            f"the target has {len(seen)} values, the model {count} classes: taken to be 0 to {count - 1}"
        )
        return numbered
    seen = [int(v) if isinstance(v, float) and v.is_integer() else v for v in seen]
    warnings.append("the classes are the target's values in sorted order; the signature may give others")
    return tuple(seen)


def _kept(
    model: KerasModel, heads: tuple[Head, ...], signature: Signature, rows: Rows, warnings: list[str]
) -> tuple[Signature, Array]:
    """Which example rows to use: a column is nullable only if the model gives numbers for its gaps."""
    assert rows.matrix is not None
    missing = np.isnan(rows.matrix)
    everything = np.ones(len(rows), dtype=bool)
    holed = missing.any(axis=1)
    if not holed.any():
        return signature, everything
    answered = model.run(rows.take(holed), heads, signature)
    if all(np.isfinite(a).all() for a in answered.values() if a.dtype.kind == "f"):
        return signature, everything
    if holed.all():
        raise Refused("every row of the example misses a value, for which the model gives no number")
    warnings.append("the model gives no numbers for missing values: rows with gaps were left out")
    inputs = tuple(msgspec.structs.replace(i, nullable=False) for i in signature.inputs)
    return Signature(signature.task, inputs, signature.outputs), np.asarray(~holed)
