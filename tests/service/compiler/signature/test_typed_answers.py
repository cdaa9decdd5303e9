"""Arrays of an estimator as typed outputs: their names, shapes, dtypes and classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from registry.errors import Refused
from registry.rows import Rows
from registry.signature import Input, Signature
from service.compiler.signature import answers, estimator

ROWS = np.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (LogisticRegression(), ("classification",)),
        (LinearRegression(), ("regression",)),
        (KMeans(2), ("clustering", "transform")),
        (GaussianMixture(2), ("clustering",)),
        (StandardScaler(), ("transform",)),
        (SimpleNamespace(), ()),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_methods_of_an_estimator_determine_its_tasks(model: Any, tasks: tuple[str, ...]) -> None:
    assert answers.tasks(model) == tasks


class Fixed:
    """An estimator with fixed answers."""

    def __init__(self, predicted: Any, probabilities: Any = None, classes: Any = None) -> None:
        self.predict = lambda rows: predicted
        self.transform = lambda rows: predicted
        if probabilities is not None:
            self.predict_proba = lambda rows: probabilities
        if classes is not None:
            self.classes_ = classes


def listed(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: array.tolist() for name, array in outputs.items()}


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        (np.array([1.0, 2.0]), {"value": [1.0, 2.0]}),
        (np.array([[1.0], [2.0]]), {"value": [1.0, 2.0]}),  # one column is one value
        (np.array([[1.0, 2.0]]), {"values": [[1.0, 2.0]]}),
        (sparse.csr_matrix([[1.0, 2.0]]), {"values": [[1.0, 2.0]]}),
    ],
)
def test_one_column_is_a_value_and_two_are_values(predicted: Any, expected: Any) -> None:
    assert listed(answers.answer(Fixed(predicted), "regression", None)) == expected


def test_a_vector_has_two_dimensions() -> None:
    two = np.array([1.0, 2.0])
    assert listed(answers.answer(Fixed(two), "transform", ROWS[:2])) == {"vector": [[1.0], [2.0]]}
    assert listed(answers.answer(Fixed(two), "transform", ROWS[:1])) == {"vector": [[1.0, 2.0]]}
    assert listed(answers.answer(Fixed(np.eye(2)), "transform", ROWS[:2])) == {
        "vector": [[1.0, 0.0], [0.0, 1.0]]
    }


def test_targets_have_labels_and_probabilities_of_their_own() -> None:
    labels = np.array([[0, 1], [1, 1]])
    of_targets = [np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.3, 0.7], [0.4, 0.6]])]
    expected = {
        "y0.label": [0, 1],
        "y0.probabilities": [[0.9, 0.1], [0.2, 0.8]],
        "y1.label": [1, 1],
        "y1.probabilities": [[0.3, 0.7], [0.4, 0.6]],
    }
    assert listed(answers.answer(Fixed(labels, of_targets), "classification", None)) == expected
    positive = np.array([[0.25, 0.75], [0.5, 1.0]])  # of indicator outputs: the probability of 1
    indicator = listed(answers.answer(Fixed(labels, positive), "classification", None))
    assert indicator["y0.probabilities"] == [[0.75, 0.25], [0.5, 0.5]]
    assert indicator["y1.probabilities"] == [[0.25, 0.75], [0.0, 1.0]]
    single = Fixed(np.array([[0], [1]]), [of_targets[0]])
    assert listed(answers.answer(single, "classification", None)) == {
        "label": [0, 1],
        "probabilities": of_targets[0].tolist(),
    }


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([1], np.int8), "int64"),
        (np.array([1], np.uint64), "int64"),
        (np.array([True]), "bool"),
        (np.array([1.0], np.float16), "float64"),
        (np.array([1.0], np.float32), "float32"),
        (np.array([1.0]), "float64"),
        (np.array(["a"]), "string"),
        (np.array([b"a"]), "string"),
        (np.array(["a", "b"], object), "string"),
        (np.array([1, 2], object), "int64"),
        (np.array([1, 2.5], object), "float64"),
        (np.array([True, False], object), "bool"),
        (np.array([1, "a"], object), None),
        (np.array([True, 1], object), None),
        (np.array([1j]), None),
    ],
)
def test_each_array_has_the_dtype_that_holds_all_its_values(array: Any, dtype: str | None) -> None:
    if dtype is None:
        with pytest.raises(Refused, match="mixed types"):
            answers._signature_dtype(array)
    else:
        assert answers._signature_dtype(array) == dtype


def test_outputs_of_more_than_two_dimensions_are_refused() -> None:
    for shape, accepted in (((2,), True), ((2, 3), True), ((2, 3, 4), False)):
        outputs = {"vector": np.zeros(shape)}
        if accepted:
            assert answers.outputs(Fixed(None), "transform", outputs)[0].shape == (-1, *shape[1:])
        else:
            with pytest.raises(Refused, match="Fixed returns 3-dimensional arrays"):
                answers.outputs(Fixed(None), "transform", outputs)


def test_the_classes_of_an_output_are_those_of_its_target() -> None:
    answered = {"y0.label": np.array([0]), "y1.label": np.array(["a"])}
    model = Fixed(None, classes=[np.array([0, 5]), np.array(["a", "b"])])
    first, second = answers.outputs(model, "classification", answered)
    assert (first.classes, second.classes) == ((0, 5), ("a", "b"))
    indicator = Fixed(None, classes=np.array([0, 1, 2]))
    assert [o.classes for o in answers.outputs(indicator, "classification", {"y1.label": np.array([1])})] == [
        (0, 1)
    ]
    flags = {"y1.label": np.array([True])}
    assert answers.outputs(indicator, "classification", flags)[0].classes == (False, True)
    values = answers.outputs(Fixed(None), "regression", {"values": np.zeros((1, 2))})
    assert values[0].classes == ("y0", "y1")


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (("float64", "float64"), "float64"),
        (("float32", "float32"), "float32"),
        (("int64", "int64"), "int64"),
        (("float32", "float64"), "float64"),
        (("bool", "int64"), "float64"),
    ],
)
def test_a_matrix_has_the_common_dtype_of_the_features(dtypes: tuple[Any, Any], expected: str) -> None:
    inputs = tuple(Input(f"x{i}", dtype) for i, dtype in enumerate(dtypes))
    assert estimator.arrange("matrix", Rows(matrix=np.ones((2, 2))), inputs).dtype == expected
    missing = Rows(matrix=np.array([[1.0, np.nan]]))
    kept = "float32" if expected == "float32" else "float64"
    assert estimator.arrange("matrix", missing, inputs).dtype == kept


def test_missing_values_of_a_frame_keep_their_column_as_it_is() -> None:
    inputs = (Input("i", "int64"), Input("b", "bool"), Input("s", "float32"))
    complete = estimator.arrange("frame", Rows(matrix=np.ones((1, 3))), inputs)
    assert [str(t) for t in complete.dtypes] == ["int64", "bool", "float32"]
    missing = estimator.arrange("frame", Rows(matrix=np.full((1, 3), np.nan)), inputs)
    assert [str(t) for t in missing.dtypes] == ["float64", "float64", "float32"]


def test_records_leave_out_missing_values() -> None:
    inputs = (Input("city", "string"), Input("size", "float64"))
    rows = Rows(columns=(np.array(["Rome", None], object), np.array([np.nan, 2.0])))
    assert estimator.arrange("records", rows, inputs) == [{"city": "Rome"}, {"size": 2.0}]
    assert estimator.arrange("texts", rows, inputs)[0] == "Rome"


@pytest.mark.parametrize("count", [1, 3])
def test_an_estimator_returns_one_answer_per_row(count: int) -> None:
    model = LinearRegression().fit(ROWS, ROWS[:, 0])
    signature = answers.outputs(model, "regression", {"value": np.zeros(2)})
    runtime = estimator.EstimatorRuntime(
        model, Signature("regression", (Input("x0", "float64"), Input("x1", "float64")), signature)
    )
    assert len(runtime.run(Rows(matrix=ROWS[:2]))["value"]) == 2
    model.predict = lambda rows: np.zeros(count)
    with pytest.raises(ValueError, match="LinearRegression does not return one answer per row"):
        runtime.run(Rows(matrix=ROWS[:2]))
