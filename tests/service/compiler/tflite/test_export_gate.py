"""The gate of exports: answers that are off by a known amount, and what it says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.build_messages import ExportBounds
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import parity
from service.compiler.tflite import export_gate
from service.compiler.tflite.export_gate import ExportLimits, Fidelity

INPUTS = (Input("a", "float64"), Input("b", "float64"))
CLASSIFIER = Signature(
    "classification",
    INPUTS,
    (
        Output("label", "string", (-1,), ("no", "yes")),
        Output("probabilities", "float64", (-1, 2), ("no", "yes")),
    ),
)
REGRESSOR = Signature("regression", INPUTS, (Output("value", "float64", (-1,)),))
ROWS = Rows(np.random.default_rng(0).normal(size=(100, 2)))
FAR = Rows(ROWS.matrix * 1e6)  # type: ignore[operator]
ANY = ExportBounds()


def classify(rows: Rows) -> Outputs:
    chance = 1 / (1 + np.exp(-rows.matrix[:, 0]))  # type: ignore[index]
    label = np.where(chance > 0.5, "yes", "no").astype(object)
    return {"label": label, "probabilities": np.column_stack([1 - chance, chance])}


def value(rows: Rows) -> Outputs:
    return {"value": rows.matrix @ [1.0, 2.0]}  # type: ignore[operator]


def measured(answer: Any, signature: Signature = CLASSIFIER, lost: Any = "digits") -> Fidelity:
    source = classify if signature is CLASSIFIER else value
    blocks = parity.reference(source, {"random": ROWS, "wide": FAR})
    held = export_gate.judged_kinds([b.kind for b in blocks], lost)
    return export_gate.measure(blocks, answer, signature, held)


def faults(found: Fidelity, asked: ExportBounds = ANY, lost: Any = "digits") -> list[str]:
    signature = REGRESSOR if found.label_agreement is None else CLASSIFIER
    return export_gate.find_faults(found, export_gate.limits_for(asked, lost, signature))


def test_the_same_answers_have_no_faults() -> None:
    found = measured(classify)
    assert (found.label_agreement, found.label_mismatches, found.largest_difference) == (1.0, 0, 0.0)
    assert faults(found, lost="nothing") == []


def test_one_other_label_in_a_hundred_is_a_share_of_one_percent() -> None:
    def other(rows: Rows) -> Outputs:
        answers = classify(rows)
        answers["label"][0] = "no" if answers["label"][0] == "yes" else "yes"
        return answers

    found = measured(other)
    assert found.label_agreement == pytest.approx(0.99)
    (said,) = faults(found)
    assert "1 labels differ from the model's: 0.01 of them, the bound is 0.001" in said
    assert faults(found, ExportBounds(max_disagreement=0.02)) == []
    assert faults(found, ExportBounds(max_disagreement=0.005))


def test_a_single_label_is_too_many_for_a_tree_wherever_it_is() -> None:
    def far_off(rows: Rows) -> Outputs:
        answers = classify(rows)
        if rows is FAR or np.abs(rows.matrix).max() > 1e3:  # type: ignore[arg-type]
            answers["label"][0] = "no" if answers["label"][0] == "yes" else "yes"
        return answers

    assert faults(measured(far_off)) == []  # sums in float32 promise nothing so far out
    assert "the bound is 0" in faults(measured(far_off, lost="nothing"), lost="nothing")[0]


def test_probabilities_may_not_drift_behind_labels_that_agree() -> None:
    def drifted(rows: Rows) -> Outputs:
        answers = classify(rows)
        return {**answers, "probabilities": answers["probabilities"] + 0.05}

    assert "a number differs from the model's by 0.05" in faults(measured(drifted))[0]
    assert faults(measured(drifted, lost="int8"), lost="int8") == []


def test_numbers_are_held_to_the_relative_error_that_is_asked() -> None:
    def drifted(rows: Rows) -> Outputs:
        return {"value": value(rows)["value"] * 1.05}

    found = measured(drifted, REGRESSOR)
    assert found.label_agreement is None
    assert found.largest_difference == pytest.approx(0.05, rel=0.01)
    assert faults(found)
    assert faults(found, ExportBounds(max_disagreement=0.06)) == []


def test_an_export_that_answers_nan_is_never_within_bounds() -> None:
    def broken(rows: Rows) -> Outputs:
        return {"value": value(rows)["value"] * np.nan}

    found = measured(broken, REGRESSOR)
    assert "NaN" in faults(found, ExportBounds(max_disagreement=1e9))[0]


def test_an_export_that_refuses_the_rows_is_never_within_bounds() -> None:
    def refuses(rows: Rows) -> Outputs:
        raise ValueError("not these rows")

    assert "not these rows" in faults(measured(refuses), ExportBounds(max_disagreement=1.0))[0]


def test_outside_of_the_example_quantized_numbers_are_measured_and_not_judged() -> None:
    def saturated(rows: Rows) -> Outputs:
        return {"value": np.clip(value(rows)["value"], -10, 10)}

    found = measured(saturated, REGRESSOR, "int8")
    assert (found.kinds["random"].judged, found.kinds["wide"].judged) == (True, False)
    assert found.kinds["wide"].largest_difference > 0.9
    assert faults(found, lost="int8") == []


def test_what_may_be_lost_follows_from_what_was_done() -> None:
    assert export_gate.classify_loss("none", True, "") == "nothing"
    assert export_gate.classify_loss("int8", True, "") == "nothing"  # there are no weights in a tree
    assert export_gate.classify_loss("none", False, "") == "digits"
    assert export_gate.classify_loss("int8", False, "") == "int8"
    assert export_gate.classify_loss("none", True, "kept 3 of 10 trees") == "aggregated"


def test_quantized_exports_are_judged_on_the_example_where_there_is_one() -> None:
    assert export_gate.judged_kinds(["example", "random", "wide"], "int8") == {"example"}
    assert export_gate.judged_kinds(["random", "wide"], "dynamic") == {"random"}
    assert export_gate.judged_kinds(["example", "random", "wide"], "digits") == {"example", "random"}


def test_what_was_asked_for_replaces_the_default_and_the_rest_stays() -> None:
    assert export_gate.limits_for(
        ExportBounds(max_accuracy_drop=0.5, max_bytes=9), "int8", CLASSIFIER
    ) == ExportLimits(labels=0.05, numbers=None, accuracy_drop=0.5, bytes=9)
    wide = ExportBounds(max_disagreement=0.3)
    of_labels, of_numbers = (export_gate.limits_for(wide, "nothing", s) for s in (CLASSIFIER, REGRESSOR))
    assert (of_labels.labels, of_labels.numbers) == (0.3, None)
    assert (of_numbers.labels, of_numbers.numbers) == (None, 0.3)


@pytest.mark.parametrize(
    ("drop", "rows", "asked", "fits"),
    [
        (0.0, 100, ANY, True),
        (0.01, 100, ANY, True),  # a single row
        (0.02, 100, ANY, False),
        (0.01, 100, ExportBounds(max_accuracy_drop=0.005), False),
        (0.02, 100, ExportBounds(max_accuracy_drop=0.02), True),
        (-0.5, 100, ExportBounds(max_accuracy_drop=0.0), True),
    ],
)
def test_accuracy_may_drop_as_far_as_asked(drop: float, rows: int, asked: ExportBounds, fits: bool) -> None:
    found = {"measure": "accuracy", "before": 0.9, "after": 0.9 - drop, "drop": drop, "rows": rows}
    limits = export_gate.limits_for(asked, "digits", CLASSIFIER)
    assert (export_gate.find_accuracy_faults(found, limits, asked) == []) is fits


def test_rows_are_measured_as_a_device_sends_them() -> None:
    inputs = (Input("plain", "float64"), Input("coded", "float64", categories=(0.1, 0.2)))
    signature = Signature("regression", inputs, REGRESSOR.outputs)
    sent = export_gate.to_device_rows(Rows(np.array([[0.1, 0.1]])), signature)
    assert sent.matrix is not None
    assert sent.matrix.tolist() == [[float(np.float32(0.1)), 0.1]]


def test_a_feature_whose_values_float32_cannot_tell_apart_is_named() -> None:
    times = 1_700_000_000 + np.arange(10.0)
    assert export_gate.indistinct_features(Rows(np.column_stack([times, np.arange(10.0)])), REGRESSOR) == [
        "a"
    ]
