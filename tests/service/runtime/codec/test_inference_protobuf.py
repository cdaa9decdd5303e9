"""gRPC messages of the Open Inference Protocol to rows, and outputs to messages."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest

from registry.errors import Invalid
from registry.rows import Rows
from service.runtime.codec import MAX_INSTANCES, Codec
from service.runtime.codec import inference_messages as messages
from tests.service.runtime.codec.test_inference import MIXED, NUMERIC, TEXT, matrix, packed

ROWS = [[1.5, 2.0, 1.0], [2.5, 4.0, 0.0]]
FIELDS = {
    "FP64": "fp64_contents",
    "FP32": "fp32_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}


def tensor(name: str, shape: list[int], datatype: str, values: Any = None, **fields: Any) -> dict[str, Any]:
    """An input; `values` go into the field of the datatype."""
    described = {"name": name, "shape": shape, "datatype": datatype, **fields}
    if values is not None:
        described["contents"] = {FIELDS[datatype]: values}
    return described


def encoded(*inputs: dict[str, Any], **fields: Any) -> bytes:
    message: bytes = messages.ModelInferRequest(
        model_name="m", inputs=list(inputs), **fields
    ).SerializeToString()
    return message


def decode(codec: Codec, *inputs: dict[str, Any], **fields: Any) -> Rows:
    return codec.messages.decode(encoded(*inputs, **fields))[0]


def fault(codec: Codec, *inputs: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(Invalid) as caught:
        decode(codec, *inputs, **fields)
    assert caught.value.errors
    return str(caught.value)


def people(**changes: Any) -> list[dict[str, Any]]:
    inputs = {
        "age": tensor("age", [2], "FP64", [40.5, float("nan")]),
        "city": tensor("city", [2, 1], "BYTES", [b"Bern", "Genève".encode()]),
        "note": tensor("note", [2], "BYTES", [b"", b"b"]),
        "visits": tensor("visits", [2], "UINT8", [0, 255]),
    }
    return list((inputs | changes).values())


# Accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "field"), [(d, f) for d, f in FIELDS.items() if d not in ("BYTES", "BOOL")]
)
def test_typed_and_raw_values_of_each_number_datatype_are_the_same_rows(datatype: str, field: str) -> None:
    values = np.array([[1, 2, 1], [3, 4, 0]], dtype=np.dtype(_numpy_name(datatype)))
    typed = decode(NUMERIC, tensor("input", [2, 3], datatype, values.ravel().tolist()))
    raw = decode(NUMERIC, tensor("input", [2, 3], datatype), raw_input_contents=[values.tobytes()])
    np.testing.assert_array_equal(matrix(typed), values.astype(float))
    np.testing.assert_array_equal(matrix(raw), matrix(typed))


def _numpy_name(datatype: str) -> str:
    return datatype.lower().replace("fp", "float")


def test_half_precision_is_read_from_raw_values() -> None:
    values = np.array([ROWS[0]], dtype=np.float16)
    rows = decode(NUMERIC, tensor("input", [1, 3], "FP16"), raw_input_contents=[values.tobytes()])
    np.testing.assert_array_equal(matrix(rows), [ROWS[0]])


def test_features_of_each_type_are_separate_inputs() -> None:
    rows = decode(MIXED, *people())
    raw = [
        struct.pack("<2d", 40.5, float("nan")),
        packed(b"Bern", "Genève".encode()),
        packed(b"", b"b"),
        b"\0\xff",
    ]
    same = decode(MIXED, *(i | {"contents": {}} for i in people()), raw_input_contents=raw)
    for columns in (rows.columns, same.columns):
        assert columns is not None
        assert [list(c) for c in columns[1:]] == [["Bern", "Genève"], ["", "b"], [0, 255]]
        assert np.isnan(columns[0][1])


def test_a_data_frame_of_one_row_is_read_by_column() -> None:
    inputs = [
        tensor("a", [1], "FP64", [1.5]),
        tensor("b", [1], "INT64", [2]),
        tensor("c", [1], "BOOL", [True]),
    ]
    rows = decode(NUMERIC, *inputs, parameters={"content_type": {"string_param": "pd"}})
    np.testing.assert_array_equal(matrix(rows), [ROWS[0]])


def test_ten_thousand_rows_of_strings_are_read() -> None:
    texts = [b"a text of some bytes"] * MAX_INSTANCES
    rows = decode(TEXT, tensor("text", [MAX_INSTANCES], "BYTES", texts))
    assert len(rows) == MAX_INSTANCES


# Answers -------------------------------------------------------------------------------------------------

LABELS = {
    "label": np.array(["no", "yes"], dtype=object),
    "probabilities": np.array([[0.75, 0.25], [0.5, 0.5]]),
}


def answer(**fields: Any) -> Any:
    """The answer to `ROWS`, which are raw in the request if `raw_input_contents` is among the fields."""
    values = None if "raw_input_contents" in fields else np.ravel(ROWS).tolist()
    _, form = NUMERIC.messages.decode(encoded(tensor("input", [2, 3], "FP64", values), **fields))
    body = NUMERIC.messages.encode(LABELS, form, "m", 3, "pred-1")
    return messages.parse(messages.ModelInferResponse, body)


def test_an_answer_is_typed_or_raw_as_its_request() -> None:
    typed = answer()
    assert (typed.model_name, typed.model_version, typed.id) == ("m", "3", "pred-1")
    label, probabilities = typed.outputs
    assert (label.name, label.datatype, list(label.shape)) == ("label", "BYTES", [2])
    assert list(label.contents.bytes_contents) == [b"no", b"yes"]
    assert (probabilities.datatype, list(probabilities.shape)) == ("FP64", [2, 2])
    assert list(probabilities.contents.fp64_contents) == [0.75, 0.25, 0.5, 0.5]
    assert not typed.raw_output_contents

    raw = answer(raw_input_contents=[np.array(ROWS).tobytes()], id="7")
    assert raw.id == "7"
    assert [o.HasField("contents") for o in raw.outputs] == [False, False]
    assert raw.raw_output_contents == [packed(b"no", b"yes"), LABELS["probabilities"].tobytes()]


def test_a_parameter_selects_raw_answers() -> None:
    assert answer(parameters={"binary_data_output": {"bool_param": True}}).raw_output_contents


def test_the_requested_outputs_are_answered_in_their_order() -> None:
    requested = [{"name": "probabilities"}, {"name": "label"}]
    assert [o.name for o in answer(outputs=requested).outputs] == ["probabilities", "label"]
    assert [o.name for o in answer(outputs=requested[:1]).outputs] == ["probabilities"]


# Rejected ------------------------------------------------------------------------------------------------

ROW = [1.0, 2.0, 0.0]
INVALID = {
    'the input "t" has the datatype "FP8"': [{"name": "t", "shape": [1, 3], "datatype": "FP8"}],
    'the input "t" has the datatype ""': [{"name": "t", "shape": [1, 3]}],
    "has shape [1, 4]": [tensor("t", [1, 4], "FP64", ROW)],
    "has shape []": [tensor("t", [], "FP64", ROW)],
    "has shape [-1, 3]": [tensor("t", [-1, 3], "FP64", ROW)],
    "has 0 rows": [tensor("t", [0, 3], "FP64", [])],
    "has 10001 rows": [tensor("t", [10_001, 3], "FP64", ROW)],
    f"has {2**62} rows": [tensor("t", [2**62, 3], "FP64", ROW)],
    "has 2 values; its shape [1, 3] needs 3": [tensor("t", [1, 3], "FP64", ROW[:2])],
    "has 0 values; its shape [1, 3] needs 3": [tensor("t", [1, 3], "FP64")],
    "has 3 values in fp32_contents; the values of FP64 belong in fp64_contents": [
        {"name": "t", "shape": [1, 3], "datatype": "FP64", "contents": {"fp32_contents": ROW}}
    ],
    "FP16, which only raw_input_contents can hold": [{"name": "t", "shape": [1, 3], "datatype": "FP16"}],
    'the value 1 of the input "t" is 128, outside the range of INT8': [
        tensor("t", [1, 3], "INT8", [1, 128, 0])
    ],
    'the value 0 of the input "t" is 65536, outside the range of UINT16': [
        tensor("t", [1, 3], "UINT16", [65536, 1, 0])
    ],
    'instance 0: "a" is null': [tensor("t", [1, 3], "FP64", [float("nan"), 2, 0])],
    'instance 0: "a" is ': [tensor("t", [1, 3], "FP64", [float("inf"), 2, 0])],
    "there are no inputs": [],
}


@pytest.mark.parametrize(("message", "inputs"), INVALID.items(), ids=list(INVALID))
def test_an_invalid_tensor_is_rejected_with_its_name(message: str, inputs: list[dict[str, Any]]) -> None:
    assert message in fault(NUMERIC, *inputs)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([b"\0" * 16], 'the input "t" has 16 bytes of binary data; FP64 of shape [1, 3] has 24 bytes'),
        ([b"\0" * 32], "has 32 bytes"),
        ([b""], "has 0 bytes"),
        ([b"", b""], "raw_input_contents has 2 entries for 1 inputs"),
    ],
    ids=["short", "long", "empty", "two"],
)
def test_raw_values_of_another_size_are_rejected(raw: list[bytes], message: str) -> None:
    assert message in fault(NUMERIC, tensor("t", [1, 3], "FP64"), raw_input_contents=raw)


def test_an_input_has_typed_or_raw_values() -> None:
    text = fault(NUMERIC, tensor("t", [1, 3], "FP64", ROW), raw_input_contents=[b"\0" * 24])
    assert 'the input "t" has contents, but the request has raw_input_contents' in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": [{"name": "score"}]}, 'the output "score" is not an output of this model'),
        ({"outputs": [{"name": "label"}] * 2}, 'the output "label" is requested twice'),
        (
            {"outputs": [{"name": "label", "parameters": {"classification": {"int64_param": 1}}}]},
            "classification, which is not supported",
        ),
        ({"parameters": {"sequence_id": {"int64_param": 1}}}, "models have no state"),
        ({"parameters": {"content_type": {}}, "outputs": [{"name": "x"}]}, 'the output "x"'),
        ({"parameters": {"binary_data_output": {"int64_param": 1}}}, "send true or false"),
    ],
    ids=["unknown output", "repeated output", "classification", "sequence", "no value", "not boolean"],
)
def test_outputs_and_parameters_are_checked_as_over_rest(fields: dict[str, Any], message: str) -> None:
    assert message in fault(NUMERIC, tensor("t", [1, 3], "FP64", ROW), **fields)


def test_strings_that_are_not_utf_8_are_named() -> None:
    changed = people(note=tensor("note", [2], "BYTES", [b"a", b"\xff"]))
    assert 'the input "note" holds bytes that are not UTF-8, in the value 1' in fault(MIXED, *changed)


def _nested(number: int, data: bytes) -> bytes:
    """A field that holds `data`."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@pytest.mark.parametrize(
    "message",
    [
        _nested(5, b"") * 200_000,
        _nested(7, b"") * 200_000,
        _nested(6, b"") * 200_000,
        _nested(4, b"") * 200_000,
        _nested(5, _nested(3, b"\1" * 200_000)),
        _nested(5, _nested(4, b"") * 200_000),
        _nested(5, _nested(5, _nested(1, b"\1" * 2_000_000))),
        _nested(5, _nested(5, _nested(8, b"") * 1_000_000)),
        _nested(5, _nested(5, b"\x10\1" * 1_000_000)),
    ],
    ids=[
        "inputs",
        "raw",
        "outputs",
        "parameters",
        "sizes",
        "of inputs",
        "numbers",
        "strings",
        "single numbers",
    ],
)
def test_more_parts_than_a_request_can_have_are_rejected_before_they_are_parsed(
    message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "parse", None)
    with pytest.raises(Invalid, match=r"the request has more (tensors|values)"):
        NUMERIC.messages.decode(message)


def test_the_longest_request_of_a_model_is_within_the_bounds() -> None:
    texts = ["a text longer than ten bytes, and thé last".encode() * 2] * MAX_INSTANCES
    inputs = people(
        age=tensor("age", [MAX_INSTANCES], "FP64", [1.0] * MAX_INSTANCES),
        city=tensor("city", [MAX_INSTANCES], "BYTES", [b"Bern"] * MAX_INSTANCES),
        note=tensor("note", [MAX_INSTANCES], "BYTES", texts),
        visits=tensor("visits", [MAX_INSTANCES], "INT64", [7] * MAX_INSTANCES),
    )
    assert len(decode(MIXED, *inputs)) == MAX_INSTANCES


def test_every_cut_or_changed_message_is_decoded_or_invalid() -> None:
    """Messages of the clients' form, with bytes changed, removed and repeated at random places."""
    generator = random.Random(5)
    valid = [
        (
            NUMERIC,
            encoded(
                tensor("t", [2, 3], "FP64", np.ravel(ROWS).tolist()), id="7", outputs=[{"name": "label"}]
            ),
        ),
        (NUMERIC, encoded(tensor("t", [1, 3], "INT8"), raw_input_contents=[b"\1\2\0"])),
        (MIXED, encoded(*people(), parameters={"content_type": {"string_param": "pd"}})),
    ]
    invalid = 0
    for codec, message in valid:
        cut = [message[:end] for end in range(len(message))]
        for mutated in [*cut, *(_mutate(message, generator) for _ in range(1000))]:
            try:
                rows, form = codec.messages.decode(mutated)
            except Invalid:
                invalid += 1
            else:
                assert 1 <= len(rows) <= MAX_INSTANCES
                assert form.outputs
    assert invalid > 1000


def _mutate(message: bytes, generator: random.Random) -> bytes:
    changed = bytearray(message)
    for _ in range(generator.randint(1, 3)):
        at = generator.randrange(len(changed))
        kind = generator.randrange(3)
        if kind == 0:
            changed[at] = generator.randrange(256)
        elif kind == 1:
            del changed[at : at + generator.randint(1, 4)]
        else:
            changed[at:at] = changed[at : at + generator.randint(1, 8)]
    return bytes(changed)
