"""What every .tflite passes before LiteRT may load it: LiteRT follows most of a file's numbers unchecked.

A file that passes may still crash or hang: it is run in a child process before it is served. Loops and
calls between subgraphs are refused, as how long those take depends on the rows.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from registry.errors import Refused

IDENTIFIER = b"TFL3"
MAX_TENSORS, MAX_DIMENSIONS = 200_000, 8
_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_FLOW = frozenset({"WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE"})
_CUSTOM = frozenset({"TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc"})
"""The custom operators that LiteRT's own interpreter brings."""
_KINDS = {code: name for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
_SIZES = {
    **{"FLOAT32": 4, "INT32": 4, "UINT32": 4, "FLOAT16": 2, "INT16": 2, "UINT16": 2, "BFLOAT16": 2},
    **{"INT8": 1, "UINT8": 1, "BOOL": 1, "INT64": 8, "UINT64": 8, "FLOAT64": 8, "COMPLEX64": 8},
}


def read_checked(tflite: bytes) -> Any:
    """The file as the schema's `ModelT`. Raises `Refused`, saying what is wrong with it."""
    if tflite[4:8] != IDENTIFIER:
        raise Refused("the file is no .tflite model: it does not bear the mark TFL3")
    try:
        model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    except MemoryError:
        raise
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused("the .tflite file is cut short or damaged: its tables lead out of it") from error
    _check_model(model)
    for number, graph in enumerate(model.subgraphs):
        _check_graph(model, graph, f" of subgraph {number}" if number else "")
    return model


def operator_name(model: Any, index: int) -> str:
    """The name of the operator of this code, custom ones by their own."""
    code = model.operatorCodes[index]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _OPERATORS.get(builtin, f"operator {builtin}")
    return decode_name(code.customCode) if name == "CUSTOM" else name


def dtype_name(tensor: Any) -> str:
    """FLOAT32, INT8, ..."""
    return str(_KINDS.get(tensor.type, f"type {tensor.type}"))


def is_quantized(tensor: Any) -> bool:
    found = tensor.quantization
    return found is not None and found.scale is not None and len(found.scale) > 0


def decode_name(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name or "")


def _check_model(model: Any) -> None:
    if model.version != 3:
        raise Refused(f"the .tflite file has version {model.version} of its schema; version 3 is known")
    if not model.subgraphs or not model.buffers:
        raise Refused("the .tflite file holds no graph")
    if any(b.offset or b.size for b in model.buffers):
        raise Refused("the .tflite file keeps weights outside its tables, which only files above 2 GB need")
    for index in range(len(model.operatorCodes or [])):
        name = operator_name(model, index)
        if name in _FLOW:
            raise Refused(f"the graph uses {name}; loops and calls, which may never end, are not served")
        custom = model.operatorCodes[index].builtinCode == schema.BuiltinOperator.CUSTOM
        if name.startswith("Flex") or (custom and name not in _CUSTOM) or name.startswith("operator "):
            raise Refused(f"the graph uses {name}, which is not among LiteRT's own operators")


def _check_graph(model: Any, graph: Any, where: str) -> None:
    tensors = graph.tensors or []
    count = len(tensors)
    if not count or count > MAX_TENSORS:
        raise Refused(f"the graph{where} has {count} tensors")
    for index, tensor in enumerate(tensors):
        _check_tensor(model, tensor, f"tensor {index}{where}")
    inputs, outputs = _indices(graph.inputs), _indices(graph.outputs)
    _require(inputs, 0, count, f"the inputs{where}")
    _require(outputs, 0, count, f"the outputs{where}")
    if not inputs or not outputs:
        raise Refused(f"the graph{where} has no inputs or no outputs")
    ready = {i for i, t in enumerate(tensors) if t.isVariable or _bytes(model, t)} | set(inputs)
    for number, step in enumerate(graph.operators or []):
        what = f"operator {number}{where}"
        if not 0 <= step.opcodeIndex < len(model.operatorCodes or []):
            raise Refused(f"{what} has a code that does not exist")
        reads, writes = _indices(step.inputs), _indices(step.outputs)
        _require(reads, -1, count, what)
        _require([*writes, *_indices(step.intermediates)], 0, count, what)
        if any(i >= 0 and i not in ready for i in reads):
            raise Refused(f"{what} reads a tensor that nothing has written yet")
        if any(_bytes(model, tensors[i]) for i in writes):
            raise Refused(f"{what} writes over a constant")
        ready.update(writes)
    if not set(outputs) <= ready:
        raise Refused(f"an output{where} is written by no operator")


def _check_tensor(model: Any, tensor: Any, what: str) -> None:
    shape = [] if tensor.shape is None else [int(n) for n in tensor.shape]
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape):
        raise Refused(f"{what} has the shape {shape}")
    if not 0 <= tensor.buffer < len(model.buffers):
        raise Refused(f"{what} has a buffer that does not exist")
    if dtype_name(tensor) not in _KINDS.values():
        raise Refused(f"{what} is of an unknown type")
    content, size = _bytes(model, tensor), _SIZES.get(dtype_name(tensor))
    needed = int(np.prod(shape, dtype=object)) * (size or 0)
    if content and size and tensor.sparsity is None and content != needed:
        raise Refused(f"{what} holds {content} bytes where its shape {shape} needs {needed}")
    if is_quantized(tensor) and (scales := len(tensor.quantization.scale)) > 1:
        axis = tensor.quantization.quantizedDimension
        if not 0 <= axis < len(shape) or scales != shape[axis]:
            raise Refused(f"{what} has {scales} scales for its shape {shape}")


def _bytes(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def _require(indices: list[int], lowest: int, count: int, what: str) -> None:
    if any(not lowest <= i < count for i in indices):
        raise Refused(f"{what} names a tensor that does not exist")
