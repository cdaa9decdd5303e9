"""The description of a Keras model: rows, true values and metrics of the rows that it answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.errors import Refused
from service.compiler.example import ExampleTable
from service.compiler.keras import describe_keras
from service.compiler.keras.describe_keras import KerasDescription, describe_model
from service.compiler.keras.heads import OutputHead
from service.compiler.keras.load import KerasModel
from service.compiler.keras.losses import OutputLoss
from service.compiler.signature.corrections import Corrections
from tests.service.compiler.keras.keras_models import keras, layers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def linear() -> Any:
    """a + 10 * b."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.layers[0].set_weights([np.array([[1.0], [10.0]]), np.zeros(1)])
    return model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> KerasModel:
    folder = tmp_path_factory.mktemp("keras")
    linear().save(folder / "model.keras")
    return KerasModel(folder / "model.keras", folder, 8192)


def described(model: KerasModel, target: list[Any] | None = None, **columns: list[Any]) -> KerasDescription:
    arrays = {name: pa.array(values, pa.float64()) for name, values in columns.items()}
    sample = ExampleTable(arrays, None if target is None else pa.array(target))
    return describe_model(model, sample, Corrections.read({}))


def test_true_values_are_left_out_together_with_incomplete_rows(loaded: KerasModel) -> None:
    a, b = [None, 1.0, 2.0, 3.0, None], [0.0, 1.0, None, 3.0, 4.0]
    result = described(loaded, [0, 1, 2, 3, 4], a=a, b=b)
    assert result.rows is not None
    assert result.rows.matrix is not None
    assert result.truth is not None
    assert (result.rows.matrix[:, 1].tolist(), result.truth.to_pylist()) == ([1.0, 3.0], [1, 3])
    assert not any(i.nullable for i in result.signature.inputs)
    (warning,) = result.warnings
    assert warning == "the model answers NaN to missing values: rows with missing values were left out"
    without_target = described(loaded, a=[None, 1.0], b=[0.0, 1.0])
    assert (len(without_target.rows or ()), without_target.truth) == (1, None)


def test_complete_rows_all_stay_and_incomplete_ones_alone_are_refused(loaded: KerasModel) -> None:
    complete = described(loaded, [0, 1], a=[0.0, 1.0], b=[2.0, 3.0])
    assert (len(complete.rows or ()), len(complete.truth or ()), complete.warnings) == (2, 2, [])
    with pytest.raises(Refused, match="every row of the example has a missing value"):
        described(loaded, a=[None, 1.0], b=[1.0, None])


@pytest.mark.parametrize(
    ("activation", "loss", "size", "given", "kind"),
    [
        ("sigmoid", None, 1, None, "probability"),
        ("linear", OutputLoss(logits=True), 1, None, "logit"),
        ("softmax", None, 2, None, "probabilities"),
        ("softmax", None, 2, True, "probabilities"),
        ("linear", OutputLoss(logits=True, exclusive=True), 2, None, "logits"),
        ("linear", OutputLoss(logits=True, binary=True), 2, None, "label logits"),
        ("linear", None, 2, None, "logits"),
        ("linear", None, 2, True, "label logits"),
        ("sigmoid", None, 2, None, "label probabilities"),
        ("sigmoid", OutputLoss(binary=True), 2, None, "label probabilities"),
        ("sigmoid", OutputLoss(exclusive=True), 2, None, "probabilities"),
        ("sigmoid", OutputLoss(exclusive=True), 2, True, "label probabilities"),
        ("sigmoid", OutputLoss(binary=True), 2, False, "probabilities"),
    ],
)
def test_several_sigmoids_are_labels_unless_the_loss_or_the_signature_makes_them_classes(
    activation: str, loss: OutputLoss | None, size: int, given: bool | None, kind: str
) -> None:
    assert describe_keras._head_kind(activation, loss or OutputLoss(), size, given) == kind


@pytest.mark.parametrize(
    ("width", "target", "classes", "warned"),
    [
        (3, None, (0, 1, 2), False),
        (3, ["x", "y", "z", "x"], ("x", "y", "z"), True),
        (3, ["x", "y"], (0, 1, 2), True),
        (3, ["x", "y", "z", "w"], (0, 1, 2), True),
        (3, [0, 1, 2], (0, 1, 2), False),
        (3, [2, 0], (0, 1, 2), False),
        (3, [1, 2, 3], (1, 2, 3), True),  # 3 is not a number of a class
        (3, [1.0, 2.0, 3.0], (1, 2, 3), True),
        (1, ["no", "yes"], ("no", "yes"), True),  # one number: two classes
        (1, [0, 1], (0, 1), False),
        (1, [False, True], (False, True), False),
        (1, [True], (0, 1), False),
        (1, None, (0, 1), False),
    ],
)
def test_the_classes_are_the_values_of_the_target_if_there_are_as_many(
    width: int, target: list[Any] | None, classes: tuple[Any, ...], warned: bool
) -> None:
    warnings: list[str] = []
    truth = None if target is None else pa.array(target)
    head = OutputHead("out", width, "probabilities")
    found = describe_keras._classes(head, "", Corrections.read({}), truth, warnings)
    assert (found, [type(c) for c in found]) == (classes, [type(c) for c in classes])
    assert bool(warnings) is warned


@pytest.mark.parametrize(
    ("classes", "accepted"),
    [(["a", "b", "c"], True), (["a", "b"], False), (["a", "b", "b"], False), (["a", "b", 3], False)],
)
def test_given_classes_are_as_many_different_values_of_one_type(classes: list[Any], accepted: bool) -> None:
    corrections = Corrections.read({"outputs": [{"name": "label", "classes": classes}]})
    head = OutputHead("out", 3, "probabilities")
    if accepted:
        assert describe_keras._classes(head, "", corrections, None, []) == tuple(classes)
    else:
        with pytest.raises(Refused, match="classes are given for the 3 of the output 'out'"):
            describe_keras._classes(head, "", corrections, None, [])


def test_columns_beside_the_default_names_are_left_out_with_a_warning(loaded: KerasModel) -> None:
    result = described(loaded, x1=[1.0], z=[9.0], x0=[2.0])
    assert [i.name for i in result.signature.inputs] == ["x0", "x1"]
    assert result.warnings == ["columns of the example that are not features, left out: 'z'"]
    assert result.rows is not None
    assert result.rows.matrix is not None
    assert result.rows.matrix.tolist() == [[2.0, 1.0]]
    with pytest.raises(Refused, match="has 2 numbers per row, the example has 3 columns"):
        described(loaded, a=[1.0], b=[2.0], c=[3.0])


def test_a_model_has_at_most_the_limit_of_features(
    loaded: KerasModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describe_keras, "MAX_FEATURES", 2)
    assert len(described(loaded, a=[1.0], b=[2.0]).signature.inputs) == 2
    monkeypatch.setattr(describe_keras, "MAX_FEATURES", 1)
    with pytest.raises(Refused, match="2 numbers per row; the limit is 1"):
        described(loaded, a=[1.0], b=[2.0])
