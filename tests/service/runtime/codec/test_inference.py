"""Open Inference Protocol bodies to rows, and outputs to answers, against two signatures."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest

from registry.errors import Invalid
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.runtime.codec import Codec
from service.runtime.codec.inference import InferenceAnswer
from service.runtime.codec.tensors import DATATYPES, NumberMatrix, describe_inputs, describe_outputs

NUMERIC = Codec(
    Signature(
        "classification",
        (
            Input("a", "float64"),
            Input("b", "int64", nullable=True),
            Input("c", "bool"),
        ),
        (Output("label", "string", (-1,)), Output("probabilities", "float64", (-1, 2), ("no", "yes"))),
    )
)
MIXED = Codec(
    Signature(
        "regression",
        (
            Input("age", "float64", nullable=True),
            Input("city", "string", nullable=True, categories=("Bern", "Genève"), closed=True),
            Input("note", "string"),
            Input("visits", "int64", minimum=0, maximum=255, enforced=True),
        ),
        (Output("values", "float32", (-1, 2), ("y0", "y1")),),
    )
)
TEXT = Codec(
    Signature("regression", (Input("text", "string"),), (Output("value", "float64", (-1,)),)),
)


def tensor(name: str, shape: list[int], datatype: str, data: Any = None, **fields: Any) -> dict[str, Any]:
    return (
        {"name": name, "shape": shape, "datatype": datatype}
        | ({} if data is None else {"data": data})
        | fields
    )


def decode(codec: Codec, *inputs: dict[str, Any], binary: bytes | None = None, **fields: Any) -> Rows:
    head = json.dumps({"inputs": list(inputs), **fields}).encode()
    length = None if binary is None else len(head)
    return codec.decode_inference(head + (binary or b""), length, "m", 3)[0]


def fault(codec: Codec, *inputs: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(Invalid) as caught:
        decode(codec, *inputs, **fields)
    assert caught.value.errors
    return str(caught.value)


def binary(name: str, shape: list[int], datatype: str, size: Any) -> dict[str, Any]:
    return tensor(name, shape, datatype, parameters={"binary_data_size": size})


def matrix(rows: Rows) -> Any:
    assert rows.matrix is not None
    return rows.matrix


def people(**changes: Any) -> list[dict[str, Any]]:
    inputs = {
        "age": tensor("age", [2], "FP64", [40.5, None]),
        "city": tensor("city", [2, 1], "BYTES", ["Bern", None]),
        "note": tensor("note", [2], "BYTES", ["", "b"]),
        "visits": tensor("visits", [2], "UINT8", [0, 255]),
    }
    return list((inputs | changes).values())


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)


# Accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 3], [1.5, 2, 1, 2.5, None, 0]),
        ([2, 3], [[1.5, 2, 1], [2.5, None, 0]]),
    ],
    ids=["flat", "nested"],
)
def test_one_tensor_holds_all_features_under_any_name(shape: list[int], data: Any) -> None:
    for name in ("input", "input-0", "a"):
        rows = matrix(decode(NUMERIC, tensor(name, shape, "FP64", data)))
        np.testing.assert_array_equal(rows, [[1.5, 2, 1], [2.5, math.nan, 0]])


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT8", "INT64", "UINT8", "UINT64"])
def test_each_number_datatype_is_read_from_binary_data(datatype: str) -> None:
    values = np.array([[1, 2, 1], [3, 4, 0]], dtype=DATATYPES[datatype])
    head = binary("input", [2, 3], datatype, values.nbytes)
    rows = decode(NUMERIC, head, binary=values.tobytes())
    np.testing.assert_array_equal(matrix(rows), values.astype(float))


def test_features_are_separate_inputs_in_any_order_and_of_any_number_datatype() -> None:
    rows = decode(
        NUMERIC,
        tensor("c", [2], "BOOL", [True, False]),
        tensor("b", [2, 1], "INT32", [[7], [None]]),
        tensor("a", [2], "UINT16", [1, 2]),
    )
    np.testing.assert_array_equal(matrix(rows), [[1, 7, 1], [2, math.nan, 0]])


def test_json_and_binary_inputs_are_mixed_in_one_request() -> None:
    texts = packed("Genève".encode(), b"Bern")
    ages = np.array([1.5, math.nan]).tobytes()
    rows = decode(
        MIXED,
        *people(age=binary("age", [2], "FP64", 16), city=binary("city", [2], "BYTES", len(texts))),
        binary=ages + texts,
    )
    assert rows.columns is not None
    age, city, note, visits = (column.tolist() for column in rows.columns)
    assert (age[0], math.isnan(age[1])) == (1.5, True)
    assert (city, note, visits) == (["Genève", "Bern"], ["", "b"], [0, 255])


def test_an_empty_string_is_not_a_missing_one() -> None:
    assert 'the input "note" holds' not in fault(
        MIXED, *people(city=tensor("city", [2], "BYTES", ["", "Bern"]))
    )
    rows = decode(MIXED, *people())
    assert rows.columns is not None
    assert rows.columns[1].tolist() == ["Bern", None]
    assert rows.columns[2].tolist() == ["", "b"]


def test_fp32_data_in_json_is_the_same_number_as_in_binary() -> None:
    data = [6.8, 1.0, 1.0]
    as_json = decode(NUMERIC, tensor("input", [1, 3], "FP32", data))
    as_binary = decode(
        NUMERIC, binary("input", [1, 3], "FP32", 12), binary=np.array(data, np.float32).tobytes()
    )
    np.testing.assert_array_equal(matrix(as_json), matrix(as_binary))


def test_the_only_feature_may_have_any_name_and_rank_one() -> None:
    for shape in ([2], [2, 1]):
        rows = decode(TEXT, tensor("predict", shape, "BYTES", ["a", "b"]))
        assert rows.columns is not None
        assert rows.columns[0].tolist() == ["a", "b"]


def test_nan_in_json_is_null_as_tritonclient_sends_it() -> None:
    body = b'{"inputs":[{"name":"input","shape":[1,3],"datatype":"FP64","data":[1.0,NaN,0.0]}]}'
    rows = NUMERIC.decode_inference(body, None, "m", 3)[0]
    np.testing.assert_array_equal(matrix(rows), [[1, math.nan, 0]])


NUMBERS = (
    Input("a", "float64"),
    Input("b", "float64", nullable=True),
    Input("c", "int64"),
    Input("d", "int64", nullable=True, minimum=-128, maximum=127, enforced=True),
)


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "FP16", "INT8", "INT64", "UINT64"])
@pytest.mark.parametrize(
    "value", [0.0, 1.5, -1.0, 127.0, 128.0, 2.0**53 - 1, 2.0**53, -(2.0**53), 1e300, math.nan, math.inf]
)
def test_numbers_are_converted_at_once_as_they_are_one_by_one(
    datatype: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put the value in each feature in turn, as a matrix and as columns."""
    signature = Signature("regression", NUMBERS, (Output("value", "float64", (-1,)),))

    def rows_of(values: Any, by_name: bool) -> Any:
        tensors = [binary("t", [2, 4], datatype, values.nbytes)]
        data = values.tobytes()
        if by_name:
            tensors = [binary(i.name, [2], datatype, values.nbytes // 4) for i in NUMBERS]
            data = values.T.tobytes()
        try:
            return matrix(decode(Codec(signature), *tensors, binary=data)).tolist()
        except Invalid as error:
            return str(error)

    for column in range(len(NUMBERS)):
        with np.errstate(all="ignore"):
            numbers = np.zeros((2, 4))
            numbers[1, column] = value
            values = numbers.astype(DATATYPES[datatype])
        for by_name in (False, True):
            at_once = rows_of(values, by_name)
            with monkeypatch.context() as patched:
                patched.setattr(NumberMatrix, "fits", lambda columns: False)
                assert repr(rows_of(values, by_name)) == repr(at_once)


def test_ten_thousand_rows_are_accepted_and_one_more_is_not() -> None:
    values = np.zeros((10_001, 3))
    decode(NUMERIC, binary("x", [10_000, 3], "FP64", 240_000), binary=values[:-1].tobytes())
    message = fault(NUMERIC, binary("x", [10_001, 3], "FP64", values.nbytes), binary=values.tobytes())
    assert 'the input "x" has 10001 rows' in message


# Rejected ------------------------------------------------------------------------------------------------

ROW = [1.0, 2.0, 0.0]
INVALID_MATRICES: dict[str, dict[str, Any]] = {
    "has 0 rows": tensor("t", [0, 3], "FP64", []),
    "has shape [1, 2]; send all features as one tensor [rows, 3]": tensor("t", [1, 2], "FP64", [1, 2]),
    "has shape [3]": tensor("t", [3], "FP64", ROW),
    "has shape []": tensor("t", [], "FP64", 1),
    "has shape [1, 3, 1]": tensor("t", [1, 3, 1], "FP64", ROW),
    "has shape [-1, 3]": tensor("t", [-1, 3], "FP64", ROW),
    "has 1180591620717411303424 rows": tensor("t", [2**70, 3], "FP64", ROW),
    "has shape [1, 1180591620717411303424]": tensor("t", [1, 2**70], "FP64", ROW),
    "has 2 values; its shape [1, 3] needs 3": tensor("t", [1, 3], "FP64", ROW[:2]),
    "has 6 values": tensor("t", [1, 3], "FP64", ROW * 2),
    "nested unevenly": tensor("t", [2, 3], "FP64", [[1, 2, 0], [1, 2]]),
    "nested too deeply": tensor("t", [1, 3], "FP64", [[[[ROW]]]]),
    'datatype "BF16"': tensor("t", [1, 3], "BF16", ROW),
    'datatype "fp64"': tensor("t", [1, 3], "fp64", ROW),
    "is FP16, which only binary data can hold": tensor("t", [1, 3], "FP16", ROW),
    'is BYTES; the feature "a" is float64': tensor("t", [1, 3], "BYTES", ["1", "2", "0"]),
    'the value 1 of the input "t" is the string "2", not a number': tensor("t", [1, 3], "FP64", [1, "2", 0]),
    "is the boolean true, not a number": tensor("t", [1, 3], "FP64", [True, 2, 0]),
    "outside the range of FP32": tensor("t", [1, 3], "FP32", [1e39, 2, 0]),
    "outside the range of INT8": tensor("t", [1, 3], "INT8", [128, 2, 0]),
    "outside the range of UINT8": tensor("t", [1, 3], "UINT8", [-1, 2, 0]),
    "not an integer": tensor("t", [1, 3], "INT8", [1.5, 2, 0]),
    'instance 0: "c" is the number 2': tensor("t", [1, 3], "INT8", [1, 2, 2]),
    'instance 0: "b" is 2.5': tensor("t", [1, 3], "FP64", [1, 2.5, 0]),
    'instance 0: "a" is null': tensor("t", [1, 3], "FP64", [None, 2, 0]),
    "has no data": tensor("t", [1, 3], "FP64"),
    "is null; send a list": {**tensor("t", [1, 3], "FP64"), "data": None},
    "has data and binary_data_size": tensor("t", [1, 3], "FP64", ROW, parameters={"binary_data_size": 24}),
    "but only 0 bytes are left; send Inference-Header": binary("t", [1, 3], "FP64", 24),
    "the binary_data_size -1": binary("t", [1, 3], "FP64", -1),
    "the binary_data_size true": binary("t", [1, 3], "FP64", True),
    'has the parameter "shared_memory_region": shared memory is not supported': tensor(
        "t", [1, 3], "FP64", parameters={"shared_memory_region": "r"}
    ),
    'the content_type "base64"': tensor("t", [1, 3], "FP64", ROW, parameters={"content_type": "base64"}),
    "unknown field `values`": tensor("t", [1, 3], "FP64", ROW, values=ROW),
    "Expected `int`": tensor("t", [1.5, 3], "FP64", ROW),  # type: ignore[list-item]
}


@pytest.mark.parametrize(("message", "invalid"), INVALID_MATRICES.items(), ids=list(INVALID_MATRICES))
def test_an_invalid_tensor_is_rejected_with_its_name(message: str, invalid: dict[str, Any]) -> None:
    text = fault(NUMERIC, invalid)
    assert message in text
    assert '"t"' in text or "instance 0" in text or "$.inputs[0]" in text


def test_lists_nested_in_another_shape_are_rejected() -> None:
    invalid = tensor("t", [2, 3], "FP64", [[1, 2], [0, 1], [2, 0]])
    assert "is nested as [3, 2], but its shape is [2, 3]" in fault(NUMERIC, invalid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"age": tensor("age", [3], "FP64", [1, 2, 3])}, '"city" has 2 rows, but "age" has 3'),
        (
            {"age": tensor("age", [2, 2], "FP64", [1, 2, 3, 4])},
            '"age" has shape [2, 2]; send one value',
        ),
        ({"age": tensor("age", [2], "BYTES", ["1", "2"])}, 'input "age" is BYTES; it is float64'),
        ({"age": tensor("age", [2], "BOOL", [True, False])}, 'input "age" is BOOL; it is float64'),
        ({"note": tensor("note", [2], "INT8", [1, 2])}, 'input "note" is INT8; it is string, send BYTES'),
        ({"note": tensor("note", [2], "BYTES", ["a", None])}, 'instance 1: "note" is null'),
        ({"note": tensor("note", [2], "BYTES", ["a", 1])}, 'value 1 of the input "note" is the number 1'),
        (
            {"city": tensor("city", [2], "BYTES", ["Bern", "Rom"])},
            'instance 1: "city" is "Rom"',
        ),
        ({"visits": tensor("visits", [2], "INT16", [1, 256])}, 'instance 1: "visits" is 256'),
        ({"cty": tensor("cty", [2], "BYTES", ["a", "b"])}, '"cty" is not an input of this model'),
        ({"again": tensor("age", [2], "FP64", [1, 2])}, 'the input "age" occurs 2 times'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_feature_is_rejected_with_its_name(changes: dict[str, Any], message: str) -> None:
    assert message in fault(MIXED, *people(**changes))


def test_a_missing_feature_is_named_with_its_datatype() -> None:
    assert 'the input "visits" is missing; send INT64 of shape [rows]' in fault(MIXED, *people()[:-1])
    assert "there are no inputs" in fault(MIXED)


def test_the_columns_of_a_data_frame_are_named() -> None:
    message = fault(NUMERIC, tensor("t", [1, 3], "FP64", ROW), parameters={"content_type": "pd"})
    assert '"t" is not an input of this model' in message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(b"Bern"), "has 1 strings in its 8 bytes; its shape needs 2"),
        (packed(b"Bern", b"Bern") + b"x", "has 1 bytes after its 2 strings"),
        (packed(b"Bern") + struct.pack("<I", 2**32 - 1), "has 1 strings in its 12 bytes"),
        (packed(b"Bern", b"\xff"), "bytes that are not UTF-8, in the value 1"),
        (b"", "has 0 strings in its 0 bytes"),
    ],
    ids=["missing", "excess", "too long", "not UTF-8", "empty"],
)
def test_malformed_strings_are_rejected(data: bytes, message: str) -> None:
    text = fault(MIXED, *people(city=binary("city", [2], "BYTES", len(data))), binary=data)
    assert f'the input "city" {message}' in text or f'the input "city" holds {message}' in text


def test_binary_data_without_the_length_of_the_json_names_the_header() -> None:
    body = json.dumps({"inputs": [binary("t", [1, 3], "FP64", 24)]}).encode() + np.ones(3).tobytes()
    with pytest.raises(Invalid, match="needs the header Inference-Header-Content-Length"):
        NUMERIC.decode_inference(body, None, "m", 3)


def test_the_sizes_of_binary_data_must_match() -> None:
    rows = np.zeros((1, 3))
    head = binary("t", [1, 3], "FP64", 16)
    assert "FP64 of shape [1, 3] has 24 bytes" in fault(NUMERIC, head, binary=rows.tobytes()[:16])
    head = binary("t", [1, 3], "FP64", 24)
    assert "1 bytes follow the binary data" in fault(NUMERIC, head, binary=rows.tobytes() + b"x")
    assert "only 23 bytes are left" in fault(NUMERIC, head, binary=rows.tobytes()[:23])
    with pytest.raises(Invalid, match="but the body has 2 bytes"):
        NUMERIC.decode_inference(b"{}", 3, "m", 3)
    head = binary("c", [1], "BOOL", 1)
    separate = [tensor("a", [1], "FP64", [1]), tensor("b", [1], "FP64", [1]), head]
    assert "a BOOL that is not 0 or 1" in fault(NUMERIC, *separate, binary=b"\x02")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_missing_and_infinite_numbers_are_rejected_where_the_model_takes_none(value: float) -> None:
    data = np.array([[value, 1, 0]]).tobytes()
    message = fault(NUMERIC, binary("t", [1, 3], "FP64", 24), binary=data)
    assert 'instance 0: "a" is' in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output the number 1; send true or false"),
        ({"parameters": {"sequence_id": 1}}, 'the request has the parameter "sequence_id"'),
        (
            {"parameters": {"threshold": 0.3}},
            'has the parameter "threshold": it is not supported',
        ),
        ({"parameters": {"content_type": "pd_json"}}, 'the content_type "pd_json"'),
        ({"outputs": [{"name": "labels"}]}, "it has label, probabilities"),
        ({"outputs": [{"name": "label"}] * 2}, 'the output "label" is requested twice'),
        ({"outputs": [{"name": "label", "parameters": {"classification": 2}}]}, "classification"),
        ({"outputs": [{"name": "label", "parameters": {"binary_data": None}}]}, "binary_data null"),
        ({"outputs": [{"name": "label", "parameters": {"top_k": 1}}]}, '"top_k"'),
        ({"id": 7}, "Expected `str | null`, got `int` - at `$.id`"),
        ({"id": "\ud800"}, "the id is not valid Unicode"),
        ({"model_name": "other"}, 'model_name is "other", but the URL\'s is "m"'),
        ({"model_version": "4"}, 'model_version is "4"'),
        ({"signature": 1}, "unknown field `signature`"),
    ],
    ids=str,
)
def test_what_would_change_the_answer_and_is_not_supported_is_rejected(
    fields: dict[str, Any], message: str
) -> None:
    assert message in fault(NUMERIC, tensor("t", [1, 3], "FP64", ROW), **fields)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"inputs": 1}',
        b'{"inputs": [1]}',
        b'{"inputs": "\\ud800"}',
        b"\xff",
        b'{"inputs":' + b"[" * 100_000,
        b'{"inputs":[],"inputs":[]}',
        b'{"inputs":[{"name":"t","shape":[1,3],"datatype":"FP64","data":[1,2,0],"data":[1,2,1]}]}',
        b'{"inputs":[{"name":"t","shape":[1,3],"datatype":"FP64","data":[Infinity,2,0]}]}',
        b'{"inputs":[{"name":"t","shape":[1,3],"datatype":"FP64","data":[1e999,2,0]}]}',
        b'{"inputs":[{"name":"t","shape":[1,3],"datatype":"FP64","data":[' + b"9" * 500 + b",2,0]}]}",
        b'{"inputs":[{"name":"t","shape":[1,3],"datatype":"FP64","data":[{"a":1},2,0]}]}',
    ],
)
def test_a_body_that_is_no_request_is_rejected(body: bytes) -> None:
    with pytest.raises(Invalid) as caught:
        NUMERIC.decode_inference(body, None, "m", 3)
    str(caught.value).encode()


# Answers -------------------------------------------------------------------------------------------------

OUTPUTS = {
    "label": np.array(["yes", "né"], dtype=object),
    "probabilities": np.array([[0.25, 0.75], [math.nan, 1.0]]),
}


def answer(fields: dict[str, Any]) -> InferenceAnswer:
    body = json.dumps({"inputs": [tensor("t", [1, 3], "FP64", ROW)], **fields}).encode()
    form = NUMERIC.decode_inference(body, None, "m", 3)[1]
    return NUMERIC.encode_inference(OUTPUTS, form, "m", 3, "pred-1")


def test_all_outputs_are_answered_in_json_with_the_predictions_id() -> None:
    encoded = answer({})
    assert encoded.json_bytes is None
    assert json.loads(encoded.body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "pred-1",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["yes", "né"]},
            {"name": "probabilities", "datatype": "FP64", "shape": [2, 2], "data": [0.25, 0.75, None, 1.0]},
        ],
    }


def test_requested_outputs_are_answered_in_their_order_in_json_or_binary() -> None:
    wanted = [{"name": "probabilities", "parameters": {"binary_data": False}}, {"name": "label"}]
    encoded = answer({"outputs": wanted, "id": "q", "parameters": {"binary_data_output": True}})
    assert encoded.json_bytes is not None
    head, data = json.loads(encoded.body[: encoded.json_bytes]), encoded.body[encoded.json_bytes :]
    assert head["id"] == "q"
    assert [o["name"] for o in head["outputs"]] == ["probabilities", "label"]
    assert head["outputs"][0]["data"] == [0.25, 0.75, None, 1.0]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": len(data)}
    assert data == packed(b"yes", "né".encode())


def test_numbers_are_answered_in_binary_as_little_endian() -> None:
    encoded = answer({"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]})
    assert encoded.body[encoded.json_bytes :] == OUTPUTS["probabilities"].astype("<f8").tobytes()


def test_the_metadata_describes_tensors_that_are_accepted_and_answered() -> None:
    (described,) = describe_inputs(NUMERIC.signature)
    assert described == {
        "name": "input",
        "datatype": "FP64",
        "shape": [-1, 3],
        "parameters": {"features": '["a", "b", "c"]'},
    }
    assert [(i["name"], i["datatype"], i["shape"]) for i in describe_inputs(MIXED.signature)] == [
        ("age", "FP64", [-1]),
        ("city", "BYTES", [-1]),
        ("note", "BYTES", [-1]),
        ("visits", "INT64", [-1]),
    ]
    assert describe_outputs(MIXED.signature) == [
        {"name": "value", "datatype": "FP32", "shape": [-1, 2], "parameters": {"classes": '["y0", "y1"]'}}
    ]
