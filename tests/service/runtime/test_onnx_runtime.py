"""The ONNX runtime on small graphs: inputs, outputs and rejected rows."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from registry.errors import Invalid, Unavailable
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.runtime.onnx_runtime import OnnxRuntime

ROOT = Path(__file__).parents[3]
SUM_SIGNATURE = Signature(
    "regression", (Input("a", "float64"), Input("b", "int64")), (Output("value", "float64", (-1,)),)
)


def save(
    folder: Path, nodes: list[object], inputs: dict[str, tuple[int, list[int | None]]], output: int
) -> Path:
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    answer = helper.make_tensor_value_info("value", output, [None, 1])
    graph = helper.make_graph(nodes, "g", values, [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def tensor_graph(folder: Path, kind: int = TensorProto.DOUBLE) -> Path:
    node = helper.make_node("ReduceSum", ["input"], ["value"], keepdims=1)
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[1])
    node.input.append("axes")
    return save(folder, [axes, node], {"input": (kind, [None, 2])}, kind)


def column_graph(folder: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["b"], ["b.float"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["a", "b.float"], ["value"]),
    ]
    inputs: dict[str, tuple[int, list[int | None]]] = {
        "b": (TensorProto.INT64, [None, 1]),
        "a": (TensorProto.DOUBLE, [None, 1]),
    }
    return save(folder, nodes, inputs, TensorProto.DOUBLE)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT])
def test_inputs_are_cast_to_the_graphs_dtype_and_outputs_to_the_signatures(tmp_path: Path, kind: int) -> None:
    answered = OnnxRuntime(tensor_graph(tmp_path, kind), SUM_SIGNATURE).run(
        Rows(matrix=np.array([[1.5, 2.0], [3.0, 4.0]]))
    )
    assert answered["value"].dtype == np.float64
    assert answered["value"].tolist() == [3.5, 7.0]


def test_graph_inputs_are_matched_by_name_from_a_matrix_or_from_columns(tmp_path: Path) -> None:
    runtime = OnnxRuntime(column_graph(tmp_path), SUM_SIGNATURE)
    assert runtime.run(Rows(matrix=np.array([[1.5, 2.0]])))["value"].tolist() == [3.5]
    assert runtime.run(Rows(columns=(np.array([1.5]), np.array([2]))))["value"].tolist() == [3.5]


def test_the_runtime_can_be_called_from_many_threads(tmp_path: Path) -> None:
    runtime = OnnxRuntime(tensor_graph(tmp_path), SUM_SIGNATURE)
    wrong_numbers: list[float] = []

    def run(number: float) -> None:
        for _ in range(200):
            values = runtime.run(Rows(matrix=np.full((3, 2), number)))["value"]
            wrong_numbers.extend(values[values != 2 * number].tolist())

    threads = [threading.Thread(target=run, args=(float(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong_numbers


def test_numbers_beyond_float32_are_infinite_without_a_warning(tmp_path: Path) -> None:
    runtime = OnnxRuntime(tensor_graph(tmp_path, TensorProto.FLOAT), SUM_SIGNATURE)
    assert runtime.run(Rows(matrix=np.array([[1e300, 0.0]])))["value"].tolist() == [np.inf]


def test_zero_rows_give_empty_outputs(tmp_path: Path) -> None:
    assert (
        len(OnnxRuntime(tensor_graph(tmp_path), SUM_SIGNATURE).run(Rows(matrix=np.empty((0, 2))))["value"])
        == 0
    )


def test_rows_that_the_graph_rejects_are_invalid(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="refuses these rows"):
        OnnxRuntime(tensor_graph(tmp_path), SUM_SIGNATURE).run(Rows(matrix=np.zeros((1, 5))))


def test_a_file_that_is_not_a_graph_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(Unavailable, match="cannot be loaded") as caught:
        OnnxRuntime(tmp_path / "model.onnx", SUM_SIGNATURE)
    assert str(tmp_path) not in str(caught.value)


def test_a_graph_without_the_signatures_output_is_unavailable(tmp_path: Path) -> None:
    other = Signature("clustering", SUM_SIGNATURE.inputs, (Output("cluster", "int64", (-1,)),))
    with pytest.raises(Unavailable, match="'cluster'"):
        OnnxRuntime(tensor_graph(tmp_path), other)


def test_a_graph_that_requires_an_unknown_feature_is_unavailable(tmp_path: Path) -> None:
    other = Signature("regression", (Input("a", "float64"), Input("c", "float64")), SUM_SIGNATURE.outputs)
    with pytest.raises(Unavailable, match="'b'"):
        OnnxRuntime(column_graph(tmp_path), other)


def test_the_runtime_does_not_import_scikit_learn() -> None:
    code = """
import sys
import service.runtime.onnx_runtime
print([name for name in ("sklearn", "joblib", "pandas", "onnx") if name in sys.modules])
"""
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert process.stdout.strip() == "[]"
