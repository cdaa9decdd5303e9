"""Describe a fitted estimator: its signature from the estimator, an example and the user's corrections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from registry.errors import Refused
from registry.rows import Array, Rows
from registry.signature import DType, Input, Output, Signature
from service.compiler.example import ExampleTable
from service.compiler.signature import acceptance, answers, encoders, estimator
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.encoders import EncodedColumn
from service.compiler.signature.estimator import InputForm
from service.compiler.signature.feature_names import list_names, name_features
from service.compiler.signature.inputs import describe_input, example_rows, with_categories
from service.compiler.signature.known_categories import require_known_categories

MAX_ENCODED_ROWS = 1000
"""Example rows whose values are looked up among the categories of the encoders."""
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
    encoders: list[dict[str, Any]]  # for the report: which of the example's values each encoder knows


def describe(model: Any, sample: ExampleTable | None, corrections: Corrections) -> Described:
    """Raises `Refused`, naming the estimator or the feature, when `model` cannot be served as requested."""
    estimator.require_servable(model)
    form = estimator.input_form(model)
    warnings: list[str] = []
    names = name_features(model, form, sample, corrections, warnings)
    encoded = list(encoders.encoded_columns(model, len(names)))
    encoders.require_column_types(encoded, names)
    inputs = _inputs(model, form, names, encoded, sample, corrections)
    task = corrections.pick_task(type(model).__name__, answers.tasks(model))
    probe = acceptance.Probe(model, form, task, encoders.column_forms(model, len(names)))
    rows = example_rows(inputs, sample) if sample is not None else None
    usable: Array | None = None
    shares: list[dict[str, Any]] = []
    if rows is not None:
        inputs, usable = acceptance.leave_out_missing(probe, inputs, rows, warnings)
        rows = rows.take(usable)
        first_rows = rows.take(slice(0, MAX_ENCODED_ROWS))
        arranged = probe.arrange(first_rows, inputs)
        shares = require_known_categories(model, arranged, names, warnings)
        probed = rows.take(slice(0, acceptance.MAX_PROBED_ROWS))
    else:
        probed = acceptance.made_up_rows(probe, inputs)
    answered = probe.answer(probed, inputs)
    if rows is not None and usable is not None:
        acceptance.require_answers(probe, rows, inputs, np.flatnonzero(usable))
        if infinite := acceptance.infinite_columns(rows, inputs):
            warnings.append(
                f"infinite values in {list_names(infinite)} of the example: requests and jobs refuse them"
            )
    if "vector" in answered and answered["vector"].shape[1] > WIDE_VECTOR:
        warnings.append(f"each answer holds {answered['vector'].shape[1]} numbers")
    first = probed.take(slice(0, 1))
    inputs = acceptance.measure_closed(probe, inputs, first)
    may_miss = encoders.features_with_missing(encoded, names)
    # An empty CSV cell would else be the empty text, and not a missing value that the imputer replaces.
    may_miss |= encoders.imputed_features(model, names) & {
        i.name for i in inputs if i.dtype == "string" or sample is None
    }
    may_miss -= corrections.with_nullable
    inputs = acceptance.measure_nullable(probe, inputs, first, may_miss)
    nullable = {i.name for i in inputs if i.nullable}
    encoders.require_one_missing_value(encoded, names, nullable)
    _check_empty_texts(nullable & encoders.features_with_empty_text(encoded, names), sample, warnings)
    outputs = corrections.check_outputs(answers.outputs(model, task, answered))
    truth = _true_values(sample, outputs, usable)
    return Described(Signature(task, inputs, outputs), rows, truth, usable, warnings, shares)


def _inputs(
    model: Any,
    form: InputForm,
    names: list[str],
    encoded: list[EncodedColumn],
    sample: ExampleTable | None,
    corrections: Corrections,
) -> tuple[Input, ...]:
    """The inputs as the example and the encoders show them, with the corrections."""
    dtypes: dict[str, DType] = {}
    if sample is None or not sample.has_column_types:
        dtypes |= dict.fromkeys(encoders.float32_features(encoded, names), "float32")
    if sample is None or sample.texts:
        dtypes |= dict.fromkeys(encoders.text_features(model, encoded, names), "string")
    if form == "texts":
        dtypes = dict.fromkeys(names, "string")

    def dtype(name: str) -> DType | None:
        return corrections.dtype(name) or dtypes.get(name)

    inputs = tuple(describe_input(name, sample, dtype(name)) for name in names)
    inputs = with_categories(inputs, encoders.categories_by_feature(encoded, names), sample)
    if sample is not None and sample.texts:
        empty = encoders.features_with_empty_text(encoded, names) - encoders.features_with_missing(
            encoded, names
        )
        inputs = tuple(replace(i, nullable=i.nullable and i.name not in empty) for i in inputs)
    return corrections.apply(inputs)


def _check_empty_texts(names: set[str], sample: ExampleTable | None, warnings: list[str]) -> None:
    """Warn of features whose empty text is not their missing value: CSV cannot distinguish them.

    Raises `Refused` where a CSV example has empty cells there.
    """
    if not names:
        return
    listed = list_names(sorted(names))
    if sample is not None and any(sample.column(n, "string").null_count for n in names if n in sample.texts):
        raise Refused(
            f"the model distinguishes the empty text of {listed} from a missing value, and CSV does not; "
            "publish the example as Parquet or JSON"
        )
    warnings.append(
        f"the model distinguishes the empty text of {listed} from a missing value, and CSV does not: empty "
        "cells are refused there; JSON, Arrow and Parquet can hold both"
    )


def _true_values(
    sample: ExampleTable | None, outputs: tuple[Output, ...], usable: Array | None
) -> pa.Array | None:
    """The target's values of the usable rows."""
    if sample is None or (truth := sample.true_values(outputs)) is None:
        return None
    return truth.filter(pa.array(usable))
