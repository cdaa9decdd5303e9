"""Requests and answers of the Open Inference Protocol over gRPC.

The values of a request are all in `raw_input_contents`, one entry for each input in the form of REST's binary
data, or all in the `contents` of the inputs, in the field of their datatype. An answer has the form of its
request, unless the parameter `binary_data_output` (true: raw) says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from registry.errors import invalid_field
from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.runtime.codec.columns import Column
from service.runtime.codec.inference_messages import CHOICE, ModelInferResponse, parse_request
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
from service.runtime.codec.tensors import DATATYPES, TensorHead, TensorOutputs, TensorRows, TensorValues


class _Contents(NamedTuple):
    """The field of a datatype, and the function that reads its values."""

    field: str
    read: Callable[[TensorHead, Sequence[Any]], TensorValues]


def _read_numbers(head: TensorHead, values: Sequence[Any]) -> TensorValues:
    return np.fromiter(values, DATATYPES[head.datatype], len(values))


def _read_small_integers(head: TensorHead, values: Sequence[Any]) -> TensorValues:
    """Read integers whose datatype may be narrower than the field."""
    wide, limits = np.fromiter(values, np.int64, len(values)), np.iinfo(DATATYPES[head.datatype])
    outside = (wide < limits.min) | (wide > limits.max)
    if outside.any():
        index = int(outside.argmax())
        message = f"the value {index} of {head.label} is {wide[index]}, outside the range of {head.datatype}"
        raise invalid_field(head.name, message, head.datatype)
    return wide.astype(limits.dtype)


def _read_texts(head: TensorHead, values: Sequence[Any]) -> TensorValues:
    texts = []
    for index, value in enumerate(values):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            message = f"{head.label} holds bytes that are not UTF-8, in the value {index}"
            raise invalid_field(head.name, message, "UTF-8") from error
    return texts


_CONTENTS = {
    "BOOL": _Contents("bool_contents", _read_numbers),
    **dict.fromkeys(("INT8", "INT16", "INT32"), _Contents("int_contents", _read_small_integers)),
    "INT64": _Contents("int64_contents", _read_numbers),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), _Contents("uint_contents", _read_small_integers)),
    "UINT64": _Contents("uint64_contents", _read_numbers),
    "FP32": _Contents("fp32_contents", _read_numbers),
    "FP64": _Contents("fp64_contents", _read_numbers),
    "BYTES": _Contents("bytes_contents", _read_texts),
}
"""By datatype. FP16 has none."""


class MessageCodec:
    """The decoder and encoder of one signature. Thread-safe."""

    def __init__(self, signature: Signature, columns: Sequence[Column], max_rows: int) -> None:
        self._rows = TensorRows(columns, max_rows)
        self._outputs = TensorOutputs(signature)
        self._max_rows, self._features = max_rows, len(columns)

    def decode(self, body: bytes) -> tuple[Rows, AnswerForm]:
        """Decode a `ModelInferRequest`: the rows, and the form of the answer. Raises `Invalid`."""
        request = parse_request(body, self._max_rows, self._features)
        parameters = _read_parameters(request.parameters)
        by_column = check_request_parameters(parameters)
        heads = []
        for tensor in request.inputs:
            heads.append(TensorHead(tensor.name, tensor.datatype, tuple(tensor.shape)))
            by_column |= check_input_parameters(tensor.name, _read_parameters(tensor.parameters))
        requested = [RequestedOutput(o.name, _read_parameters(o.parameters)) for o in request.outputs]
        raw = request.raw_input_contents
        form = read_answer_form(
            request.id or None, parameters, requested, self._outputs.names, is_binary=bool(raw)
        )
        layout = self._rows.layout(heads, by_column)
        values = _read_raw(request.inputs, heads, raw) if raw else _read_typed(request.inputs, heads)
        return self._rows.rows(heads, layout, values), form

    def encode(
        self, outputs: Outputs, form: AnswerForm, name: str, version: int, prediction_id: str
    ) -> bytes:
        """Encode a `ModelInferResponse`. Without an id in the request, its `id` is the prediction's."""
        answer = ModelInferResponse(model_name=name, model_version=str(version), id=form.id or prediction_id)
        is_raw = any(form.outputs.values())
        for output in form.outputs:
            tensor = self._outputs.tensor(output, outputs)
            described = answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            if is_raw:
                answer.raw_output_contents.append(to_binary(tensor.values))
            else:
                values = tensor.values.ravel().tolist()
                if tensor.datatype == "BYTES":
                    values = [text.encode() for text in values]
                getattr(described.contents, _CONTENTS[tensor.datatype].field).extend(values)
        message: bytes = answer.SerializeToString()
        return message


def _read_parameters(parameters: Any) -> Parameters:
    """Return the values by name; None for a parameter without one."""
    if not parameters:
        return None
    values = {}
    for name, value in parameters.items():
        kind = value.WhichOneof(CHOICE)
        values[name] = None if kind is None else getattr(value, kind)
    return values


def _read_raw(inputs: Any, heads: Sequence[TensorHead], raw: Any) -> list[TensorValues]:
    if len(raw) != len(heads):
        message = f"raw_input_contents has {len(raw)} entries for {len(heads)} inputs; send one for each"
        raise invalid_field("raw_input_contents", message, f"{len(heads)} entries")
    for tensor, head in zip(inputs, heads, strict=True):
        if tensor.HasField("contents") and tensor.contents.ByteSize():
            message = f"{head.label} has contents, but the request has raw_input_contents; send one of them"
            raise invalid_field(head.name, message)
    return [read_binary_values(head, memoryview(data)) for head, data in zip(heads, raw, strict=True)]


def _read_typed(inputs: Any, heads: Sequence[TensorHead]) -> list[TensorValues]:
    return [_read_contents(head, tensor.contents) for tensor, head in zip(inputs, heads, strict=True)]


def _read_contents(head: TensorHead, contents: Any) -> TensorValues:
    kind = _CONTENTS.get(head.datatype)
    if kind is None:
        message = f"{head.label} is {head.datatype}, which only raw_input_contents can hold; send FP32"
        raise invalid_field(head.name, message, "FP32")
    for descriptor, values in contents.ListFields():
        if descriptor.name != kind.field:
            message = f"{head.label} has {len(values)} values in {descriptor.name}"
            advice = f"the values of {head.datatype} belong in {kind.field}"
            raise invalid_field(head.name, f"{message}; {advice}", kind.field)
    values, expected = getattr(contents, kind.field), size_of(head)
    if len(values) != expected:
        message = f"{head.label} has {len(values)} values; its shape {list(head.shape)} needs {expected}"
        raise invalid_field(head.name, message, f"{expected} values")
    return kind.read(head, values)
