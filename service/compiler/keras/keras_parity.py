"""Rows on which a Keras model and its .tflite are compared, and the differences that count as rounding.

Both compute in float32, but in another order, so their answers may differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from registry.rows import Array, Outputs, Rows
from registry.signature import Input, Scalar, Signature
from service.compiler.keras.heads import OutputHead
from service.compiler.keras.padding import Padding, padded_rows
from service.compiler.measure import comparison_rows, parity
from service.compiler.measure.parity import AnswerRows, ReferenceBlock
from service.compiler.signature.inputs import pack_rows

TOLERANCE = 1e-4
"""As `parity.TOLERANCE`. Measured differences: 2e-5 for a ResNet50, 5e-6 for a small CNN."""
VECTOR_TOLERANCE = 1e-5
"""Of a number in a vector, relative to the largest number of the same output of the model."""
KINDS = ("example", "random", "missing", "extreme")


def rows_by_kind(
    signature: Signature, example: Rows | None, padding: Padding | None = None
) -> dict[str, Rows]:
    """Rows of the example, random rows in its range, rows with missing values, and edge rows.

    For a model with masks or recurrent layers, `padding`, also padded rows.
    """
    rows = comparison_rows.rows_by_kind(None, signature, example)
    kinds = {kind: rows[kind] for kind in KINDS if kind in rows} | {"edge": _edge_rows(signature)}
    if padding is not None and padding.values:
        kinds["padded"] = padded_rows(rows["random" if example is None else "example"], padding)
    return kinds


def _edge_rows(signature: Signature) -> Rows:
    """Four rows: all features at 0, at 1, at their minimum, at their maximum."""
    rows = [
        [0.0] * len(signature.inputs),
        [1.0] * len(signature.inputs),
        [_limit(i, i.minimum, -1.0, max) for i in signature.inputs],
        [_limit(i, i.maximum, 1.0, min) for i in signature.inputs],
    ]
    return pack_rows(signature.inputs, list(np.array(rows, dtype=np.float64).T))


def _limit(
    feature: Input, limit: float | None, default: float, inner: Callable[[float, float], float]
) -> float:
    """`limit`, or the default without one. Enforced bounds are those of a type, and not of the example."""
    if limit is not None and feature.enforced:
        return inner(limit, default)
    value = default if limit is None else limit
    return abs(value) if feature.dtype == "bool" else value


def tolerate_rounding(
    answer: AnswerRows, blocks: list[ReferenceBlock], signature: Signature, heads: tuple[OutputHead, ...]
) -> AnswerRows:
    """`answer` for the rows of `blocks`, with the reference's value where the two differ by rounding alone.

    - A label, if the reference gives its class the largest probability within the tolerance.
    - A number of a vector, if the difference is outside the tolerance, but small relative to all numbers of
      the same output of the model (`heads`): unlike targets, the features of one output share one scale.
    - A number of the rows at the bounds of integers, if the difference is within the tolerance of the usual
      size of these rows' answers: sums of such integers are rounded by more than the example's.
    """
    answers = {id(b.rows): b.answers for b in blocks}
    at_bounds = {id(b.rows) for b in blocks if b.kind == "extreme"}
    scales = parity.output_scales(blocks, signature)

    def tolerant(rows: Rows) -> Outputs:
        expected, got = answers[id(rows)], dict(answer(rows))
        for output in signature.outputs:
            name = output.name
            if name.endswith("probabilities") and output.classes is not None:
                label = name.removesuffix("probabilities") + "label"
                if got[label].shape == expected[label].shape:
                    tied = _is_tied(expected[name], output.classes, got[label])
                    got[label] = np.where(tied, expected[label], got[label])
            elif name == "vector" and got[name].shape == expected[name].shape:
                rounded = _is_rounding(expected[name], got[name], scales[name], heads)
                got[name] = np.where(rounded, expected[name], got[name])
            elif id(rows) in at_bounds and not parity.is_label(output):
                usual = np.mean(np.abs(expected[name]), axis=0)
                near = np.abs(got[name] - expected[name]) <= TOLERANCE * usual
                got[name] = np.where(near, expected[name], got[name])
        return got

    return tolerant


def _is_tied(probabilities: Array, classes: tuple[Scalar, ...], labels: Array) -> Array:
    """bool [rows]: the probability of the label's class is the largest one, within the relative tolerance."""
    index_of = {c: i for i, c in enumerate(classes)}
    indices = np.array([index_of[label] for label in labels.tolist()], dtype=np.int64)
    of_label = np.take_along_axis(probabilities, indices[:, None], axis=1)[:, 0]
    largest = probabilities.max(axis=1)
    return np.asarray(largest - of_label <= TOLERANCE * largest)


def _is_rounding(expected: Array, got: Array, scale: Array, heads: tuple[OutputHead, ...]) -> Array:
    """bool [rows, numbers]: outside `TOLERANCE`, but within `VECTOR_TOLERANCE` of the output's numbers."""
    difference, magnitude = np.abs(got - expected), np.abs(expected)
    parts = np.split(magnitude, np.cumsum([h.width for h in heads])[:-1], axis=1)
    largest = [np.broadcast_to(p.max(axis=1, keepdims=True, initial=0.0), p.shape) for p in parts]
    near = difference <= VECTOR_TOLERANCE * np.concatenate(largest, axis=1)
    return np.asarray(near & (difference > TOLERANCE * np.maximum(magnitude, scale)))
