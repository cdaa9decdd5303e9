"""Shapes of published graphs at their bounds, and the accuracy on the rows with a true value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry.errors import Refused
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.compiler.example import ExampleTable
from service.compiler.onnx.upload import OnnxUpload
from service.compiler.signature.corrections import Corrections
from service.runtime.onnx_runtime import OnnxRuntime
from tests.service.compiler.helpers import build_file

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name: str, kind: int, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def saved(folder: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Any = ()) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def sums(folder: Path, *shape: Any) -> Path:
    """The sum of a row, for an input of this shape."""
    axes = numpy_helper.from_array(np.array([1]), "axes")
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    return saved(folder, [node], [value("x", FLOAT, *shape)], [value("y", FLOAT, None, 1)], [axes])


def prepared(
    folder: Path, path: Path, sample: ExampleTable | None = None, **corrections: Any
) -> tuple[Signature, Outputs]:
    """The signature, and the answers to two rows of numbers."""
    upload = OnnxUpload(path, sample, Corrections.read(corrections))
    signature, _, runtime = upload.prepare(folder / "out.onnx", OnnxRuntime)
    rows = np.arange(2.0 * len(signature.inputs)).reshape(2, -1)
    return signature, runtime.run(Rows(matrix=rows))


def features(signature: Signature) -> list[str]:
    return [i.name for i in signature.inputs]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((None, 1), ["x"]), ((None, 2), ["x0", "x1"]), ((7, 3), ["x0", "x1", "x2"])],
)
def test_a_matrix_has_a_feature_per_column_and_any_number_of_rows(
    tmp_path: Path, shape: tuple[Any, ...], expected: list[str]
) -> None:
    signature, answered = prepared(tmp_path, sums(tmp_path, *shape))
    assert features(signature) == expected
    assert answered["value"].shape == (2,)


def test_a_matrix_of_open_width_needs_names(tmp_path: Path) -> None:
    path = sums(tmp_path, None, None)
    with pytest.raises(Refused, match="does not declare its number of features"):
        prepared(tmp_path, path)
    assert features(prepared(tmp_path, path, inputs=[{"name": "p"}, {"name": "q"}])[0]) == ["p", "q"]
    with pytest.raises(Refused, match=r"takes 3 features, not 2 \(p, q\)"):
        prepared(tmp_path, sums(tmp_path, None, 3), inputs=[{"name": "p"}, {"name": "q"}])


def columns(folder: Path, *shapes: tuple[Any, ...]) -> Path:
    names = [f"c{i}" for i in range(len(shapes))]
    inputs = [value(n, FLOAT, *shape) for n, shape in zip(names, shapes, strict=True)]
    node = helper.make_node("Sum", names, ["y"])
    return saved(folder, [node], inputs, [value("y", FLOAT, *([None] * len(shapes[0])))])


@pytest.mark.parametrize("shape", [(None, 1), (None,), (5, 1), (None, None)])
def test_several_inputs_have_one_column_each(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    signature, answered = prepared(tmp_path, columns(tmp_path, shape, shape))
    assert features(signature) == ["c0", "c1"]
    assert answered["value"].tolist() == [1.0, 5.0]


@pytest.mark.parametrize("shapes", [((None, 2), (None, 2)), ((None, 1), (None, 2))])
def test_several_inputs_of_more_columns_are_refused(tmp_path: Path, shapes: Any) -> None:
    with pytest.raises(Refused, match="one of them takes more than one column"):
        prepared(tmp_path, columns(tmp_path, *shapes))


def negated(folder: Path, shape: tuple[Any, ...], answers: tuple[Any, ...] | None = None) -> Path:
    answer = value("y", FLOAT, *(shape if answers is None else answers))
    return saved(folder, [helper.make_node("Neg", ["x"], ["y"])], [value("x", FLOAT, *shape)], [answer])


def test_an_input_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        Refused, match="'x' takes 0-dimensional tensors; its first dimension must be the rows"
    ):
        prepared(tmp_path, negated(tmp_path, ()))


def test_more_dimensions_are_flattened_in_c_order(tmp_path: Path) -> None:
    signature, answered = prepared(tmp_path, negated(tmp_path, (None, 2, 1, 3)))
    assert features(signature) == [f"x{i}" for i in range(6)]
    assert answered["values"].tolist() == (-np.arange(12.0).reshape(2, 6)).tolist()


def test_an_open_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"'x' has the open shape \['N', 2, 'open'\]"):
        prepared(tmp_path, negated(tmp_path, (None, 2, None)))


def test_the_number_of_answers_is_measured_where_the_graph_does_not_declare_it(tmp_path: Path) -> None:
    for width, name in ((1, "value"), (3, "values")):
        (output,) = prepared(tmp_path, negated(tmp_path, (None, width), (None, None)))[0].outputs
        assert output.name == name


@pytest.mark.parametrize(("width", "name"), [(1, "value"), (2, "values")])
def test_one_number_is_a_value_and_two_are_values(tmp_path: Path, width: int, name: str) -> None:
    path = saved(
        tmp_path,
        [helper.make_node("Neg", ["x"], ["y"])],
        [value("x", FLOAT, None, width)],
        [value("y", FLOAT, None, width)],
    )
    (output,) = prepared(tmp_path, path)[0].outputs
    assert (output.name, output.shape) == (name, (-1,) if width == 1 else (-1, 2))
    assert output.classes == (None if width == 1 else ("y0", "y1"))


def classifier(folder: Path, width: int = 2) -> Path:
    """Returns the numbers as probabilities, and the largest one's position after them."""
    nodes = [
        helper.make_node("Identity", ["x"], ["p"]),
        helper.make_node("ArgMax", ["x"], ["l"], axis=1, keepdims=0),
    ]
    outputs = [value("p", FLOAT, None, width), value("l", INT64, None)]
    return saved(folder, nodes, [value("x", FLOAT, None, width)], outputs)


def test_the_label_comes_first_and_unnamed_classes_are_numbered(tmp_path: Path) -> None:
    signature, answered = prepared(tmp_path, classifier(tmp_path))
    assert [(o.name, o.classes) for o in signature.outputs] == [
        ("label", (0, 1)),
        ("probabilities", (0, 1)),
    ]
    assert answered["label"].tolist() == [1, 1]
    given = [{"name": "label", "classes": [7, 9, 11]}]
    with pytest.raises(Refused, match="returns 2 probabilities for 3 classes"):
        prepared(tmp_path, classifier(tmp_path), outputs=given)


def test_the_accuracy_of_a_published_graph_counts_the_rows_with_a_true_value(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [0.9, 0.1, 0.8, 0.3, 0.6], "b": [0.1, 0.9, 0.2, 0.7, 0.4]})
    frame["y"] = pd.array([0, 1, None, 0, 1], dtype="Int64")  # the graph answers 0, 1, 0, 1, 0
    built = build_file(tmp_path, classifier(tmp_path), frame, format="onnx", target="y")
    assert built.state == "ready", built.report
    assert built.metrics == {"accuracy": 0.5}


def test_a_missing_value_needs_a_float_input(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        [helper.make_node("Neg", ["x"], ["y"])],
        [value("x", INT64, None, 1)],
        [value("y", INT64, None, 1)],
    )
    sample = ExampleTable({"x": pa.array([1, None])})
    with pytest.raises(Refused, match='"x" has missing values, which a graph\'s int64 cannot hold'):
        prepared(tmp_path, path, sample)
