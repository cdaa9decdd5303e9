"""JSON bodies: accepted values, and the fault of each rejected one."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from registry.errors import FieldError, Invalid
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.runtime.codec import MAX_INSTANCES, Codec
from service.runtime.codec import json as json_codec

VALUE = (Output("value", "float64", (-1,)),)


def codec(*inputs: Input) -> Codec:
    return Codec(Signature("regression", inputs, VALUE))


def body(*instances: Any) -> bytes:
    return json.dumps({"instances": instances}).encode()


def faults(decoder: Codec, raw: bytes) -> tuple[FieldError, ...]:
    with pytest.raises(Invalid) as caught:
        decoder.decode_json(raw)
    assert caught.value.errors
    return caught.value.errors


def fault(decoder: Codec, raw: bytes) -> FieldError:
    (only,) = faults(decoder, raw)
    return only


def matrix(rows: Rows) -> list[list[float]]:
    assert rows.matrix is not None
    assert rows.matrix.dtype == np.float64
    assert rows.matrix.flags.c_contiguous
    assert rows.matrix.flags.writeable
    listed: list[list[float]] = rows.matrix.tolist()
    return listed


AGE = Input("age", "float64", example=39.0)
MIXED = codec(
    Input("age", "float64", nullable=True),
    Input("visits", "int64"),
    Input("home town", "string", nullable=True),
    Input("member", "bool"),
    Input("score", "float32"),
)


def test_numbers_form_one_matrix_in_the_signatures_order() -> None:
    mixed_codec = codec(AGE, Input("visits", "int64"), Input("member", "bool"))
    rows = mixed_codec.decode_json(
        body({"member": True, "age": 1.5, "visits": 2}, {"visits": 3, "age": 4, "member": False})
    )
    assert matrix(rows) == [[1.5, 2, 1], [4, 3, 0]]


def test_rows_with_a_string_feature_are_one_array_per_column() -> None:
    rows = MIXED.decode_json(
        body(
            {"age": None, "visits": 39.0, "home town": "Ørsta", "member": True, "score": 0.1},
            {"age": 2, "visits": -(2**63), "home town": None, "member": False, "score": 1},
        )
    )
    assert rows.columns is not None
    assert [c.dtype for c in rows.columns] == [np.float64, np.int64, object, np.bool_, np.float32]
    age, visits, town, member, score = (c.tolist() for c in rows.columns)
    assert np.isnan(age[0])
    assert (age[1], visits, town, member) == (2, [39, -(2**63)], ["Ørsta", None], [True, False])
    assert score == [float(np.float32(0.1)), 1]


@pytest.mark.parametrize(
    "name", ["a.b", "a b", "é", "", "naïve café.v2 (µ)", "instances", "f0", 'a"b', "a\\b", "a\nb"]
)
def test_any_feature_name_can_be_sent(name: str) -> None:
    rows = codec(Input(name, "float64"), Input("other", "float64")).decode_json(body({name: 1, "other": 2}))
    assert matrix(rows) == [[1, 2]]


@pytest.mark.parametrize("features", [1, 2, 500])
def test_signatures_of_one_two_and_five_hundred_features_can_be_decoded(features: int) -> None:
    wide_codec = codec(*(Input(f"x{i}", "float64") for i in range(features)))
    rows = wide_codec.decode_json(body({f"x{i}": i for i in range(features)}))
    assert matrix(rows) == [list(range(features))]


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float64", "1" + "0" * 300),
        ("float64", "-1e-400"),
        ("float64", "9223372036854775808"),
        ("int64", "39.0"),
        ("int64", "1e3"),
        ("int64", "9007199254740991"),
        ("int64", "-9007199254740991"),
        ("float32", "3.4e38"),
    ],
)
def test_numbers_in_the_range_of_the_dtype_are_accepted_by_the_fast_decoder(dtype: Any, text: str) -> None:
    raw = b'{"instances":[{"x":%s}]}' % text.encode()
    column = codec(Input("x", dtype))
    fast = column._json.decode_fast(raw)
    assert fast is not None
    assert matrix(fast) == matrix(column._json.decode_slowly(raw))


@pytest.mark.parametrize(
    ("dtype", "text", "message"),
    [
        ("float64", "1e400", "outside the range of float64"),
        ("float64", "1" + "0" * 400, "outside the range of float64"),
        ("float64", "-1" + "0" * 5000, "outside the range of float64"),
        ("float32", "1e39", "outside the range of float32"),
        ("int64", "9223372036854775808", "outside the range of int64"),
        ("int64", "1e19", "outside the range of int64"),
        ("int64", "9007199254740992", "beyond 9007199254740991 the model's float64 cannot distinguish"),
        ("int64", "-9007199254740993.0", "beyond 9007199254740991 the model's float64"),
        ("int64", "39.5", "not a whole number"),
        ("float64", "true", "the boolean true"),
        ("int64", "false", "the boolean false"),
        ("bool", "1", "the number 1"),
        ("bool", '"true"', 'the string "true"'),
        ("float64", '"1"', 'the string "1"'),
        ("string", "1", "the number 1"),
        ("string", "true", "the boolean true"),
        ("string", '"\\ud800"', "half of a surrogate pair"),
        ("float64", "[1]", "a list"),
        ("string", "{}", "an object"),
        ("float64", "null", "takes no missing values"),
        ("string", "null", "takes no missing values"),
        ("float64", "NaN", "which is not valid JSON"),
        ("int64", "-Infinity", "which is not valid JSON"),
    ],
)
def test_a_value_of_another_type_is_rejected_with_its_place(dtype: Any, text: str, message: str) -> None:
    field_error = fault(codec(Input("x", dtype)), b'{"instances":[{"x":%s}]}' % text.encode())
    assert (field_error.instance, field_error.field) == (0, "x")
    assert field_error.expected
    assert message in field_error.message


def test_the_message_shows_the_example() -> None:
    assert fault(codec(AGE), body({"age": "x"})).message == (
        '"age" is the string "x"; send a number, such as 39.0'
    )


def test_the_message_about_nan_in_a_nullable_column_suggests_null() -> None:
    field_error = fault(codec(Input("x", "float64", nullable=True)), b'{"instances":[{"x":NaN}]}')
    assert field_error.message == '"x" is NaN, which is not valid JSON; send null'


def test_missing_and_unknown_fields_are_named_with_the_closest_match() -> None:
    missing, unknown = faults(codec(AGE, Input("visits", "int64")), body({"age": 1, "visit": 2}))
    assert (missing.instance, missing.field, missing.expected) == (0, "visits", "an integer")
    assert "missing" in missing.message
    assert (unknown.instance, unknown.field) == (0, "visit")
    assert 'did you mean "visits"?' in unknown.message


def test_all_faults_are_collected_in_order() -> None:
    errors = faults(codec(AGE), body({"age": "x"}, {"age": 1}, {"age": None}, 7))
    assert [(f.instance, f.field) for f in errors] == [(0, "age"), (2, "age"), (3, None)]


def test_at_most_a_hundred_faults_are_reported() -> None:
    assert len(faults(codec(AGE), body(*[{"age": "x"}] * 500))) == 100


@pytest.mark.parametrize(
    ("dtype", "categories", "good", "bad"),
    [
        ("string", ("red", "blue"), "red", "green"),
        ("int64", (1, 2), 2.0, 3),
        ("float64", (0.5, 1.5), 1.5, 1.0),
        ("float32", (0.1, 0.2), 0.1, 0.3),
        ("bool", (True,), True, False),
    ],
)
@pytest.mark.parametrize("nullable", [True, False])
def test_closed_categories_reject_other_values(
    dtype: Any, categories: Any, good: Any, bad: Any, nullable: bool
) -> None:
    closed = codec(Input("c", dtype, nullable=nullable, categories=categories, closed=True))
    content = body({"c": good}, {"c": None}) if nullable else body({"c": good})
    assert closed._json.decode_fast(content) is not None
    field_error = fault(closed, body({"c": good}, {"c": bad}))
    assert (field_error.instance, field_error.field) == (1, "c")
    assert "one of" in (field_error.expected or "")


def test_open_categories_accept_every_value() -> None:
    assert codec(Input("c", "string", categories=("a",))).decode_json(body({"c": "zzz"})).columns is not None


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"{", "cannot be read as JSON"),
        (b'{"instances":[{"age":1}]} x', "cannot be read as JSON"),
        (b'{"instances":[{"age":\xff}]}', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"instances":' + b'{"a":' * 100_000, "nested too deeply"),
        (b"[]", "the body is a list"),
        (b"null", "the body is null"),
        (b'"x"', "the body is the string"),
        (b"{}", '"instances" is missing'),
        (b'{"instances":{}}', '"instances" is an object'),
        (b'{"instances":[]}', "there are no instances"),
        (b'{"instances":[{"age":1}],"instance":1}', 'did you mean "instances"?'),
        (b'{"instances":[[1,2]]}', "the instance has 2 values"),
        (b'{"instances":[{"age":1}],"\\ud800":1}', "is not a field of this call"),
        (b'{"instances":[{"age":1,"\\udfff":1}]}', "not a feature of this model"),
    ],
)
def test_a_malformed_body_is_rejected_with_the_reason(raw: bytes, message: str) -> None:
    field_error = fault(codec(AGE), raw)
    assert message in field_error.message
    json.dumps([field_error.message, field_error.field], ensure_ascii=False).encode()


def test_up_to_ten_thousand_instances_are_accepted() -> None:
    assert len(codec(AGE).decode_json(body(*[{"age": 1}] * MAX_INSTANCES))) == MAX_INSTANCES
    field_error = fault(codec(AGE), body(*[{"age": 1}] * (MAX_INSTANCES + 1)))
    assert field_error.field == "instances"
    assert "10001" in field_error.message


@pytest.mark.parametrize(
    ("text", "instance", "field"),
    [
        ('{"instances":[{"age":1},{"age":1,"age":2}]}', 1, "age"),
        ('{"instances":[{"age":1},{"age":1,"\\u0061ge":1}]}', 1, "age"),
        ('{"instances":[{"age":"x","age":2}]}', 0, "age"),
        ('{"instances":[{"age":1}],"instances":[{"age":2}]}', None, "instances"),
        ('{"instances":[{"age":1},{"age":1,"age":2}]}' + " " * 9 * 2**20, 1, "age"),
    ],
    ids=["plain", "escaped", "of another type", "instances", "in a large body"],
)
def test_a_repeated_key_is_rejected(text: str, instance: int | None, field: str) -> None:
    field_error = fault(codec(AGE), text.encode())
    assert (field_error.instance, field_error.field) == (instance, field)
    assert field_error.message == f'"{field}" is repeated; send it once'


@pytest.mark.parametrize("name", ["a", "a:b", 'a":b', "a::"])
@pytest.mark.parametrize("value", ["12:30", 'a":', '"a": 1', "\\", ':"', '\\":'])
def test_colons_and_quotes_in_names_and_text_are_no_repeated_keys(name: str, value: str) -> None:
    text_codec = codec(Input(name, "string"))
    rows = text_codec.decode_json(body({name: value}, {name: value + ":"}))
    assert rows.columns is not None
    assert rows.columns[0].tolist() == [value, value + ":"]
    content = json.dumps({name: value})
    repeated = f'{{"instances":[{content[:-1]},{content[1:]}]}}'.encode()
    assert "is repeated" in fault(text_codec, repeated).message


def test_a_byte_order_mark_is_tolerated() -> None:
    assert matrix(codec(AGE).decode_json(b"\xef\xbb\xbf" + body({"age": 1}))) == [[1]]


def test_only_the_first_fault_of_a_large_body_is_reported() -> None:
    padding = b" " * (8 * 2**20)
    field_error = fault(codec(AGE), b'{"instances":[{"age":1},{"age":"x"},{}]%s}' % padding)
    assert (field_error.instance, field_error.field) == (1, "age")
    missing = fault(codec(AGE), b'{"instances":[{"age":1},{}]%s}' % padding)
    assert (missing.instance, missing.field) == (1, None)
    assert "age" in missing.message
    large_fault = fault(codec(AGE), body(*[{"age": 1}] * (MAX_INSTANCES + 1)) + padding)
    assert large_fault.field == "instances"
    assert "send 1 to 10000" in large_fault.message
    assert "malformed" in fault(codec(AGE), b"x" + padding).message
    assert matrix(codec(AGE).decode_json(b'{"instances":[{"age":1}]%s}' % padding)) == [[1]]


def test_a_body_is_decoded_slowly_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = body({"age": "x"}, {"age": "y"})
    monkeypatch.setattr(json_codec, "MAX_SLOW_BYTES", len(raw))
    assert len(faults(codec(AGE), raw)) == 2
    monkeypatch.setattr(json_codec, "MAX_SLOW_BYTES", len(raw) - 1)
    assert fault(codec(AGE), raw).message.startswith("the body is refused")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1" * 399, int("1" * 399)), ("-" + "1" * 398, -int("1" * 398)), ("1" * 400, math.inf),
        ("-" + "1" * 399, -math.inf), ("0", 0),
    ],
)  # fmt: skip
def test_integers_below_400_characters_are_exact(text: str, value: float) -> None:
    assert json_codec._integer(text) == value


@pytest.mark.parametrize("instances", [1, 3])
def test_one_instance_to_the_limit_is_accepted(instances: int) -> None:
    rows = json_codec.JsonRows(codec(AGE).columns, 3)
    raw = body(*[{"age": 1}] * instances)
    assert len(rows.decode(raw)) == len(rows.decode_slowly(raw)) == instances
    for count in (0, 4):
        raw = body(*[{"age": 1}] * count)
        with pytest.raises(msgspec.ValidationError):
            rows.decode_fast(raw)
        with pytest.raises(Invalid, match=f"there are {count or 'no'} instances"):
            rows.decode_slowly(raw)


def test_an_int64_beside_text_keeps_every_digit_in_json() -> None:
    with_text = codec(Input("n", "int64"), Input("s", "string"))
    numbers = [2**53 + 1, -(2**63), 2**63 - 1]
    raw = body(*({"n": n, "s": "x"} for n in numbers))
    for rows in (with_text._json.decode_fast(raw), with_text._json.decode_slowly(raw)):
        assert rows is not None
        assert rows.columns is not None
        assert rows.columns[0].tolist() == numbers
    for beyond in (
        "9223372036854775808",
        "-9223372036854775809",
        "9223372036854775807.0",
        "-9223372036854777856.0",
    ):
        field_error = fault(with_text, b'{"instances":[{"n":%s,"s":"x"}]}' % beyond.encode())
        assert "outside the range of int64" in field_error.message


def test_reading_ends_after_a_hundred_faults_of_one_instance() -> None:
    """Also of unknown fields, which are looked up among the missing ones."""
    unknown = {f"u{i}": 1 for i in range(150)}
    errors = faults(codec(AGE), body({"age": 1} | unknown, {"age": "x"}))
    assert len(errors) == 100
    assert {f.instance for f in errors} == {0}


def test_instances_may_be_lists_in_the_order_of_the_features() -> None:
    decoder = codec(Input("b", "float64", nullable=True), Input("a", "int64"), Input("c", "bool"))
    expected = [[1.5, 2.0, 1.0], [2.0, 3.0, 0.0]]
    assert matrix(decoder.decode_json(body([1.5, 2, True], [2, 3, False]))) == expected
    assert matrix(decoder.decode_json(body([1.5, 2, True], {"c": False, "a": 3, "b": 2}))) == expected
    text = codec(Input("b", "string"), Input("a", "float32")).decode_json(body(["x:y", 0.5]))
    assert text.columns is not None
    assert [column.tolist() for column in text.columns] == [["x:y"], [0.5]]


@pytest.mark.parametrize(
    ("instance", "message", "field"),
    [
        ([1.0], "the instance has 1 values; send 2 values: b, a", None),
        ([1.0, 2, 3], "the instance has 3 values; send 2 values: b, a", None),
        ([], "the instance has 0 values", None),
        ([1.0, 2.5], '"a" is 2.5, not a whole number', "a"),
        ([None, 2], '"b" is null', "b"),
        ([[1.0], 2], '"b" is a list', "b"),
    ],
    ids=str,
)
def test_an_invalid_list_is_rejected_with_its_place(instance: Any, message: str, field: str | None) -> None:
    decoder = codec(Input("b", "float64"), Input("a", "int64"))
    found = fault(decoder, body([1.0, 2], instance))
    assert (found.instance, found.field) == (1, field)
    assert message in found.message


def test_lists_are_decoded_fast_and_repeated_keys_beside_them_are_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = codec(Input("b", "float64"), Input("a", "float64"))
    repeated = b'{"instances":[[1,2]],"instances":[[1,3]]}'
    assert "repeated" in fault(decoder, repeated).message
    monkeypatch.setattr(json_codec.JsonRows, "decode_slowly", None)
    assert matrix(decoder.decode_json(body([1, 2]))) == [[1.0, 2.0]]
