"""Messages between the server and the child process of an isolated model.

The server sends `LoadModel` and receives `ModelLoaded`, then sends `RunRows` and receives `RowOutputs`,
`RowsRejected` or `ModelFailed` for each call. Arrays travel as `Tensor`: numbers as raw bytes with dtype and
shape, strings as lists. The server checks everything it receives: a child runs code of the model's author.
"""

from __future__ import annotations

import msgspec
import numpy as np

from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.runtime.message_channel import ChannelBroken

_WIRE_DTYPES = {"float64": "<f8", "float32": "<f4", "int64": "<i8", "bool": "|u1"}


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """One array: raw little-endian bytes for numbers, a flat list for strings (None: missing)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | list[str | None]


class LoadModel(msgspec.Struct, frozen=True, tag=True):
    """To a child, as its first message: load this model within `memory_mb` MiB."""

    artifact: str
    signature: Signature
    memory_mb: int


class RunRows(msgspec.Struct, frozen=True, tag=True):
    """To a child: run the model on these rows. One of the two fields is set, as in `Rows`."""

    matrix: Tensor | None = None
    columns: tuple[Tensor, ...] | None = None


class ModelLoaded(msgspec.Struct, frozen=True, tag=True):
    """From a child: the model is in memory."""


class RowOutputs(msgspec.Struct, frozen=True, tag=True):
    """From a child: the model's outputs for the rows."""

    outputs: dict[str, Tensor]


class RowsRejected(msgspec.Struct, frozen=True, tag=True):
    """From a child: the model rejects these rows; `message` is the model's own."""

    message: str


class ModelFailed(msgspec.Struct, frozen=True, tag=True):
    """From a child: loading or running the model failed, and the rows are not the cause."""

    message: str


FromChild = ModelLoaded | RowOutputs | RowsRejected | ModelFailed


def pack(array: Array) -> Tensor:
    """Raises `TypeError` for a dtype that no signature has."""
    if array.dtype == object or array.dtype.kind in "UT":
        strings = [None if value is None else str(value) for value in array.ravel().tolist()]
        return Tensor("string", array.shape, strings)
    name = array.dtype.name
    if name not in _WIRE_DTYPES:
        raise TypeError(f"an array of {array.dtype} cannot be sent")
    contiguous = np.ascontiguousarray(array)
    return Tensor(name, array.shape, contiguous.astype(_WIRE_DTYPES[name], copy=False).tobytes())


def unpack(tensor: Tensor) -> Array:
    """Return the array, writable. Raises `ChannelBroken` when dtype, shape and data do not match."""
    size = int(np.prod(tensor.shape, dtype=object)) if all(d >= 0 for d in tensor.shape) else -1
    if tensor.dtype == "string":
        if not isinstance(tensor.data, list) or len(tensor.data) != size:
            raise ChannelBroken(f"the number of strings does not match the shape {tensor.shape}")
        strings = np.empty(size, dtype=object)
        strings[:] = tensor.data
        return strings.reshape(tensor.shape)
    wire_dtype = _WIRE_DTYPES.get(tensor.dtype)
    if wire_dtype is None or not isinstance(tensor.data, bytes):
        raise ChannelBroken(f"an array of {tensor.dtype!r} with {type(tensor.data).__name__} data")
    if len(tensor.data) != size * np.dtype(wire_dtype).itemsize:
        raise ChannelBroken(f"{len(tensor.data)} bytes do not fill {tensor.shape} of {tensor.dtype}")
    numbers = np.frombuffer(tensor.data, dtype=wire_dtype).reshape(tensor.shape)
    return numbers != 0 if tensor.dtype == "bool" else numbers.astype(tensor.dtype)


def pack_rows(rows: Rows) -> RunRows:
    if rows.matrix is not None:
        return RunRows(matrix=pack(rows.matrix))
    assert rows.columns is not None
    return RunRows(columns=tuple(pack(column) for column in rows.columns))


def unpack_rows(message: RunRows) -> Rows:
    if message.matrix is not None:
        return Rows(matrix=unpack(message.matrix))
    return Rows(columns=tuple(unpack(column) for column in message.columns or ()))


def unpack_outputs(message: RowOutputs, signature: Signature, rows: int) -> Outputs:
    """Return the arrays in the signature's order.

    Raises `ChannelBroken` when names, dtypes or dimensions differ from the signature's, or an array does not
    have one entry for each of the `rows`.
    """
    if message.outputs.keys() != {output.name for output in signature.outputs}:
        raise ChannelBroken(f"the outputs {sorted(message.outputs)} are not the signature's")
    outputs: Outputs = {}
    for output in signature.outputs:
        tensor = message.outputs[output.name]
        expected = (rows, *output.shape[1:])
        if tensor.dtype != output.dtype or tensor.shape != expected:
            raise ChannelBroken(
                f"output {output.name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {output.dtype} {list(expected)}"
            )
        outputs[output.name] = unpack(tensor)
    return outputs
