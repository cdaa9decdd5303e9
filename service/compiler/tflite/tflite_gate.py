"""Checks of a .tflite file before LiteRT loads it: LiteRT does not check most indices in a file.

A file that passes may still crash or hang, so it runs in a child process before it is served. Loops and calls
between subgraphs are refused, because their duration depends on the rows.
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
_CONTROL_FLOW = frozenset({"WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_COMPOSITE"})
_RANDOM = frozenset(
    {"MULTINOMIAL", "RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "STABLEHLO_RNG_BIT_GENERATOR"}
)
_STATEFUL = frozenset({"ASSIGN_VARIABLE", "READ_VARIABLE", "VAR_HANDLE"})
_CUSTOM_OPERATORS = frozenset({"TFLite_Detection_PostProcess", "AudioSpectrogram", "Mfcc"})
"""The custom operators that LiteRT's interpreter contains."""
_DTYPE_NAMES = {code: name for name, code in vars(schema.TensorType).items() if not name.startswith("_")}
_DTYPE_BYTES = {
    **{"FLOAT32": 4, "INT32": 4, "UINT32": 4, "FLOAT16": 2, "INT16": 2, "UINT16": 2, "BFLOAT16": 2},
    **{"INT8": 1, "UINT8": 1, "BOOL": 1, "INT64": 8, "UINT64": 8, "FLOAT64": 8, "COMPLEX64": 8},
}


def read_checked(tflite: bytes) -> Any:
    """Parse the file to the schema's `ModelT`. Raises `Refused`, naming the fault."""
    if tflite[4:8] != IDENTIFIER:
        raise Refused("the file is not a .tflite model: the identifier TFL3 is missing")
    try:
        model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    except MemoryError:
        raise
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(
            "the .tflite file is truncated or damaged: its tables point outside the file"
        ) from error
    _check_model(model)
    _check_signatures(model)
    for number, graph in enumerate(model.subgraphs):
        _check_graph(model, graph, f" of subgraph {number}" if number else "")
    return model


def operator_name(model: Any, index: int) -> str:
    """The name of the operator with this code; of a custom operator its own name."""
    code = model.operatorCodes[index]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _OPERATORS.get(builtin, f"operator {builtin}")
    return decode_name(code.customCode) if name == "CUSTOM" else name


def dtype_name(tensor: Any) -> str:
    """FLOAT32, INT8, ..."""
    return str(_DTYPE_NAMES.get(tensor.type, f"type {tensor.type}"))


def is_quantized(tensor: Any) -> bool:
    parameters = tensor.quantization
    return parameters is not None and parameters.scale is not None and len(parameters.scale) > 0


def decode_name(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name or "")


def _check_model(model: Any) -> None:
    if model.version != 3:
        raise Refused(
            f"the .tflite file has version {model.version} of its schema; only version 3 is supported"
        )
    if not model.subgraphs or not model.buffers:
        raise Refused("the .tflite file is empty: it lacks a graph or buffers")
    if any(b.offset or b.size for b in model.buffers):
        raise Refused("the .tflite file has weights outside its tables, which only files above 2 GB need")
    for index in range(len(model.operatorCodes or [])):
        name = operator_name(model, index)
        if name in _CONTROL_FLOW:
            raise Refused(f"the graph uses {name}; loops and calls may never end and are not supported")
        if name in _RANDOM:
            raise Refused(
                f"the graph uses {name}, which draws random numbers: a row would get another answer each "
                "time; convert the model in inference mode, without dropout and noise"
            )
        if name in _STATEFUL:
            raise Refused(
                f"the graph uses {name}, which keeps state between calls: a row's answer would depend on "
                "earlier calls; convert the model with its variables as constants, and its state as zeros"
            )
        custom = model.operatorCodes[index].builtinCode == schema.BuiltinOperator.CUSTOM
        if (
            name.startswith("Flex")
            or (custom and name not in _CUSTOM_OPERATORS)
            or name.startswith("operator ")
        ):
            raise Refused(f"the graph uses {name}, which is not among LiteRT's own operators")


def _check_signatures(model: Any) -> None:
    """One function per file: of several, or of another than the first graph, none is chosen."""
    signatures = model.signatureDefs or []
    functions = {
        (
            s.subgraphIndex,
            *(frozenset(e.tensorIndex for e in entries or []) for entries in (s.inputs, s.outputs)),
        )
        for s in signatures
    }
    names = ", ".join(repr(decode_name(s.signatureKey)) for s in signatures)
    if len(functions) > 1:
        raise Refused(
            f"the file has {len(signatures)} signatures, {names}, and only one can be served; convert each "
            "into a file of its own and publish them as separate models"
        )
    if any(s.subgraphIndex for s in signatures):
        raise Refused(
            f"the file's signature {names} runs a graph other than its first; convert the model with this "
            "signature only"
        )


def _check_graph(model: Any, graph: Any, where: str) -> None:
    tensors = graph.tensors or []
    count = len(tensors)
    if not count or count > MAX_TENSORS:
        raise Refused(f"the graph{where} has {count} tensors")
    for index, tensor in enumerate(tensors):
        _check_tensor(model, tensor, f"tensor {index}{where}")
    inputs, outputs = _indices(graph.inputs), _indices(graph.outputs)
    _require_tensors(inputs, 0, count, f"the inputs{where}")
    _require_tensors(outputs, 0, count, f"the outputs{where}")
    if not inputs or not outputs:
        raise Refused(f"the graph{where} lacks inputs or outputs")
    ready = {i for i, t in enumerate(tensors) if t.isVariable or _content_bytes(model, t)} | set(inputs)
    for number, step in enumerate(graph.operators or []):
        subject = f"operator {number}{where}"
        if not 0 <= step.opcodeIndex < len(model.operatorCodes or []):
            raise Refused(f"{subject} has a code that does not exist")
        reads, writes = _indices(step.inputs), _indices(step.outputs)
        _require_tensors(reads, -1, count, subject)
        _require_tensors([*writes, *_indices(step.intermediates)], 0, count, subject)
        if any(i >= 0 and i not in ready for i in reads):
            raise Refused(f"{subject} reads a tensor before an operator writes it")
        if any(_content_bytes(model, tensors[i]) for i in writes):
            raise Refused(f"{subject} overwrites a constant")
        ready.update(writes)
    if not set(outputs) <= ready:
        raise Refused(f"an output{where} is not written by any operator")


def _check_tensor(model: Any, tensor: Any, subject: str) -> None:
    shape = [] if tensor.shape is None else [int(n) for n in tensor.shape]
    if len(shape) > MAX_DIMENSIONS or any(n < 0 for n in shape):
        raise Refused(f"{subject} has the shape {shape}")
    if not 0 <= tensor.buffer < len(model.buffers):
        raise Refused(f"{subject} has a buffer that does not exist")
    if dtype_name(tensor) not in _DTYPE_NAMES.values():
        raise Refused(f"{subject} has an unknown type")
    content, size = _content_bytes(model, tensor), _DTYPE_BYTES.get(dtype_name(tensor))
    needed = int(np.prod(shape, dtype=object)) * (size or 0)
    if content and size and tensor.sparsity is None and content != needed:
        raise Refused(f"{subject} holds {content} bytes where its shape {shape} needs {needed}")
    if is_quantized(tensor) and (scales := len(tensor.quantization.scale)) > 1:
        axis = tensor.quantization.quantizedDimension
        if not 0 <= axis < len(shape) or scales != shape[axis]:
            raise Refused(f"{subject} has {scales} scales for its shape {shape}")


def _content_bytes(model: Any, tensor: Any) -> int:
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)


def _indices(values: Any) -> list[int]:
    return [] if values is None else [int(v) for v in values]


def _require_tensors(indices: list[int], lowest: int, count: int, subject: str) -> None:
    if any(not lowest <= i < count for i in indices):
        raise Refused(f"{subject}: a tensor index is out of range")
