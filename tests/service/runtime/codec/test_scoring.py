"""Bodies of MLflow's scoring server to rows, and outputs to its answers."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from registry.errors import Invalid
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.runtime.codec import Codec

CODEC = Codec(
    Signature(
        "classification",
        (Input("age", "float64", nullable=True), Input("visits", "int64"), Input("rate", "float32")),
        (Output("label", "bool", (-1,)), Output("probabilities", "float64", (-1, 2), (False, True))),
    )
)
ONE = Codec(Signature("clustering", (Input("text", "string"),), (Output("cluster", "int64", (-1,)),)))
ROWS = [[1.5, 2, 0.5], [math.nan, 3, 1.0]]
RECORDS = [{"visits": 2, "age": 1.5, "rate": 0.5}, {"age": None, "rate": 1, "visits": 3}]


def decode(body: Any, codec: Codec = CODEC) -> Rows:
    return codec.decode_scoring(body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["rate", "age", "visits"], "data": [[0.5, 1.5, 2], [1.0, None, 3]]}},
        {"dataframe_split": {"index": ["p", "q"], "columns": [0, 1, 2], "data": ROWS}},
        {"dataframe_split": {"data": ROWS}},
        {
            "dataframe_records": [
                {"visits": 2, "age": 1.5, "rate": 0.5},
                {"age": None, "rate": 1, "visits": 3},
            ]
        },
        {"inputs": ROWS},
        {"inputs": {"rate": [0.5, 1], "age": [1.5, None], "visits": [[2], [3]]}},
        {"inputs": RECORDS},
        {"instances": ROWS},
        {"instances": RECORDS},
    ],
    ids=lambda body: "-".join([*body, type(next(iter(body.values()))).__name__]),
)
def test_each_form_is_read_by_name_or_in_the_order_of_the_features(body: dict[str, Any]) -> None:
    rows = decode(body)  # json.dumps writes the missing age as NaN, as MLflow's client does
    np.testing.assert_array_equal(rows.matrix, ROWS)


def test_values_of_the_only_feature_need_no_lists() -> None:
    for values in (["a", "b"], [["a"], ["b"]]):
        rows = decode({"instances": values}, ONE)
        assert rows.columns is not None
        assert rows.columns[0].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"[[1]]", "the body is a list; send one of dataframe_split"),
        ({}, "the body has no data; send one of"),
        ({"instances": ROWS, "inputs": ROWS}, "the body has instances and inputs"),
        ({"instances": ROWS, "params": {"t": 1}}, '"params" is not supported: the model takes no parameters'),
        ({"instances": ROWS, "signature_name": "x"}, '"signature_name" is not supported'),
        ({"columns": [], "data": []}, '"columns" is not a field of this call'),
        ({"instances": []}, '"instances" has 0 rows; send a list of 1 to 10000 rows'),
        ({"instances": [[1, 2, 3]] * 10_001}, '"instances" has 10001 rows'),
        ({"instances": 1}, '"instances" is the number 1'),
        ({"instances": [[1, 2, 3], [1, 2]]}, "instance 1: the row has 2 values; send 3: age, visits, rate"),
        ({"instances": [[1, 2, 3], 4]}, "instance 1: the row is the number 4; send a list"),
        ({"instances": [{"age": 1, "visits": 2, "rate": 3}, [1, 2, 3]]}, "instance 1: the row is a list"),
        ({"instances": [{"age": 1, "visits": 2, "rat": 3}]}, 'instance 0: "rate" is missing'),
        ({"instances": [[1, 2.5, 3]]}, 'instance 0: "visits" is 2.5'),
        ({"instances": [[1, None, 3]]}, 'instance 0: "visits" is null'),
        ({"instances": [[math.inf, 2, 3]]}, 'instance 0: "age" is Infinity, which is not valid JSON'),
        ({"instances": [[1, [2], 3]]}, 'instance 0: "visits" is a list'),
        ({"inputs": {"age": [1], "visits": [1, 2], "rate": [1]}}, '"visits" has 2 values, "age" has 1'),
        ({"inputs": {"age": [1], "visits": [1]}}, 'column "rate" is missing'),
        ({"inputs": {"age": 1, "visits": 2, "rate": 3}}, '"inputs.age" is the number 1; send a list'),
        ({"inputs": {}}, 'column "age" is missing'),
        ({"dataframe_split": {"columns": ["age"]}}, "dataframe_split has no data"),
        ({"dataframe_split": ROWS}, "dataframe_split has no data"),
        ({"dataframe_split": {"data": ROWS, "rows": 1}}, '"rows" is not a field of dataframe_split'),
        ({"dataframe_split": {"columns": [1, 2, 3], "data": ROWS}}, "the columns of dataframe_split are not"),
        ({"dataframe_split": {"columns": ["age"] * 3, "data": ROWS}}, 'column "age" occurs 3 times'),
        (b'{"instances":[{"age":1,"visits":2,"rate":3,"rate":4}]}', '"rate" is repeated'),
        (b'{"instances":[[1,2,3]],"instances":[[1,2,3]]}', '"instances" is repeated'),
        (b'{"instances":' + b"[" * 50_000, "nested too deeply"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_another_body_is_rejected_with_row_and_feature(body: Any, message: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode(body)
    assert message in str(caught.value)
    assert caught.value.errors


@pytest.mark.parametrize(
    ("outputs", "predictions"),
    [
        ({"label": np.array(["a", "b"], object), "probabilities": np.ones((2, 2))}, ["a", "b"]),
        ({"label": np.array([True, False])}, [True, False]),
        ({"y0.label": np.array([1, 2]), "y1.label": np.array(["a", "b"], object)}, [[1, "a"], [2, "b"]]),
        ({"value": np.array([1.5, math.nan])}, [1.5, None]),
        ({"values": np.array([[1.5, 2], [3, 4]])}, [[1.5, 2.0], [3.0, 4.0]]),
        ({"cluster": np.array([0, 1])}, [0, 1]),
        ({"label": np.array([1, -1]), "score": np.array([0.1, 0.2])}, [1, -1]),
        ({"vector": np.array([[1.0, 2.0]])}, [[1.0, 2.0]]),
    ],
    ids=["strings", "booleans", "two targets", "value", "values", "cluster", "outlier", "vector"],
)
def test_the_answer_is_what_predict_returns(outputs: Outputs, predictions: list[Any]) -> None:
    described = tuple(Output(name, "float64", (-1, *a.shape[1:])) for name, a in outputs.items())
    codec = Codec(Signature("transform", (Input("x", "float64"),), described))
    assert json.loads(codec.encode_scoring(outputs)) == {"predictions": predictions}
