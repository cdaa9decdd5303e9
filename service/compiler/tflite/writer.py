"""A .tflite file built operator by operator, with the flatbuffer schema that comes with LiteRT.

A `GraphTensor`'s first dimension is -1 where it is the number of rows. Operators are written in their oldest
version that can do the job, so that old runtimes take the file. Schema: `ai_edge_litert.schema_py_generated`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

ROWS = -1
ALIGNMENT = 16
"""What the schema demands of buffers (`force_align`), and its Python writer does not do."""
DESCRIPTION = "written by trivium"
_KINDS: dict[str, int] = {
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}


@dataclass(frozen=True)
class GraphTensor:
    """A value in the graph: its number there, its shape (-1: rows) and dtype."""

    index: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        return self.shape[-1]


class Buffer(schema.BufferT):  # type: ignore[misc]
    """A buffer that is written aligned."""

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
        self._buffers: list[Buffer] = [Buffer()]  # the first one is empty by convention
        self._codes: list[tuple[int, int]] = []
        self._operators: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], GraphTensor] = {}
        self.input = self._tensor("input", (ROWS, features), "float32", 0)

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str, buffer: int) -> GraphTensor:
        made = schema.TensorT()
        made.name = name
        made.type = _KINDS[dtype]
        made.shape = [max(n, 1) for n in shape]
        made.shapeSignature = list(shape) if ROWS in shape else None
        made.buffer = buffer
        self._tensors.append(made)
        return GraphTensor(len(self._tensors) - 1, shape, dtype)

    def constant(self, values: Any, dtype: str = "float32") -> GraphTensor:
        """Equal constants are written once."""
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
        """`table` names the operator's options, and `options` are its fields."""
        pair = (getattr(schema.BuiltinOperator, code), version)
        if pair not in self._codes:
            self._codes.append(pair)
        out = self._tensor(f"{name or code.lower()}{len(self._operators)}", shape, dtype, 0)
        made = schema.OperatorT()
        made.opcodeIndex = self._codes.index(pair)
        made.inputs = [t.index for t in inputs]
        made.outputs = [out.index]
        if table := options.pop("table", None):
            made.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            made.builtinOptions = getattr(schema, f"{table}T")()
            vars(made.builtinOptions).update(options)
        self._operators.append(made)
        return out

    def finish(self, outputs: dict[str, GraphTensor], metadata: dict[str, bytes]) -> bytes:
        """The file. `outputs` get their names; an input or constant among them must have been copied."""
        for name, tensor in outputs.items():
            self._tensors[tensor.index].name = name
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [self.input.index], [t.index for t in outputs.values()]
        model = schema.ModelT()
        model.version, model.description = 3, DESCRIPTION
        model.subgraphs = [graph]
        model.operatorCodes = [code(*pair) for pair in self._codes]
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


def code(operator: int, version: int, custom: bytes | None = None) -> Any:
    made = schema.OperatorCodeT()
    made.builtinCode, made.version, made.customCode = operator, version, custom
    made.deprecatedBuiltinCode = min(operator, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
    return made


def _signature(given: GraphTensor, outputs: dict[str, GraphTensor]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = "serving_default", 0
    made.inputs = [_named("input", given)]
    made.outputs = [_named(name, tensor) for name, tensor in outputs.items()]
    return made


def _named(name: str, tensor: GraphTensor) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = name, tensor.index
    return made
