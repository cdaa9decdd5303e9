"""Messages of the Open Inference Protocol over gRPC: their types, and how many parts a request may have.

The types are built from the table below, in a descriptor pool of their own: the packages of the protocol's
clients register the same names under other file names, and a process may import one of them, too. Numbers and
types of the fields are those of the protocol's `GRPCInferenceService`; the parameters of a tensor's metadata
are MLServer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from registry.errors import Invalid, invalid_field

PACKAGE = "inference"

_PARAMETERS = "map InferParameter"
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {
        "name": (1, "string"),
        "version": (2, "string"),
        "extensions": (3, "repeated string"),
    },
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "repeated string"),
        "platform": (3, "string"),
        "inputs": (4, "repeated ModelMetadataResponse.TensorMetadata"),
        "outputs": (5, "repeated ModelMetadataResponse.TensorMetadata"),
    },
    "ModelMetadataResponse.TensorMetadata": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "repeated int64"),
        "parameters": (4, _PARAMETERS),
    },
    # The fields of ModelInferRequest that name the model: the rest is read once its version is known.
    "ModelInferTarget": {"model_name": (1, "string"), "model_version": (2, "string")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, _PARAMETERS),
        "inputs": (5, "repeated ModelInferRequest.InferInputTensor"),
        "outputs": (6, "repeated ModelInferRequest.InferRequestedOutputTensor"),
        "raw_input_contents": (7, "repeated bytes"),
    },
    "ModelInferRequest.InferInputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "repeated int64"),
        "parameters": (4, _PARAMETERS),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferRequest.InferRequestedOutputTensor": {
        "name": (1, "string"),
        "parameters": (2, _PARAMETERS),
    },
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, _PARAMETERS),
        "outputs": (5, "repeated ModelInferResponse.InferOutputTensor"),
        "raw_output_contents": (6, "repeated bytes"),
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "repeated int64"),
        "parameters": (4, _PARAMETERS),
        "contents": (5, "InferTensorContents"),
    },
    "InferParameter": {
        "bool_param": (1, "oneof bool"),
        "int64_param": (2, "oneof int64"),
        "string_param": (3, "oneof string"),
        "double_param": (4, "oneof double"),
        "uint64_param": (5, "oneof uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "repeated bool"),
        "int_contents": (2, "repeated int32"),
        "int64_contents": (3, "repeated int64"),
        "uint_contents": (4, "repeated uint32"),
        "uint64_contents": (5, "repeated uint64"),
        "fp32_contents": (6, "repeated float"),
        "fp64_contents": (7, "repeated double"),
        "bytes_contents": (8, "repeated bytes"),
    },
}
"""Fields by message: number and type."""

CHOICE = "parameter_choice"
"""The oneof of `InferParameter`."""


def _describe() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="trivium/inference.proto", package=PACKAGE, syntax="proto3"
    )
    described: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        parent, _, own_name = name.rpartition(".")
        message = described[parent].nested_type.add() if parent else file.message_type.add()
        message.name, described[name] = own_name, message
        for field, (number, kind) in fields.items():
            _add_field(message, name, field, number, kind.split())
        if name == "InferParameter":
            message.oneof_decl.add(name=CHOICE)
    return file


def _add_field(message: Any, message_name: str, name: str, number: int, kind: list[str]) -> None:
    *modifiers, type_name = kind
    repeated = modifiers in (["repeated"], ["map"])
    field = message.field.add(name=name, number=number, label=3 if repeated else 1)
    if modifiers == ["map"]:
        entry = message.nested_type.add(name="".join(part.capitalize() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for part, (key_number, key_kind) in {"key": (1, "string"), "value": (2, type_name)}.items():
            _add_field(entry, "", part, key_number, [key_kind])
        type_name = f"{message_name}.{entry.name}"
    if modifiers == ["oneof"]:
        field.oneof_index = 0
    if type_name[0].isupper():
        field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{type_name}"
    else:
        field.type = getattr(field, f"TYPE_{type_name.upper()}")


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_describe())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ServerLiveRequest = _message("ServerLiveRequest")
ServerLiveResponse = _message("ServerLiveResponse")
ServerReadyRequest = _message("ServerReadyRequest")
ServerReadyResponse = _message("ServerReadyResponse")
ModelReadyRequest = _message("ModelReadyRequest")
ModelReadyResponse = _message("ModelReadyResponse")
ServerMetadataRequest = _message("ServerMetadataRequest")
ServerMetadataResponse = _message("ServerMetadataResponse")
ModelMetadataRequest = _message("ModelMetadataRequest")
ModelMetadataResponse = _message("ModelMetadataResponse")
ModelInferTarget = _message("ModelInferTarget")
ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")


def parse(message_type: Any, data: bytes, name: str | None = None) -> Any:
    """Return the message. `name` is that of the type in the protocol, if another. Raises `Invalid`."""
    try:
        message: Message = message_type.FromString(data)
    except DecodeError as error:
        raise _unreadable(name or message_type.DESCRIPTOR.name) from error
    return message


def parse_target(data: bytes) -> tuple[str, str]:
    """Return the name and the version ("": none) of the model of a `ModelInferRequest`. Raises `Invalid`."""
    target = parse(ModelInferTarget, data, "ModelInferRequest")
    return target.model_name, target.model_version


def _unreadable(name: str) -> Invalid:
    message = f"the message cannot be read as {name}: it is cut off, or has fields of other types"
    return invalid_field(None, message, name)


def parse_request(data: bytes, rows: int, features: int) -> Any:
    """Return the `ModelInferRequest` of a model with that many features. Raises `Invalid`.

    A request with more parts than one for that many `rows` can have is rejected before it is parsed: 64 MB of
    empty tensors would take 3 GB.
    """
    if len(data) > SMALL_BYTES:
        _Parts(rows * features, features).check(data)
    return parse(ModelInferRequest, data)


SMALL_BYTES = 64 * 1024
"""A smaller request is parsed at once: it takes at most 3 MB."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
"""Wire types. The others are groups, which this protocol does not have."""
_CELL_BYTES = 10
"""The longest encoding of a number, a varint of 64 bits."""


class _Parts:
    """Bounds the parts of an encoded request: its messages, and the values of its tensors.

    Numbers count by their bytes, strings as `_CELL_BYTES`.
    """

    def __init__(self, cells: int, features: int) -> None:
        self._max_messages = 3 * features + 1000
        self._max_values = _CELL_BYTES * cells + 1000
        self._messages = self._values = 0

    def check(self, data: bytes) -> None:
        """Raises `Invalid`."""
        for number, start, end in _fields(data, 0, len(data)):
            if number in (4, 5, 6, 7):  # parameters, inputs, outputs, raw contents
                self._add_messages(1)
            if number == 5:
                self._check_input(data, start, end)

    def _check_input(self, data: bytes, start: int, end: int) -> None:
        for number, start_, end_ in _fields(data, start, end):
            if number == 3:  # the shape: one byte or more for each size
                self._add_messages(end_ - start_)
            elif number == 4:  # parameters
                self._add_messages(1)
            elif number == 5:
                self._check_contents(data, start_, end_)

    def _check_contents(self, data: bytes, start: int, end: int) -> None:
        if self._values + end - start <= self._max_values:  # each value has one byte or more
            self._add_values(end - start)
            return
        for number, start_, end_ in _fields(data, start, end):
            self._add_values(_CELL_BYTES if number == 8 else end_ - start_)

    def _add_messages(self, count: int) -> None:
        self._messages += count
        if self._messages > self._max_messages:
            message = "the request has more tensors, sizes and parameters than this model can have"
            raise invalid_field("inputs", f"{message}; send each feature once", f"{self._max_messages} parts")

    def _add_values(self, count: int) -> None:
        self._values += count
        if self._values > self._max_values:
            message = "the request has more values than the rows of one call can have; send fewer rows"
            raise invalid_field("inputs", message)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field's value in `data[at:end]`. Raises `Invalid`."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind, start = tag & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind == _LENGTH:
            length, start = _varint(data, at, end)
            at = start + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _unreadable("ModelInferRequest")
        if at > end:
            raise _unreadable("ModelInferRequest")
        yield tag >> 3, start, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends. Raises `Invalid`."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _unreadable("ModelInferRequest")
