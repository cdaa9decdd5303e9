"""Bodies of the Open Inference Protocol over REST: JSON, and the binary tensor extension.

A body is a JSON object, and after it the values of the tensors that have `binary_data_size`, in their order.
The header `Inference-Header-Content-Length` is then the length of the JSON. An answer has the same form: in
JSON, or with the values of the outputs that the request wants in binary.

Parameters that would change the answer and are not implemented are rejected, not ignored.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np

from registry.errors import Invalid, invalid_field
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.runtime.codec.columns import Column, describe_value, escape_surrogates, show
from service.runtime.codec.json import NonFiniteLiteral
from service.runtime.codec.strict_json import max_items, read_body
from service.runtime.codec.tensors import DATATYPES, TensorHead, TensorOutputs, TensorRows, TensorValues

EXTENSION = "binary_tensor_data"
"""The extension that the server's metadata lists."""

MAX_NESTING = 4
"""Levels of lists in JSON data: a shape has at most two sizes."""

Parameters = dict[str, Any] | None
_CONTENT_TYPES = ("np", "pd", "str")
"""How MLServer's clients mark what a tensor was made of. Only `pd` changes how it is read."""
_UNUSED_PARAMETERS = ("headers", "priority", "timeout")
"""Parameters of requests that concern scheduling and tracing: no answer depends on them."""
_CONTENT_TYPE_USAGE = "only np, pd and str are supported"
_UNSUPPORTED_PREFIXES = {
    "shared_memory_": "shared memory is not supported; send the values in the request",
    "sequence_": "models have no state between requests; leave it out",
}


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


class AnswerForm(NamedTuple):
    """What a request wants in its answer: the outputs by name, True for those in binary."""

    id: str | None
    outputs: dict[str, bool]


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
        by_column = _check_request_parameters(request.parameters)
        heads = [TensorHead(i.name, i.datatype, i.shape) for i in request.inputs]
        by_column |= any(_check_input_parameters(i) for i in request.inputs)
        form = self._answer_form(request)
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
                buffers.append(_to_binary(tensor.values))
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

    def _answer_form(self, request: _Request) -> AnswerForm:
        default = bool((request.parameters or {}).get("binary_data_output", False))
        if not request.outputs:
            return AnswerForm(request.id, dict.fromkeys(self._outputs.names, default))
        outputs: dict[str, bool] = {}
        for output in request.outputs:
            label = f"the output {show(output.name)}"
            expected = ", ".join(self._outputs.names)
            if output.name not in self._outputs.names:
                message = f"{label} is not an output of this model; it has {expected}"
                raise invalid_field(output.name, message, expected)
            if output.name in outputs:
                raise invalid_field(output.name, f"{label} is requested twice; request it once")
            outputs[output.name] = _check_output_parameters(output, label, default)
        return AnswerForm(request.id, outputs)


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


# Parameters ------------------------------------------------------------------------------------------------


def _check_request_parameters(parameters: Parameters) -> bool:
    """Return whether the inputs are the columns of a data frame. Raises `Invalid`."""
    by_column = False
    for name, value in (parameters or {}).items():
        if name == "content_type":
            by_column = _read_content_type(value, "the request")
        elif name == "binary_data_output":
            _require_boolean(name, value, "the request")
        elif name not in _UNUSED_PARAMETERS:
            _reject_parameter(name, "the request")
    return by_column


def _check_input_parameters(tensor: _Input) -> bool:
    """Return whether the input is a column of a data frame. Raises `Invalid`."""
    if not tensor.parameters:
        return False
    by_column, owner = False, f"the input {show(tensor.name)}"
    for name, value in tensor.parameters.items():
        if name == "content_type":
            by_column = _read_content_type(value, owner)
        elif name != "binary_data_size":
            _reject_parameter(name, owner)
    return by_column


def _check_output_parameters(output: _RequestedOutput, owner: str, is_binary: bool) -> bool:
    """Return whether the output is wanted in binary. Raises `Invalid`."""
    for name, value in (output.parameters or {}).items():
        if name == "binary_data":
            is_binary = _require_boolean(name, value, owner)
        elif name == "content_type":
            _read_content_type(value, owner)
        elif name == "classification":
            message = f"{owner} has the parameter classification, which is not supported; send no parameter"
            raise invalid_field(output.name, f"{message}, and request the output probabilities")
        else:
            _reject_parameter(name, owner)
    return is_binary


def _read_content_type(value: Any, owner: str) -> bool:
    """Return whether it is `pd`: the inputs are columns of a data frame. Raises `Invalid`."""
    if value is not None and value not in _CONTENT_TYPES:
        message = f"{owner} has the content_type {show(value)}; {_CONTENT_TYPE_USAGE}"
        raise invalid_field("content_type", message, ", ".join(_CONTENT_TYPES))
    return bool(value == "pd")


def _require_boolean(name: str, value: Any, owner: str) -> bool:
    if not isinstance(value, bool):
        message = f"{owner} has the parameter {name} {describe_value(value)}; send true or false"
        raise invalid_field(name, message, "true or false")
    return value


def _reject_parameter(name: str, owner: str) -> NoReturn:
    reasons = (reason for prefix, reason in _UNSUPPORTED_PREFIXES.items() if name.startswith(prefix))
    reason = next(reasons, "it is not supported; leave it out")
    raise invalid_field(name, f"{owner} has the parameter {show(name)}: {reason}")


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
            values.append(_read_binary_values(head, memoryview(binary)[start : start + size]))
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


def _size_of(head: TensorHead) -> int:
    return math.prod(head.shape)


def _read_binary_values(head: TensorHead, data: memoryview) -> TensorValues:
    if head.datatype == "BYTES":
        return _read_strings(head, data)
    dtype = DATATYPES[head.datatype]
    expected = _size_of(head) * dtype.itemsize
    if len(data) != expected:
        message = f"{head.label} has the binary_data_size {len(data)}"
        advice = f"{head.datatype} of shape {list(head.shape)} has {expected} bytes"
        raise invalid_field(head.name, f"{message}; {advice}", f"{expected} bytes")
    array: Array = np.frombuffer(data, dtype=dtype)
    if dtype.kind == "b" and (np.frombuffer(data, dtype=np.uint8) > 1).any():
        raise invalid_field(head.name, f"{head.label} holds a BOOL that is not 0 or 1", "0 or 1")
    return array


def _read_strings(head: TensorHead, data: memoryview) -> list[str]:
    """Read BYTES: each string is its length, a little-endian uint32, and its bytes."""
    strings, at, count = [], 0, _size_of(head)
    for index in range(count):
        length = struct.unpack_from("<I", data, at)[0] if at + 4 <= len(data) else 0
        if at + 4 + length > len(data):
            message = f"{head.label} has {index} strings in its {len(data)} bytes; its shape needs {count}"
            raise invalid_field(head.name, message, f"{count} strings")
        at += 4 + length
        try:
            strings.append(str(data[at - length : at], "utf-8"))
        except UnicodeDecodeError as error:
            message = f"{head.label} holds bytes that are not UTF-8, in the value {index}"
            raise invalid_field(head.name, message, "UTF-8") from error
    if at != len(data):
        message = f"{head.label} has {len(data) - at} bytes after its {count} strings"
        raise invalid_field(head.name, message, f"{at} bytes")
    return strings


def _read_json_values(head: TensorHead, data: Any) -> TensorValues:
    """Read `data`: a list, flat in row-major order or nested as the shape is."""
    flat = _flatten(head, data)
    expected = _size_of(head)
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


def _to_binary(values: Array) -> bytes:
    if values.dtype.kind != "O":
        return values.tobytes()
    return b"".join(_packed(text.encode()) for text in values.ravel().tolist())


def _packed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
