"""Describe a Keras model: the signature, from the model, an example and the user's corrections."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import NUMERIC_DTYPES, DType, Input, Scalar, Signature, Task
from service.compiler.example import ExampleTable
from service.compiler.keras import heads as keras_heads
from service.compiler.keras.heads import OutputHead
from service.compiler.keras.load import KerasModel
from service.compiler.keras.losses import OutputLoss
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.inputs import describe_input, example_rows
from service.compiler.signature.integer_limits import INTEGER_LIMITS, limit_integers, narrower
from service.compiler.tflite.metadata import MAX_FEATURES
from service.runtime.codec.columns import show


@dataclass(frozen=True)
class KerasDescription:
    """As `signature.describe.Described`, with the meaning of each output of the model."""

    signature: Signature
    heads: tuple[OutputHead, ...]
    rows: Rows | None
    truth: pa.Array | None
    usable: Array | None
    warnings: list[str]


def describe_model(
    model: KerasModel, sample: ExampleTable | None, corrections: Corrections
) -> KerasDescription:
    """Raises `Refused`, naming the input or output, when the model and the corrections do not fit."""
    warnings: list[str] = []
    names = _feature_names(model, sample, corrections, warnings)
    inputs = _inputs(model, names, sample, corrections)
    heads, task = describe_heads(model, corrections)
    rows = example_rows(inputs, sample) if sample is not None else None
    truth = sample.target if sample is not None else None
    classes: list[tuple[Scalar, ...]] = []
    if task == "classification":
        head_of = [head for head in heads for _ in range(head.labels)]
        pairs = zip(head_of, keras_heads.label_prefixes(heads), strict=True)
        classes = [_classes(head, prefix, corrections, truth, warnings) for head, prefix in pairs]
        warnings.extend(_label_warnings(heads))
    outputs = keras_heads.typed_outputs(task, heads, classes)
    signature = Signature(task, inputs, corrections.check_outputs(outputs))
    usable: Array | None = None
    if rows is not None:
        signature, usable = _usable_rows(model, heads, signature, rows, warnings)
        rows = rows.take(usable)
        truth = sample.true_values(outputs) if sample is not None else None
        truth = truth.filter(pa.array(usable)) if truth is not None else None
    return KerasDescription(signature, heads, rows, truth, usable, warnings)


def _feature_names(
    model: KerasModel, sample: ExampleTable | None, corrections: Corrections, warnings: list[str]
) -> list[str]:
    """Names of the features in order: the example's columns, the corrections' names, or default names."""
    width = sum(model.sizes)
    if width > MAX_FEATURES:
        raise Refused(f"the model has {width} numbers per row; the limit is {MAX_FEATURES}")
    default = _default_names(model)
    if sample is None:
        names = corrections.names if len(corrections.names) == width else default
    elif set(default) <= set(sample.columns):
        names = default
        if extra := [n for n in sample.columns if n not in default]:
            warnings.append(
                f"columns of the example that are not features, left out: {', '.join(map(repr, extra[:10]))}"
            )
    else:
        names = list(sample.columns)
    if len(names) != width:
        raise Refused(
            f"the model has {width} numbers per row, the example has {len(names)} columns "
            f"({', '.join(names[:10])}); if one of them holds the true value, name it as the target"
        )
    corrections.require_features(names)
    return names


def _default_names(model: KerasModel) -> list[str]:
    """x0, x1, ...; of several inputs, the inputs' own names."""
    if len(model.sizes) == 1:
        return [f"x{i}" for i in range(model.sizes[0])]
    inputs = zip(model.inputs, model.sizes, strict=True)
    names = [[i.name] if size == 1 else [f"{i.name}_{k}" for k in range(size)] for i, size in inputs]
    return [name for of_input in names for name in of_input]


def _inputs(
    model: KerasModel, names: list[str], sample: ExampleTable | None, corrections: Corrections
) -> tuple[Input, ...]:
    dtypes: list[DType] = []
    tensor_dtypes: list[str] = []
    for tensor, size in zip(model.inputs, model.sizes, strict=True):
        is_integer = tensor.dtype.startswith(("int", "uint"))
        own: DType = "int64" if is_integer else "float32"
        dtypes += [tensor.dtype if tensor.dtype in ("bool", "float64") else own] * size
        tensor_dtypes += [str(tensor.dtype)] * size
    inputs = []
    for name, model_dtype in zip(names, dtypes, strict=True):
        dtype = corrections.dtype(name) or model_dtype
        if dtype not in NUMERIC_DTYPES:
            raise Refused(
                f"the given dtype of {show(name)} is {dtype}; a Keras model on LiteRT supports only numbers"
            )
        inputs.append(describe_input(name, sample, dtype))
    described = zip(corrections.apply(tuple(inputs)), tensor_dtypes, strict=True)
    return tuple(_fit_to_tensor(feature, tensor_dtype) for feature, tensor_dtype in described)


def _fit_to_tensor(feature: Input, tensor_dtype: str) -> Input:
    """The feature with the bounds of the model's input and of float32, as which a .tflite receives it."""
    if tensor_dtype.startswith(("int", "uint", "bool")):
        if feature.dtype in ("float32", "float64"):
            raise Refused(
                f"the given dtype of {show(feature.name)} is {feature.dtype}; the model's input holds whole "
                f"numbers, {tensor_dtype}"
            )
        if feature.nullable:
            raise Refused(
                f"{show(feature.name)} has missing values, which the model's {tensor_dtype} input cannot "
                "hold; publish an example without them"
            )
    limits = narrower(INTEGER_LIMITS["float32"], INTEGER_LIMITS.get(tensor_dtype))
    return limit_integers(feature, limits)


def describe_heads(model: KerasModel, corrections: Corrections) -> tuple[tuple[OutputHead, ...], Task]:
    """The meaning of the outputs: by the corrections' task, else by the last activation and the loss."""
    tensors = list(model.model.outputs)
    sizes = []
    for tensor in tensors:
        if None in tensor.shape[1:]:
            raise Refused(f"the output {tensor.name!r} has the open shape {list(tensor.shape)}")
        sizes.append(int(np.prod(tensor.shape[1:], dtype=np.int64)))
    names = list(getattr(model.model, "output_names", None) or [f"output{i}" for i in range(len(tensors))])
    activations = [keras_heads.last_activation(t) for t in tensors]
    losses = [model.archive.losses.of(name, index) for index, name in enumerate(names)]
    flat = [size == (t.shape[-1] if len(t.shape) > 1 else 1) for t, size in zip(tensors, sizes, strict=True)]
    classes = [
        is_flat and (activation in ("softmax", "sigmoid") or loss.logits)
        for activation, is_flat, loss in zip(activations, flat, losses, strict=True)
    ]
    tasks: list[Task] = ["regression", "transform"]
    if all(flat):
        tasks.insert(0 if all(classes) else 2, "classification")
    task = corrections.pick_task("the model", tuple(tasks))
    if corrections.task is None and any(classes) and not all(classes):
        raise Refused(
            "some outputs of the model are classes, others numbers; give the task, or publish two models"
        )
    if task != "classification":
        return tuple(OutputHead(n, size, "numbers") for n, size in zip(names, sizes, strict=True)), task
    given = _given_independence(corrections, len(names))
    heads = []
    for name, size, activation, loss in zip(names, sizes, activations, losses, strict=True):
        heads.append(OutputHead(name, size, _head_kind(activation, loss, size, given)))
    return tuple(heads), task


def _head_kind(activation: str, loss: OutputLoss, size: int, given: bool | None) -> keras_heads.HeadKind:
    """Of an output with classes. `given`: the request's signature names several labels, or only one.

    Several sigmoids are independent labels, unless the model was trained with a categorical loss.
    """
    if size == 1:
        return "probability" if activation == "sigmoid" else "logit"
    if activation == "softmax":
        return "probabilities"
    independent = loss.binary or (activation == "sigmoid" and not loss.exclusive)
    if given is not None:
        independent = given
    if activation == "sigmoid":
        return "label probabilities" if independent else "probabilities"
    return "label logits" if independent else "logits"


def _given_independence(corrections: Corrections, heads: int) -> bool | None:
    """True: the signature names more labels than the model has outputs. False: it names one label."""
    prefixes = [o.name.rpartition(".")[0] for o in corrections.outputs]
    if "" in prefixes:
        return False
    return True if any(p[1:].isdecimal() and int(p[1:]) >= heads for p in prefixes) else None


def _label_warnings(heads: tuple[OutputHead, ...]) -> list[str]:
    return [
        f"the output {head.name!r} has {head.width} sigmoids: each is a label of its own, 1 above 0.5; if "
        "they are the classes of one label, give a signature with the output label and its classes"
        for head in heads
        if head.labels > 1
    ]


def _classes(
    head: OutputHead, prefix: str, corrections: Corrections, truth: pa.Array | None, warnings: list[str]
) -> tuple[Scalar, ...]:
    """The corrections' classes, else the target's values in sorted order, else 0 to k - 1."""
    count = 2 if head.labels > 1 else max(head.width, 2)
    corrected = {o.name: o.classes for o in corrections.outputs}
    classes = corrected.get(f"{prefix}label") or corrected.get(f"{prefix}probabilities")
    if classes is not None:
        if len(classes) != count or len({type(c) for c in classes}) > 1 or len(set(classes)) != count:
            raise Refused(f"{len(classes)} classes are given for the {count} of the output {head.name!r}")
        return classes
    numbered = tuple(range(count))
    values = [] if truth is None or prefix else sorted(set(truth.drop_null().to_pylist()))
    if not values or (all(isinstance(v, int | float) for v in values) and set(values) <= set(numbered)):
        if [type(v) for v in values] == [bool, bool]:
            return (False, True)
        return numbered
    if len(values) != count:
        warnings.append(
            f"the target has {len(values)} values, the model {count} classes: the classes are numbered "
            f"0 to {count - 1}"
        )
        return numbered
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    warnings.append("the classes are the target's values in sorted order; the signature may give others")
    return tuple(values)


def _usable_rows(
    model: KerasModel,
    heads: tuple[OutputHead, ...],
    signature: Signature,
    rows: Rows,
    warnings: list[str],
) -> tuple[Signature, Array]:
    """Return the signature and the example rows to use, bool [n].

    If the model answers NaN to missing values, its features are not nullable and those rows are left out.
    """
    assert rows.matrix is not None
    all_rows = np.ones(len(rows), dtype=bool)
    incomplete = np.isnan(rows.matrix).any(axis=1)
    if not incomplete.any():
        return signature, all_rows
    answered = model.run(rows.take(incomplete), heads, signature)
    if all(np.isfinite(a).all() for a in answered.values() if a.dtype.kind == "f"):
        return signature, all_rows
    if incomplete.all():
        raise Refused("every row of the example has a missing value, and the model answers NaN to those")
    warnings.append("the model answers NaN to missing values: rows with missing values were left out")
    inputs = tuple(msgspec.structs.replace(i, nullable=False) for i in signature.inputs)
    return Signature(signature.task, inputs, signature.outputs), np.asarray(~incomplete)
