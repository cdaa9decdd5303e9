"""Arrays in the messages of `wire.py`: numbers as their raw bytes with dtype and shape, strings as lists.

What comes back from a child is checked before it is believed: a child runs a model of somebody else's.
"""

from __future__ import annotations

import numpy as np

from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from service.runtime.child_protocol import Answer, Broken, Call, Tensor

_PLAIN = {"float64": "<f8", "float32": "<f4", "int64": "<i8", "bool": "|u1"}


def pack(array: Array) -> Tensor:
    """Raises `TypeError` for a dtype that no signature has."""
    if array.dtype == object or array.dtype.kind in "UT":
        return Tensor("string", array.shape, [None if v is None else str(v) for v in array.ravel().tolist()])
    name = array.dtype.name
    if name not in _PLAIN:
        raise TypeError(f"an array of {array.dtype} cannot be sent")
    plain = np.ascontiguousarray(array)
    return Tensor(name, array.shape, plain.astype(_PLAIN[name], copy=False).tobytes())


def unpack(tensor: Tensor) -> Array:
    """The array, writable. Raises `Broken` when dtype, shape and bytes do not fit each other."""
    size = int(np.prod(tensor.shape, dtype=object)) if all(d >= 0 for d in tensor.shape) else -1
    if tensor.dtype == "string":
        if not isinstance(tensor.data, list) or len(tensor.data) != size:
            raise Broken("strings that do not fill their shape")
        strings = np.empty(size, dtype=object)
        strings[:] = tensor.data
        return strings.reshape(tensor.shape)
    plain = _PLAIN.get(tensor.dtype)
    if plain is None or not isinstance(tensor.data, bytes):
        raise Broken(f"an array of {tensor.dtype!r}")
    if len(tensor.data) != size * np.dtype(plain).itemsize:
        raise Broken(f"{len(tensor.data)} bytes do not fill {tensor.shape} of {tensor.dtype}")
    numbers = np.frombuffer(tensor.data, dtype=plain).reshape(tensor.shape)
    return numbers != 0 if tensor.dtype == "bool" else numbers.astype(tensor.dtype)


def pack_rows(rows: Rows) -> Call:
    if rows.matrix is not None:
        return Call(matrix=pack(rows.matrix))
    assert rows.columns is not None
    return Call(columns=tuple(pack(column) for column in rows.columns))


def unpack_rows(call: Call) -> Rows:
    if call.matrix is not None:
        return Rows(matrix=unpack(call.matrix))
    return Rows(columns=tuple(unpack(column) for column in call.columns or ()))


def unpack_outputs(answer: Answer, signature: Signature, rows: int) -> Outputs:
    """The answer's arrays in the signature's order. Raises `Broken` when they are not what the signature
    promises: names, dtypes, dimensions, one entry for each of the `rows`."""
    if answer.outputs.keys() != {output.name for output in signature.outputs}:
        raise Broken(f"outputs {sorted(answer.outputs)} that the signature does not have")
    outputs: Outputs = {}
    for promised in signature.outputs:
        tensor = answer.outputs[promised.name]
        if tensor.dtype != promised.dtype or tensor.shape != (rows, *promised.shape[1:]):
            raise Broken(
                f"output {promised.name!r} is {tensor.dtype} {list(tensor.shape)}, "
                f"promised was {promised.dtype} {[rows, *promised.shape[1:]]}"
            )
        outputs[promised.name] = unpack(tensor)
    return outputs
