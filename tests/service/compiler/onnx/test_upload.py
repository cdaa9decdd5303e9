"""Published .onnx files: signature, answers and rejections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.cluster import KMeans
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

from registry.build_messages import BuildResult
from registry.rows import Rows
from tests.service.compiler.helpers import build_file, runtime

FRAME = pd.DataFrame(
    np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32), columns=["a", "b", "c"]
)
ROWS = FRAME.to_numpy()
LABELS = np.where(ROWS[:, 0] > 0, "high", "low")


def publish_onnx(
    folder: Path, model: Any, frame: pd.DataFrame | None = None, zipmap: bool = True, **options: Any
) -> BuildResult:
    zipmap_options = {"zipmap": zipmap} if hasattr(model, "predict_proba") else {}
    opset = {"": 18, "ai.onnx.ml": 3}
    graph = to_onnx(
        model, ROWS[:1], options={id(model): zipmap_options} if zipmap_options else None, target_opset=opset
    )
    return publish_graph(folder, graph, frame, **options)


def publish_graph(
    folder: Path, graph: onnx.ModelProto, frame: pd.DataFrame | None = None, **options: Any
) -> BuildResult:
    artifact = folder / "model.onnx"
    artifact.write_bytes(graph.SerializeToString())
    return build_file(folder, artifact, frame, format="onnx", **options)


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("labels", [LABELS, (LABELS == "high").astype(int)])
@pytest.mark.parametrize("model", [LogisticRegression(), RandomForestClassifier(5, random_state=0)])
def test_a_classifier_keeps_its_classes(tmp_path: Path, model: Any, labels: Any, zipmap: bool) -> None:
    model.fit(ROWS, labels)
    built = publish_onnx(tmp_path, model, zipmap=zipmap)
    assert (built.state, built.runtime) == ("ready", "onnx"), built.report
    assert built.signature is not None
    assert [(i.name, i.dtype) for i in built.signature.inputs] == [(f"x{i}", "float32") for i in range(3)]
    label, probabilities = built.signature.outputs
    assert label.classes == probabilities.classes == tuple(model.classes_.tolist())
    answered = runtime(tmp_path, built).run(Rows(matrix=ROWS.astype(np.float64)))
    assert answered["label"].tolist() == model.predict(ROWS).tolist()
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(ROWS), atol=1e-6)


def test_the_example_names_the_features_and_measures_the_accuracy(tmp_path: Path) -> None:
    model = LogisticRegression().fit(ROWS, LABELS)
    built = publish_onnx(tmp_path, model, FRAME.assign(size=LABELS), target="size")
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == ["a", "b", "c"]
    assert built.metrics["accuracy"] > 0.9


def test_labels_that_are_text_of_numbers_are_compared_with_the_text_of_a_csv(tmp_path: Path) -> None:
    labels = np.where(LABELS == "high", "1", "2")
    model = LogisticRegression().fit(ROWS, labels)
    built = publish_onnx(tmp_path, model, FRAME.assign(size=labels), target="size")
    assert built.metrics["accuracy"] == (model.predict(ROWS) == labels).mean()


@pytest.mark.parametrize(
    ("model", "task", "outputs"),
    [
        (LinearRegression().fit(ROWS, ROWS[:, 0]), "regression", ["value"]),
        (LinearRegression().fit(ROWS, ROWS[:, :2]), "regression", ["values"]),
        (KMeans(2).fit(ROWS), "clustering", ["cluster"]),
        (IsolationForest(n_estimators=3).fit(ROWS), "outlier", ["label", "score"]),
    ],
)
def test_the_task_is_read_from_the_outputs(tmp_path: Path, model: Any, task: str, outputs: list[str]) -> None:
    built = publish_onnx(tmp_path, model)
    assert built.signature is not None, built.report
    assert built.signature.task == task
    assert [o.name for o in built.signature.outputs] == outputs


def two_inputs() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1]) for n in ("width", "height")]
    outputs = [helper.make_tensor_value_info("area", TensorProto.FLOAT, [None, 1])]
    graph = helper.make_graph([helper.make_node("Mul", ["width", "height"], ["area"])], "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_graph_with_one_input_per_feature_names_them_and_takes_any_number_of_rows(tmp_path: Path) -> None:
    built = publish_graph(tmp_path, two_inputs())
    assert built.signature is not None, built.report
    assert [i.name for i in built.signature.inputs] == ["width", "height"]
    answered = runtime(tmp_path, built).run(Rows(matrix=np.array([[2.0, 3.0], [4.0, 5.0]])))
    assert answered["value"].tolist() == [6.0, 20.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "ONNX"), (b"certainly not a graph", "not an ONNX graph"), (b"\x80\x04K\x01.", "ONNX")],
)
def test_a_file_that_is_not_a_graph_is_rejected(tmp_path: Path, content: bytes, words: str) -> None:
    artifact = tmp_path / "model.onnx"
    artifact.write_bytes(content)
    built = build_file(tmp_path, artifact, format="onnx")
    assert built.state == "rejected"
    assert words in built.report["reason"]


def test_a_wrong_number_of_columns_is_rejected(tmp_path: Path) -> None:
    built = publish_onnx(tmp_path, LinearRegression().fit(ROWS, ROWS[:, 0]), FRAME[["a", "b"]])
    assert built.state == "rejected"
    assert "takes 3 features, not 2" in built.report["reason"]


def test_images_are_rows_of_their_pixels(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 3, 8, 8])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3, 1, 1])
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["y"])]
    graph = helper.make_graph(nodes, "g", [image], [answer])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    built = publish_graph(tmp_path, model)
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8))
    answered = runtime(tmp_path, built).run(Rows(matrix=images.reshape(4, -1)))
    np.testing.assert_allclose(answered["values"], images.mean(axis=(2, 3)), atol=1e-6)
