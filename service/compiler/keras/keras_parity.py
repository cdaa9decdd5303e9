"""The rows on which a Keras model and its .tflite are compared, and how far they may part.

Both compute in float32, in another order: equal to the last digit is nothing that they promise.
"""

from __future__ import annotations

import numpy as np

from registry.rows import Array, Outputs, Rows
from registry.signature import Input, Signature
from service.compiler.measure import comparison_rows
from service.compiler.measure.parity import Answer, Block
from service.compiler.signature import describe

TOLERANCE = 1e-4
"""As `parity.TOLERANCE`. A ResNet50 stays within 2e-5, a small CNN within 5e-6."""
ROUNDING = 1e-5
KINDS = ("example", "random", "missing")


def kinds(signature: Signature, example: Rows | None) -> dict[str, Rows]:
    """The example, made-up rows in its range, rows with gaps where the model takes them, and corners."""
    made = comparison_rows.kinds(None, signature, example)
    chosen = {kind: made[kind] for kind in KINDS if kind in made}
    return chosen | {"edge": _edges(signature)}


def _edges(signature: Signature) -> Rows:
    """All features at 0, at 1, at their lowest, at their highest."""
    rows = [
        [0.0] * len(signature.inputs),
        [1.0] * len(signature.inputs),
        [_or(i.minimum, -1.0, i) for i in signature.inputs],
        [_or(i.maximum, 1.0, i) for i in signature.inputs],
    ]
    return describe.pack(signature.inputs, list(np.array(rows, dtype=np.float64).T))


def _or(seen: float | None, otherwise: float, given: Input) -> float:
    value = otherwise if seen is None else seen
    return abs(value) if given.dtype == "bool" else value


def forgiving(answer: Answer, blocks: list[Block], signature: Signature) -> Answer:
    """`answer`, with the reference's own number or label where the two differ by rounding alone.

    That is a label between classes that are equal within the tolerance, and a number of a vector that is
    off by less than the vector's own rounding: of features, unlike targets, only the whole has a scale.
    """
    known = {id(b.rows): b.answers for b in blocks}

    def forgiven(rows: Rows) -> Outputs:
        expected, got = known[id(rows)], dict(answer(rows))
        for output in signature.outputs:
            name = output.name
            if name.endswith("probabilities"):
                label = name.removesuffix("probabilities") + "label"
                got[label] = np.where(_tied(expected[name]), expected[label], got[label])
            elif name == "vector" and got[name].shape == expected[name].shape:
                whole = np.abs(expected[name]).max(axis=1, keepdims=True, initial=0.0)
                near = np.abs(got[name] - expected[name]) <= ROUNDING * whole
                got[name] = np.where(near, expected[name], got[name])
        return got

    return forgiven


def _tied(chances: Array) -> Array:
    if chances.shape[1] < 2:
        return np.ones(len(chances), dtype=bool)
    best = np.sort(chances, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] <= TOLERANCE)
