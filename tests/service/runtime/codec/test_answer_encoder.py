"""Answers of every task, as JSON and as a flat table."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from registry.rows import Outputs
from registry.signature import Input, Output, Signature
from service.runtime.codec import Codec


def objects(*values: Any) -> Any:
    return np.array(values, dtype=object)


def codec(task: Any, *outputs: Output) -> Codec:
    return Codec(Signature(task, (Input("x", "float64"),), outputs))


def predictions(encoder: Codec, outputs: Outputs) -> list[Any]:
    answer = json.loads(encoder.encode_json(outputs, "fraud", 3, "01J"))
    assert list(answer) == ["predictions", "model", "id"]
    assert (answer["model"], answer["id"]) == ({"name": "fraud", "version": 3}, "01J")
    listed: list[Any] = answer["predictions"]
    return listed


def csv_table(encoder: Codec, outputs: Outputs) -> list[list[str]]:
    return list(csv.reader(io.StringIO(encoder.encode_csv(outputs).decode(), newline=""), strict=True))


def arrow_table(encoder: Codec, outputs: Outputs) -> pa.Table:
    table = pa.ipc.open_stream(encoder.encode_arrow(outputs)).read_all()
    table.validate(full=True)
    return table


def probabilities(*rows: list[float]) -> Any:
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize(
    ("dtype", "classes", "labels", "keys"),
    [
        ("string", ("no", "yes.é"), objects("yes.é", "no"), ["no", "yes.é"]),
        ("int64", (0, 1), np.array([1, 0]), ["0", "1"]),
        ("bool", (False, True), np.array([True, False]), ["false", "true"]),
        ("float64", (0.5, 1.0), np.array([1.0, 0.5]), ["0.5", "1.0"]),
    ],
)
def test_a_label_keeps_its_json_type_and_classes_are_keys(
    dtype: Any, classes: Any, labels: Any, keys: list[str]
) -> None:
    classifier = codec(
        "classification",
        Output("label", dtype, (-1,), classes),
        Output("probabilities", "float64", (-1, 2), classes),
    )
    outputs = {"label": labels, "probabilities": probabilities([0.25, 0.75], [1, 0])}
    first, second = predictions(classifier, outputs)
    assert first == {"label": labels.tolist()[0], "probabilities": dict(zip(keys, [0.25, 0.75], strict=True))}
    assert type(first["label"]) is type(labels.tolist()[0])
    assert list(first["probabilities"]) == keys
    assert second["label"] == labels.tolist()[1]
    header = ["label", *(f"probability.{k}" for k in keys)]
    assert csv_table(classifier, outputs)[0] == header
    assert csv_table(classifier, outputs)[1] == [
        json.dumps(first["label"], ensure_ascii=False).strip('"'),
        "0.25",
        "0.75",
    ]
    table = arrow_table(classifier, outputs)
    assert table.column_names == header
    assert table.column("label").to_pylist() == labels.tolist()
    assert table.column(header[1]).to_pylist() == [0.25, 1]


def test_a_classifier_without_probabilities_answers_the_label_alone() -> None:
    encoder = codec("classification", Output("label", "int64", (-1,), (0, 1)))
    assert predictions(encoder, {"label": np.array([1, 0])}) == [{"label": 1}, {"label": 0}]
    assert csv_table(encoder, {"label": np.array([1, 0])}) == [["label"], ["1"], ["0"]]


def test_multi_output_classification_nests_by_target() -> None:
    two_targets = codec(
        "classification",
        Output("y0.label", "string", (-1,), ("a", "b")),
        Output("y0.probabilities", "float64", (-1, 2), ("a", "b")),
        Output("y1.label", "int64", (-1,), (1, 2, 3)),
    )
    outputs = {
        "y0.label": objects("a"),
        "y0.probabilities": probabilities([0.75, 0.25]),
        "y1.label": np.array([3]),
    }
    assert predictions(two_targets, outputs) == [
        {"y0": {"label": "a", "probabilities": {"a": 0.75, "b": 0.25}}, "y1": {"label": 3}}
    ]
    header = ["y0.label", "y0.probability.a", "y0.probability.b", "y1.label"]
    assert csv_table(two_targets, outputs) == [header, ["a", "0.75", "0.25", "3"]]
    assert arrow_table(two_targets, outputs).column_names == header


def test_a_regressor_answers_a_value_and_nan_is_null() -> None:
    regressor = codec("regression", Output("value", "float64", (-1,)))
    outputs = {"value": np.array([1.5, np.nan, -np.inf])}
    assert predictions(regressor, outputs) == [{"value": 1.5}, {"value": None}, {"value": None}]
    assert csv_table(regressor, outputs) == [["value"], ["1.5"], [""], [""]]
    assert arrow_table(regressor, outputs).column("value").to_pylist() == [1.5, None, None]


def test_a_multi_output_regressor_answers_values_by_target() -> None:
    regressor = codec("regression", Output("values", "float32", (-1, 2), ("y0", "price, €")))
    outputs = {"values": np.array([[1, 2], [3, np.inf]], dtype=np.float32)}
    assert predictions(regressor, outputs) == [
        {"values": {"y0": 1, "price, €": 2}},
        {"values": {"y0": 3, "price, €": None}},
    ]
    assert csv_table(regressor, outputs) == [["value.y0", "value.price, €"], ["1.0", "2.0"], ["3.0", ""]]
    assert arrow_table(regressor, outputs).column("value.price, €").to_pylist() == [2, None]


def test_values_without_names_are_numbered() -> None:
    regressor = codec("regression", Output("values", "float64", (-1, 2)))
    assert predictions(regressor, {"values": np.array([[1.0, 2.0]])}) == [{"values": {"y0": 1, "y1": 2}}]


def test_answers_of_clustering_outlier_and_transform_models() -> None:
    clusters = codec("clustering", Output("cluster", "int64", (-1,)))
    assert predictions(clusters, {"cluster": np.array([7])}) == [{"cluster": 7}]
    assert csv_table(clusters, {"cluster": np.array([7])}) == [["cluster"], ["7"]]

    outliers = codec("outlier", Output("label", "int64", (-1,)), Output("score", "float64", (-1,)))
    outputs = {"label": np.array([-1]), "score": np.array([-0.25])}
    assert predictions(outliers, outputs) == [{"label": -1, "score": -0.25}]
    assert csv_table(outliers, outputs) == [["label", "score"], ["-1", "-0.25"]]

    transform = codec("transform", Output("vector", "float64", (-1, 3)))
    outputs = {"vector": np.array([[1, np.nan, 3]])}
    assert predictions(transform, outputs) == [{"vector": [1, None, 3]}]
    assert csv_table(transform, outputs) == [["vector.0", "vector.1", "vector.2"], ["1.0", "", "3.0"]]
    assert arrow_table(transform, outputs).column("vector.1").to_pylist() == [None]


def test_csv_answers_quote_cells_with_separators() -> None:
    classifier = codec("classification", Output("label", "string", (-1,)))
    labels = {"label": objects('a "quoted", label', "two\nlines")}
    assert csv_table(classifier, labels) == [["label"], ['a "quoted", label'], ["two\nlines"]]
