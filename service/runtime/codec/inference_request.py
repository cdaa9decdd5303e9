"""What a request of the Open Inference Protocol may have, in both of its forms, REST and gRPC.

Parameters that would change the answer and are not implemented are rejected, not ignored. The binary values
are those of REST's binary tensor extension and of gRPC's raw contents.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from registry.errors import invalid_field
from registry.rows import Array
from service.runtime.codec.columns import describe_value, show
from service.runtime.codec.tensors import DATATYPES, TensorHead, TensorValues

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


class RequestedOutput(NamedTuple):
    name: str
    parameters: Parameters


class AnswerForm(NamedTuple):
    """What a request wants in its answer: the outputs by name, True for those in binary."""

    id: str | None
    outputs: dict[str, bool]


def read_answer_form(
    request_id: str | None,
    parameters: Parameters,
    requested: Iterable[RequestedOutput],
    names: Sequence[str],
    *,
    is_binary: bool = False,
) -> AnswerForm:
    """Return the form of the answer. `names` are the model's outputs: all, if none is requested.

    `is_binary` is the default of the request's parameter `binary_data_output`. Raises `Invalid`.
    """
    default = bool((parameters or {}).get("binary_data_output", is_binary))
    outputs: dict[str, bool] = {}
    for output in requested:
        label = f"the output {show(output.name)}"
        if output.name not in names:
            expected = ", ".join(names)
            message = f"{label} is not an output of this model; it has {expected}"
            raise invalid_field(output.name, message, expected)
        if output.name in outputs:
            raise invalid_field(output.name, f"{label} is requested twice; request it once")
        outputs[output.name] = _check_output_parameters(output, label, default)
    return AnswerForm(request_id, outputs or dict.fromkeys(names, default))


def check_request_parameters(parameters: Parameters) -> bool:
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


def check_input_parameters(input_name: str, parameters: Parameters) -> bool:
    """Return whether the input is a column of a data frame. Raises `Invalid`."""
    if not parameters:
        return False
    by_column, owner = False, f"the input {show(input_name)}"
    for name, value in parameters.items():
        if name == "content_type":
            by_column = _read_content_type(value, owner)
        elif name != "binary_data_size":
            _reject_parameter(name, owner)
    return by_column


def _check_output_parameters(output: RequestedOutput, owner: str, is_binary: bool) -> bool:
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


# Binary values ---------------------------------------------------------------------------------------------


def size_of(head: TensorHead) -> int:
    """Return the number of values."""
    return math.prod(head.shape)


def read_binary_values(head: TensorHead, data: memoryview) -> TensorValues:
    if head.datatype == "BYTES":
        return _read_strings(head, data)
    dtype = DATATYPES[head.datatype]
    expected = size_of(head) * dtype.itemsize
    if len(data) != expected:
        message = f"{head.label} has {len(data)} bytes of binary data"
        advice = f"{head.datatype} of shape {list(head.shape)} has {expected} bytes"
        raise invalid_field(head.name, f"{message}; {advice}", f"{expected} bytes")
    array: Array = np.frombuffer(data, dtype=dtype)
    if dtype.kind == "b" and (np.frombuffer(data, dtype=np.uint8) > 1).any():
        raise invalid_field(head.name, f"{head.label} holds a BOOL that is not 0 or 1", "0 or 1")
    return array


def _read_strings(head: TensorHead, data: memoryview) -> list[str]:
    """Read BYTES: each string is its length, a little-endian uint32, and its bytes."""
    strings, at, count = [], 0, size_of(head)
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


def to_binary(values: Array) -> bytes:
    if values.dtype.kind != "O":
        return values.tobytes()
    return b"".join(_packed(text.encode()) for text in values.ravel().tolist())


def _packed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data
