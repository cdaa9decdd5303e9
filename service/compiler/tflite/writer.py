"""Write a .tflite file operator by operator, with the flatbuffer schema of LiteRT.

The first dimension of a `GraphTensor` is -1 where it is the number of rows. Operators have the oldest version
that supports their operands, so that old runtimes accept the file. Schema:
`ai_edge_litert.schema_py_generated`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ROWS = -1
ALIGNMENT = 16
"""Alignment of buffers that the schema requires (`force_align`) and its Python writer ignores."""
DESCRIPTION = "written by trivium"
_TENSOR_TYPES: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}


@dataclass(frozen=True)
class GraphTensor:
    """A value in the graph: its index, its shape (-1: the number of rows) and its dtype."""

    index: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        return self.shape[-1]


class Buffer(schema.BufferT):  # type: ignore[misc]
    """A buffer whose content is written aligned."""

    def Pack(self, builder: Any) -> Any:
        data = None
        if self.data is not None:
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class GraphWriter:
    """Tensors, constants and operators of one graph with one input `input` float32 [rows, features]."""

    def __init__(self, features: int) -> None:
        self._tensors: list[Any] = []
        self._buffers: list[Buffer] = [Buffer()]  # the first buffer is empty by convention
        self._codes: list[tuple[int, int]] = []
        self._operators: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], GraphTensor] = {}
        self.input = self._tensor("input", (ROWS, features), "float32", 0)

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str, buffer: int) -> GraphTensor:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.type = _TENSOR_TYPES[dtype]
        tensor.shape = [max(n, 1) for n in shape]
        tensor.shapeSignature = list(shape) if ROWS in shape else None
        tensor.buffer = buffer
        self._tensors.append(tensor)
        return GraphTensor(len(self._tensors) - 1, shape, dtype)

    def constant(self, values: Any, dtype: str = "float32") -> GraphTensor:
        """Add a constant. Equal constants are written once."""
        array = np.ascontiguousarray(np.asarray(values), dtype=dtype)
        data = array.tobytes()
        key = (dtype, array.shape, data)
        if key not in self._constants:
            self._buffers.append(Buffer(data))
            name = f"constant{len(self._buffers) - 1}"
            self._constants[key] = self._tensor(name, array.shape, dtype, len(self._buffers) - 1)
        return self._constants[key]

    def operator(
        self,
        code: str,
        inputs: list[GraphTensor],
        shape: tuple[int, ...],
        dtype: str,
        version: int = 1,
        name: str | None = None,
        **options: Any,
    ) -> GraphTensor:
        """Add an operator. `options` are the fields of its options; `table` among them names their type."""
        pair = (getattr(schema.BuiltinOperator, code), version)
        if pair not in self._codes:
            self._codes.append(pair)
        out = self._tensor(f"{name or code.lower()}{len(self._operators)}", shape, dtype, 0)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.index(pair)
        operator.inputs = [t.index for t in inputs]
        operator.outputs = [out.index]
        if table := options.pop("table", None):
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            operator.builtinOptions = getattr(schema, f"{table}T")()
            vars(operator.builtinOptions).update(options)
        self._operators.append(operator)
        return out

    def finish(self, outputs: dict[str, GraphTensor], metadata: dict[str, bytes]) -> bytes:
        """Return the file. `outputs` get their names; none of them may be the input or a constant."""
        for name, tensor in outputs.items():
            self._tensors[tensor.index].name = name
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [self.input.index], [t.index for t in outputs.values()]
        model = schema.ModelT()
        model.version, model.description = 3, DESCRIPTION
        model.subgraphs = [graph]
        model.operatorCodes = [operator_code(*pair) for pair in self._codes]
        model.signatureDefs = [_signature(self.input, outputs)]
        model.metadata = []
        for name, content in metadata.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name, len(self._buffers)
            self._buffers.append(Buffer(content))
            model.metadata.append(entry)
        model.buffers = self._buffers
        size = sum(len(b.data or b"") for b in self._buffers)
        builder = flatbuffers.Builder(size + 65536)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def operator_code(operator: int, version: int, custom: bytes | None = None) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode, code.version, code.customCode = operator, version, custom
    code.deprecatedBuiltinCode = min(operator, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    return code


def _signature(input_: GraphTensor, outputs: dict[str, GraphTensor]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs = [_entry("input", input_)]
    signature.outputs = [_entry(name, tensor) for name, tensor in outputs.items()]
    return signature


def _entry(name: str, tensor: GraphTensor) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor.index
    return entry
