"""Describe a fitted estimator: its signature from the estimator, an example and the user's corrections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from registry.rows import Array, Rows
from registry.signature import DType, Signature
from service.compiler.example import ExampleTable
from service.compiler.signature import acceptance, answers, estimator
from service.compiler.signature.categories import encoder_categories
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.feature_names import name_features
from service.compiler.signature.inputs import describe_input, example_rows, with_categories

WIDE_VECTOR = 10_000
"""A transformed vector longer than this adds a warning."""


@dataclass(frozen=True)
class Described:
    """A signature, the example's rows as the model takes them, and warnings for the user."""

    signature: Signature
    rows: Rows | None  # the example's, in the signature's order, without those the model does not accept
    truth: pa.Array | None  # the true values of those rows, where the example has them
    usable: Array | None  # which rows of the example `rows` are, bool [n]
    warnings: list[str]


def describe(model: Any, sample: ExampleTable | None, corrections: Corrections) -> Described:
    """Raises `Refused`, naming the estimator or the feature, when `model` cannot be served as requested."""
    estimator.require_servable(model)
    form = estimator.input_form(model)
    warnings: list[str] = []
    names = name_features(model, form, sample, corrections, warnings)
    default: DType | None = "string" if form == "texts" else None
    inputs = tuple(describe_input(name, sample, corrections.dtype(name) or default) for name in names)
    inputs = corrections.apply(with_categories(inputs, encoder_categories(model, names), sample))
    task = corrections.pick_task(type(model).__name__, answers.tasks(model))
    probe = acceptance.Probe(model, form, task)
    rows = example_rows(inputs, sample) if sample is not None else None
    truth = sample.target if sample is not None else None
    usable: Array | None = None
    if rows is not None:
        inputs, usable = acceptance.leave_out_missing(probe, inputs, rows, warnings)
        rows = rows.take(usable)
        truth = truth.filter(pa.array(usable)) if truth is not None else None
        probed = rows.take(slice(0, acceptance.MAX_PROBED_ROWS))
    else:
        probed = acceptance.made_up_rows(probe, inputs)
    answered = probe.answer(probed, inputs)
    if "vector" in answered and answered["vector"].shape[1] > WIDE_VECTOR:
        warnings.append(f"each answer holds {answered['vector'].shape[1]} numbers")
    inputs = acceptance.measure_closed(probe, inputs, probed.take(slice(0, 1)))
    outputs = corrections.check_outputs(answers.outputs(model, task, answered))
    return Described(Signature(task, inputs, outputs), rows, truth, usable, warnings)
