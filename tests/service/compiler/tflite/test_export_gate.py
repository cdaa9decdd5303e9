"""The gate of exports, with answers that differ by a known amount."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from registry.build_messages import ExportBounds
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import parity
from service.compiler.tflite import export_gate
from service.compiler.tflite.export_gate import ExportLimits, Fidelity, RowKindFigures

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
MATRIX = np.random.default_rng(0).normal(size=(100, 2))
ROWS, WIDE = Rows(MATRIX), Rows(MATRIX * 1e6)
DEFAULT = ExportBounds()


def classify(rows: Rows) -> Outputs:
    probability = 1 / (1 + np.exp(-rows.matrix[:, 0]))  # type: ignore[index]
    label = np.where(probability > 0.5, "yes", "no").astype(object)
    return {"label": label, "probabilities": np.column_stack([1 - probability, probability])}


def value(rows: Rows) -> Outputs:
    return {"value": rows.matrix @ [1.0, 2.0]}  # type: ignore[operator]


def fidelity_of(answer: Any, signature: Signature = CLASSIFIER, loss: Any = "float32") -> Fidelity:
    source = classify if signature is CLASSIFIER else value
    blocks = parity.reference(source, {"random": ROWS, "wide": WIDE})
    judged = export_gate.judged_kinds([b.kind for b in blocks], loss)
    return export_gate.measure(blocks, answer, signature, judged)


def faults(fidelity: Fidelity, requested: ExportBounds = DEFAULT, loss: Any = "float32") -> list[str]:
    signature = REGRESSOR if fidelity.label_agreement is None else CLASSIFIER
    return export_gate.find_faults(fidelity, export_gate.limits_for(requested, loss, signature))


def test_equal_answers_are_without_faults() -> None:
    fidelity = fidelity_of(classify)
    assert (fidelity.label_agreement, fidelity.label_mismatches, fidelity.largest_difference) == (1.0, 0, 0.0)
    assert faults(fidelity, loss="exact") == []


def test_one_wrong_label_in_a_hundred_is_one_percent() -> None:
    def one_wrong_label(rows: Rows) -> Outputs:
        answers = classify(rows)
        answers["label"][0] = "no" if answers["label"][0] == "yes" else "yes"
        return answers

    fidelity = fidelity_of(one_wrong_label)
    assert fidelity.label_agreement == pytest.approx(0.99)
    (message,) = faults(fidelity)
    assert "1 labels differ from the model's: 0.01 of them, the bound is 0.001" in message
    assert faults(fidelity, ExportBounds(max_disagreement=0.02)) == []
    assert faults(fidelity, ExportBounds(max_disagreement=0.005))


def test_a_tree_ensemble_must_not_have_a_wrong_label_on_any_row() -> None:
    def wrong_on_wide_rows(rows: Rows) -> Outputs:
        answers = classify(rows)
        if rows is WIDE or np.abs(rows.matrix).max() > 1e3:  # type: ignore[arg-type]
            answers["label"][0] = "no" if answers["label"][0] == "yes" else "yes"
        return answers

    assert faults(fidelity_of(wrong_on_wide_rows)) == []  # sums in float32 are not judged on wide rows
    assert "the bound is 0" in faults(fidelity_of(wrong_on_wide_rows, loss="exact"), loss="exact")[0]


def test_probabilities_are_judged_where_all_labels_agree() -> None:
    def drifted(rows: Rows) -> Outputs:
        answers = classify(rows)
        return {**answers, "probabilities": answers["probabilities"] + 0.05}

    assert "a number differs from the model's by 0.05" in faults(fidelity_of(drifted))[0]
    assert faults(fidelity_of(drifted, loss="int8"), loss="int8") == []


def test_numbers_are_judged_by_the_requested_relative_error() -> None:
    def drifted(rows: Rows) -> Outputs:
        return {"value": value(rows)["value"] * 1.05}

    fidelity = fidelity_of(drifted, REGRESSOR)
    assert fidelity.label_agreement is None
    assert fidelity.largest_difference == pytest.approx(0.05, rel=0.01)
    assert faults(fidelity)
    assert faults(fidelity, ExportBounds(max_disagreement=0.06)) == []


def test_an_export_that_answers_nan_is_rejected() -> None:
    def broken(rows: Rows) -> Outputs:
        return {"value": value(rows)["value"] * np.nan}

    fidelity = fidelity_of(broken, REGRESSOR)
    assert "NaN" in faults(fidelity, ExportBounds(max_disagreement=1e9))[0]


def test_an_export_that_refuses_rows_is_rejected() -> None:
    def refuses(rows: Rows) -> Outputs:
        raise ValueError("not these rows")

    assert "not these rows" in faults(fidelity_of(refuses), ExportBounds(max_disagreement=1.0))[0]


def test_wide_rows_of_a_quantized_export_are_measured_but_not_judged() -> None:
    def saturated(rows: Rows) -> Outputs:
        return {"value": np.clip(value(rows)["value"], -10, 10)}

    fidelity = fidelity_of(saturated, REGRESSOR, "int8")
    assert (fidelity.kinds["random"].judged, fidelity.kinds["wide"].judged) == (True, False)
    assert fidelity.kinds["wide"].largest_difference > 0.9
    assert faults(fidelity, loss="int8") == []


def test_the_loss_depends_on_the_mode_the_model_and_the_reduction() -> None:
    assert export_gate.classify_loss("none", True, "") == "exact"
    assert export_gate.classify_loss("int8", True, "") == "exact"  # trees have comparisons and not weights
    assert export_gate.classify_loss("none", False, "") == "float32"
    assert export_gate.classify_loss("int8", False, "") == "int8"
    assert export_gate.classify_loss("none", True, "kept 3 of 10 trees") == "aggregated"


def test_quantized_exports_are_judged_on_the_example_if_there_is_one() -> None:
    assert export_gate.judged_kinds(["example", "random", "wide"], "int8") == {"example"}
    assert export_gate.judged_kinds(["random", "wide"], "dynamic") == {"random"}
    assert export_gate.judged_kinds(["example", "random", "wide"], "float32") == {"example", "random"}


def test_requested_bounds_replace_the_defaults() -> None:
    assert export_gate.limits_for(
        ExportBounds(max_accuracy_drop=0.5, max_bytes=9), "int8", CLASSIFIER
    ) == ExportLimits(labels=0.05, numbers=None, accuracy_drop=0.5, bytes=9)
    requested = ExportBounds(max_disagreement=0.3)
    of_labels, of_numbers = (export_gate.limits_for(requested, "exact", s) for s in (CLASSIFIER, REGRESSOR))
    assert (of_labels.labels, of_labels.numbers) == (0.3, None)
    assert (of_numbers.labels, of_numbers.numbers) == (None, 0.3)


@pytest.mark.parametrize(
    ("drop", "rows", "requested", "within"),
    [
        (0.0, 100, DEFAULT, True),
        (0.01, 100, DEFAULT, True),  # a single row
        (0.02, 100, DEFAULT, False),
        (0.01, 100, ExportBounds(max_accuracy_drop=0.005), False),
        (0.02, 100, ExportBounds(max_accuracy_drop=0.02), True),
        (-0.5, 100, ExportBounds(max_accuracy_drop=0.0), True),
    ],
)
def test_accuracy_may_drop_to_the_bound(
    drop: float, rows: int, requested: ExportBounds, within: bool
) -> None:
    accuracy = {"measure": "accuracy", "before": 0.9, "after": 0.9 - drop, "drop": drop, "rows": rows}
    limits = export_gate.limits_for(requested, "float32", CLASSIFIER)
    assert (export_gate.find_accuracy_faults(accuracy, limits, requested) == []) is within


def test_rows_are_rounded_except_categories() -> None:
    inputs = (Input("plain", "float64"), Input("coded", "float64", categories=(0.1, 0.2)))
    signature = Signature("regression", inputs, REGRESSOR.outputs)
    rounded = export_gate.to_device_rows(Rows(np.array([[0.1, 0.1]])), signature)
    assert rounded.matrix is not None
    assert rounded.matrix.tolist() == [[float(np.float32(0.1)), 0.1]]


def test_features_with_values_that_are_equal_in_float32_are_named() -> None:
    times = 1_700_000_000 + np.arange(10.0)
    assert export_gate.indistinct_features(Rows(np.column_stack([times, np.arange(10.0)])), REGRESSOR) == [
        "a"
    ]


def test_values_from_2_to_the_24_on_are_compared_and_finite_ones_only() -> None:
    limit = 2.0**24
    columns = {
        "apart": [limit, limit + 2],
        "equal": [limit + 1, limit + 1],
        "below": [limit - 0.5, limit - 0.25],  # small differences of small numbers do not count
        "infinite": [np.inf, np.nan],
        "first": [limit, limit + 1],
        "first negative": [-limit, -limit - 1],
        "next": [limit + 2, limit + 1],
        "same": [limit + 3, limit + 4],
        "negative": [-limit - 3, -limit - 4],
    }
    signature = Signature("regression", tuple(Input(n, "float64") for n in columns), REGRESSOR.outputs)
    rows = Rows(np.array(list(columns.values())).T)
    assert export_gate.indistinct_features(rows, signature) == ["first", "first negative", "same", "negative"]
    assert export_gate.indistinct_features(Rows(columns=(np.array(["x"]),)), signature) == []


def figures(agreement: float | None, mismatches: int, difference: float) -> Fidelity:
    return Fidelity(agreement, mismatches, difference, 0, {})


def test_a_share_or_a_difference_equal_to_its_bound_is_within_it() -> None:
    limits = ExportLimits(labels=0.25, numbers=0.5, accuracy_drop=0.0, bytes=None)
    assert export_gate.find_faults(figures(0.75, 1, 0.5), limits) == []
    above = float(np.nextafter(0.5, 1))
    (label,) = export_gate.find_faults(figures(float(np.nextafter(0.75, 0)), 1, 0.5), limits)
    assert label.startswith("1 labels differ")
    (number,) = export_gate.find_faults(figures(0.75, 1, above), limits)
    assert number.startswith("a number differs from the model's by 0.5, the bound is 0.5")
    unlimited = ExportLimits(labels=None, numbers=None, accuracy_drop=0.0, bytes=None)
    assert export_gate.find_faults(figures(0.0, 9, 9.0), unlimited) == []
    assert export_gate.find_faults(figures(None, 0, 0.0), limits) == []


def test_the_figures_are_those_of_the_judged_rows_and_of_each_kind() -> None:
    rows = {kind: Rows(np.ones((size, 2))) for kind, size in (("example", 4), ("random", 6), ("wide", 8))}
    wrong = {4: (1, 0.01), 6: (2, 0.02), 8: (5, 0.5)}
    blocks = parity.reference(classify, rows)

    def answer(of: Rows) -> Outputs:
        labels, drift = wrong[len(of)]
        answers = classify(of)
        answers["label"][:labels] = "no"
        answers["probabilities"] = answers["probabilities"] + drift
        return answers

    fidelity = export_gate.measure(blocks, answer, CLASSIFIER, frozenset({"example", "random"}))
    assert fidelity.label_agreement == pytest.approx(1 - 3 / 10, rel=1e-12)
    assert fidelity.label_mismatches == 3
    assert fidelity.largest_difference == pytest.approx(0.02)
    assert {k: (f.rows, f.label_mismatches, f.judged) for k, f in fidelity.kinds.items()} == {
        "example": (4, 1, True),
        "random": (6, 2, True),
        "wide": (8, 5, False),
    }
    assert fidelity.kinds["wide"].largest_difference == pytest.approx(0.5)
    nothing = export_gate.measure(blocks, answer, CLASSIFIER, frozenset())
    assert (nothing.label_agreement, nothing.label_mismatches, nothing.largest_difference) == (None, 0, 0.0)


def test_the_labels_of_all_outputs_count() -> None:
    outputs = tuple(Output(f"y{i}.label", "int64", (-1,), (0, 1)) for i in range(2))
    signature = Signature("classification", INPUTS, outputs)
    zeros = {o.name: np.zeros(5, dtype=np.int64) for o in outputs}
    blocks = parity.reference(lambda rows: zeros, {"random": Rows(np.zeros((5, 2)))})
    answers = {**zeros, "y1.label": np.array([1, 1, 0, 0, 0])}
    fidelity = export_gate.measure(blocks, lambda rows: answers, signature, frozenset({"random"}))
    assert fidelity.label_mismatches == 2
    assert fidelity.label_agreement == pytest.approx(0.8)


def test_numbers_that_are_nan_in_one_of_both_are_counted_on_judged_rows() -> None:
    blocks = parity.reference(value, {"random": ROWS, "wide": WIDE})

    def broken(rows: Rows) -> Outputs:
        answers = value(rows)
        answers["value"][: 3 if rows is blocks[0].rows else 7] = np.nan
        return answers

    fidelity = export_gate.measure(blocks, broken, REGRESSOR, frozenset({"random"}))
    assert fidelity.broken == 3
    assert isinstance(fidelity.kinds["wide"], RowKindFigures)


def test_a_requested_accuracy_bound_needs_an_accuracy() -> None:
    requested = ExportBounds(max_accuracy_drop=0.1)
    limits = export_gate.limits_for(requested, "float32", CLASSIFIER)
    (message,) = export_gate.find_accuracy_faults(None, limits, requested)
    assert "no example with a target column" in message
    default = export_gate.limits_for(DEFAULT, "float32", CLASSIFIER)
    assert export_gate.find_accuracy_faults(None, default, DEFAULT) == []


@pytest.mark.parametrize(
    ("rows", "drop", "within"),
    [
        (50, 1 / 50, True),
        (50, 1 / 50 + 1e-9, False),
        (50, 1 / 51, True),
        (1000, 0.002, True),  # two rows: the default bound is the larger one
        (1000, 0.0021, False),
    ],
)
def test_by_default_a_single_row_may_lose_its_label(rows: int, drop: float, within: bool) -> None:
    accuracy = {"measure": "accuracy", "before": 0.9, "after": 0.9 - drop, "drop": drop, "rows": rows}
    limits = export_gate.limits_for(DEFAULT, "float32", CLASSIFIER)
    assert (export_gate.find_accuracy_faults(accuracy, limits, DEFAULT) == []) is within


def test_an_error_on_one_kind_of_rows_stays_the_error_of_the_export() -> None:
    def refuses_random(rows: Rows) -> Outputs:
        if rows is blocks[0].rows:
            raise ValueError("not these")
        return classify(rows)

    blocks = parity.reference(classify, {"random": ROWS, "wide": WIDE})
    fidelity = export_gate.measure(blocks, refuses_random, CLASSIFIER, frozenset({"random"}))
    assert fidelity.error == "random rows: not these"


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32_become_infinite_on_the_device() -> None:
    rounded = export_gate.to_device_rows(Rows(np.array([[1e300, np.nan]])), REGRESSOR).matrix
    assert rounded is not None
    assert str(rounded.tolist()) == "[[inf, nan]]"
