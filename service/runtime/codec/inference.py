"""Bodies of the Open Inference Protocol over REST: JSON, and the binary tensor extension.

A body is a JSON object, and after it the values of the tensors that have `binary_data_size`, in their order.
The header `Inference-Header-Content-Length` is then the length of the JSON. An answer has the same form: in
JSON, or with the values of the outputs that the request wants in binary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np

from registry.errors import Invalid, invalid_field
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.runtime.codec.columns import Column, describe_value, escape_surrogates, show
from service.runtime.codec.inference_request import (
    AnswerForm,
    Parameters,
    RequestedOutput,
    check_input_parameters,
    check_request_parameters,
    read_answer_form,
    read_binary_values,
    size_of,
    to_binary,
)
from service.runtime.codec.json import NonFiniteLiteral
from service.runtime.codec.strict_json import max_items, read_body
from service.runtime.codec.tensors import DATATYPES, TensorHead, TensorOutputs, TensorRows, TensorValues

MAX_NESTING = 4
"""Levels of lists in JSON data: a shape has at most two sizes."""


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters = None
    data: Any = msgspec.UNSET


class _RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: Parameters = None


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_Input]
    id: str | None = None
    outputs: list[_RequestedOutput] | None = None
    parameters: Parameters = None
    model_name: str | None = None
    model_version: str | None = None


class InferenceAnswer(NamedTuple):
    body: bytes
    json_bytes: int | None
    """The length of the JSON before the binary data, or None if there is none."""


class InferenceCodec:
    """The decoder and encoder of one signature. Thread-safe."""

    def __init__(self, signature: Signature, columns: Sequence[Column], max_rows: int) -> None:
        self._rows = TensorRows(columns, max_rows)
        self._outputs = TensorOutputs(signature)
        self._max_items = max_items(max_rows, len(columns))

    def decode(self, body: bytes, json_bytes: int | None, name: str, version: int) -> tuple[Rows, AnswerForm]:
        """Return the rows, and the form of the answer.

        `json_bytes` is the value of `Inference-Header-Content-Length`. Raises `Invalid`, whose message names
        the tensor.
        """
        if json_bytes is not None and json_bytes > len(body):
            message = f"Inference-Header-Content-Length is {json_bytes}, but the body has {len(body)} bytes"
            raise invalid_field("Inference-Header-Content-Length", message)
        try:
            request = _read_request(body if json_bytes is None else body[:json_bytes], self._max_items)
        except Invalid as error:
            if json_bytes is None and b"binary_data_size" in body:
                message = f"{error}; a body with binary data needs the header Inference-Header-Content-Length"
                raise invalid_field("Inference-Header-Content-Length", message) from error
            raise
        _check_model(request, name, version)
        by_column = check_request_parameters(request.parameters)
        heads = [TensorHead(i.name, i.datatype, i.shape) for i in request.inputs]
        by_column |= any(check_input_parameters(i.name, i.parameters) for i in request.inputs)
        requested = (RequestedOutput(o.name, o.parameters) for o in request.outputs or ())
        form = read_answer_form(request.id, request.parameters, requested, self._outputs.names)
        layout = self._rows.layout(heads, by_column)
        binary = b"" if json_bytes is None else body[json_bytes:]
        return self._rows.rows(heads, layout, _read_values(request.inputs, heads, binary)), form

    def encode(
        self, outputs: Outputs, form: AnswerForm, name: str, version: int, prediction_id: str
    ) -> InferenceAnswer:
        """Encode the answer. Without an id in the request, its `id` is the prediction's."""
        tensors: list[dict[str, Any]] = []
        buffers: list[bytes] = []
        for output, is_binary in form.outputs.items():
            tensor = self._outputs.tensor(output, outputs)
            entry: dict[str, Any] = {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": tensor.shape,
            }
            if is_binary:
                buffers.append(to_binary(tensor.values))
                entry["parameters"] = {"binary_data_size": len(buffers[-1])}
            else:
                entry["data"] = tensor.values.ravel().tolist()
            tensors.append(entry)
        head = msgspec.json.encode(  # writes NaN and infinity as null
            {
                "model_name": name,
                "model_version": str(version),
                "id": prediction_id if form.id is None else form.id,
                "outputs": tensors,
            }
        )
        return (
            InferenceAnswer(b"".join((head, *buffers)), len(head)) if buffers else InferenceAnswer(head, None)
        )


# The JSON --------------------------------------------------------------------------------------------------


def _read_request(body: bytes, limit: int) -> _Request:
    value = read_body(body, limit)
    try:
        request = msgspec.convert(value, _Request)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:  # the second of half a surrogate pair
        raise invalid_field(None, f"the request is not valid: {escape_surrogates(str(error))}") from error
    if request.id is not None and escape_surrogates(request.id) != request.id:
        raise invalid_field("id", "the id is not valid Unicode: it holds half of a surrogate pair")
    return request


def _check_model(request: _Request, name: str, version: int) -> None:
    """Check the model that KServe's clients repeat in the body."""
    for field, value, expected in (
        ("model_name", request.model_name, name),
        ("model_version", request.model_version, str(version)),
    ):
        if value is not None and value != expected:
            message = f"{field} is {show(value)}, but the URL's is {show(expected)}; leave it out"
            raise invalid_field(field, message, expected)


# Values ----------------------------------------------------------------------------------------------------


def _read_values(inputs: Sequence[_Input], heads: Sequence[TensorHead], binary: bytes) -> list[TensorValues]:
    """Read the values of all inputs, whose shapes are checked. Raises `Invalid`."""
    values: list[TensorValues] = []
    start = 0
    for tensor, head in zip(inputs, heads, strict=True):
        size = _binary_size(tensor, head, len(binary) - start)
        if size is None:
            values.append(_read_json_values(head, tensor.data))
        else:
            values.append(read_binary_values(head, memoryview(binary)[start : start + size]))
            start += size
    if start != len(binary):
        message = f"{len(binary) - start} bytes follow the binary data of the inputs"
        raise invalid_field(None, f"{message}; send as many as binary_data_size states")
    return values


def _binary_size(tensor: _Input, head: TensorHead, available: int) -> int | None:
    """Return the size of the input's binary data, None if its values are in the JSON."""
    size = (tensor.parameters or {}).get("binary_data_size")
    has_data = tensor.data is not msgspec.UNSET
    if size is None:
        if not has_data:
            raise invalid_field(head.name, f"{head.label} has no data; send data or binary_data_size")
        return None
    if has_data:
        raise invalid_field(head.name, f"{head.label} has data and binary_data_size; send one of them")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        message = f"{head.label} has the binary_data_size {show(size)}; send a number of bytes"
        raise invalid_field(head.name, message, "a number of bytes")
    if size > available:
        message = f"{head.label} has the binary_data_size {size}, but only {available} bytes are left"
        advice = "send Inference-Header-Content-Length and all bytes after the JSON"
        raise invalid_field(head.name, f"{message}; {advice}")
    return size


def _read_json_values(head: TensorHead, data: Any) -> TensorValues:
    """Read `data`: a list, flat in row-major order or nested as the shape is."""
    flat = _flatten(head, data)
    expected = size_of(head)
    if len(flat) != expected:
        message = f"{head.label} has {len(flat)} values; its shape {list(head.shape)} needs {expected}"
        raise invalid_field(head.name, message, f"{expected} values")
    if head.datatype == "FP16":
        raise invalid_field(
            head.name, f"{head.label} is FP16, which only binary data can hold; send FP32 in JSON", "FP32"
        )
    return _JSON_READERS[DATATYPES[head.datatype].kind](head, flat)


def _flatten(head: TensorHead, data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise invalid_field(
            head.name, f"the data of {head.label} is {describe_value(data)}; send a list", "list"
        )
    flat, shape = data, [len(data)]
    while flat and isinstance(flat[0], list):
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) > 1:
            raise invalid_field(head.name, f"the data of {head.label} is nested unevenly; send a flat list")
        shape.append(len(flat[0]))
        if len(shape) > MAX_NESTING:
            raise invalid_field(head.name, f"the data of {head.label} is nested too deeply; send a flat list")
        flat = [value for part in flat for value in part]
    if len(shape) > 1 and [s for s in shape if s != 1] != [s for s in head.shape if s != 1]:
        message = f"the data of {head.label} is nested as {shape}, but its shape is {list(head.shape)}"
        raise invalid_field(head.name, f"{message}; send a flat list, or lists of that shape")
    return flat


def _read_floats(head: TensorHead, values: list[Any]) -> TensorValues:
    """Return an array of the datatype; null and the literal NaN are NaN."""
    kinds = set(map(type, values))
    if not kinds <= {float, int}:
        values = [_missing_or_float(head, i, v) for i, v in enumerate(values)]
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:  # of an integer
        array = np.array([_float_or_infinity(v) for v in values])
    if head.datatype == "FP64":
        converted = array
    else:
        with np.errstate(over="ignore"):
            converted = array.astype(DATATYPES[head.datatype])
    infinite = np.isinf(converted)
    if infinite.any():
        index = int(infinite.argmax())
        _reject_value(head, index, values[index], f"outside the range of {head.datatype}")
    return converted


def _missing_or_float(head: TensorHead, index: int, value: Any) -> float | int:
    if value is None:
        return float("nan")
    if isinstance(value, NonFiniteLiteral) and value.text == "NaN":
        return float("nan")
    if isinstance(value, NonFiniteLiteral):
        _reject_value(head, index, value, "which is not valid JSON; send null for a missing value")
    if type(value) not in (float, int):
        _reject_value(head, index, value, f"not a number; the input is {head.datatype}")
    number_value: float | int = value
    return number_value


def _float_or_infinity(value: float | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _read_integers(head: TensorHead, values: list[Any]) -> TensorValues:
    """Return an array of the datatype, or a list if there is a null."""
    limits = np.iinfo(DATATYPES[head.datatype])
    low, high = int(limits.min), int(limits.max)
    for index, value in enumerate(values):
        is_integer = type(value) is int or (type(value) is float and value.is_integer())
        if value is not None and not is_integer:
            _reject_value(head, index, value, f"not an integer; the input is {head.datatype}")
        if value is not None and not low <= value <= high:
            _reject_value(head, index, value, f"outside the range of {head.datatype}")
    if None in values:
        return [None if v is None else int(v) for v in values]
    return np.array([int(v) for v in values], dtype=DATATYPES[head.datatype])


def _read_booleans(head: TensorHead, values: list[Any]) -> TensorValues:
    for index, value in enumerate(values):
        if value is not None and not isinstance(value, bool):
            _reject_value(head, index, value, "not true or false; the input is BOOL")
    return values if None in values else np.array(values, dtype=np.bool_)


def _read_texts(head: TensorHead, values: list[Any]) -> TensorValues:
    for index, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            _reject_value(head, index, value, "not a string; the input is BYTES")
    return values


_JSON_READERS = {
    "f": _read_floats,
    "i": _read_integers,
    "u": _read_integers,
    "b": _read_booleans,
    "O": _read_texts,
}
"""By the kind of numpy's dtype."""


def _reject_value(head: TensorHead, index: int, value: Any, fault: str) -> NoReturn:
    text = value.text if isinstance(value, NonFiniteLiteral) else describe_value(value)
    raise invalid_field(head.name, f"the value {index} of {head.label} is {text}, {fault}", head.datatype)
