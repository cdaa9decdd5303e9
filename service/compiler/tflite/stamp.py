"""The names and the metadata that all of ours have, given to a .tflite that another converter wrote."""

from __future__ import annotations

import json
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from registry.signature import Output, Signature
from service.compiler.tflite.metadata import ENTRY
from service.compiler.tflite.writer import ROWS, Buffer, code

INPUT = "input"


def stamp(tflite: bytes, names: list[str], signature: Signature, model: str) -> bytes:
    """Name the one input `input` and the outputs as the signature's, in its order, and describe them inside.

    `names` are the outputs' names in the file's own signature, in the order of ours. `model` says what kind
    of model it was.
    """
    made = schema.ModelT.InitFromPackedBuf(tflite, 0)
    own = made.signatureDefs[0]
    given = {_text(o.name): o.tensorIndex for o in own.outputs}
    return rename(made, [INPUT], [given[name] for name in names], list(signature.outputs), signature, model)


def rename(
    made: Any, inputs: list[str], tensors: list[int], outputs: list[Output], signature: Signature, model: str
) -> bytes:
    """`made` (a `ModelT`, changed) with these names for its inputs, and the tensors as these outputs."""
    graph = made.subgraphs[0]
    tensors = [_owned(made, graph, i) for i in tensors]
    named = [_name(o) for o in outputs]
    for number, tensor in enumerate(graph.tensors):  # the quantizer tells tensors apart by their names
        if _text(tensor.name) in (*inputs, *named):
            tensor.name = f"{number}.{_text(tensor.name)}"
    own = schema.SignatureDefT()
    own.signatureKey, own.subgraphIndex = "serving_default", 0
    own.inputs = [_entry(graph, name, int(i)) for name, i in zip(inputs, graph.inputs, strict=True)]
    own.outputs = [_entry(graph, name, i) for name, i in zip(named, tensors, strict=True)]
    made.signatureDefs = [own]
    graph.outputs = tensors
    described = {
        "task": signature.task,
        "features": [i.name for i in signature.inputs],
        "outputs": [_described(o) for o in outputs],
        "model": model,
    }
    return pack(_with_entry(made, ENTRY, json.dumps(described).encode()))


def _owned(made: Any, graph: Any, tensor: int) -> int:
    """`tensor`, or a copy if an operator reads it too: ai-edge-quantizer mistakes such an output's type."""
    if not any(tensor in step.inputs for step in graph.operators):
        return tensor
    source = graph.tensors[tensor]
    shape = np.array([ROWS, *source.shape[1:]], dtype=np.int32)
    target, copied = schema.TensorT(), schema.TensorT()
    target.name, target.type, target.shape = f"{tensor}.shape", schema.TensorType.INT32, [len(shape)]
    target.buffer = len(made.buffers)
    made.buffers.append(Buffer(shape.tobytes()))
    vars(copied).update({**vars(source), "buffer": 0})
    first = len(graph.tensors)
    graph.tensors += [target, copied]
    step = schema.OperatorT()
    step.opcodeIndex, step.inputs, step.outputs = _reshape(made), [tensor, first], [first + 1]
    step.builtinOptionsType, step.builtinOptions = (
        schema.BuiltinOptions.ReshapeOptions,
        schema.ReshapeOptionsT(),
    )
    step.builtinOptions.newShape = shape.tolist()
    graph.operators.append(step)
    return first + 1


def _reshape(made: Any) -> int:
    """The index of the operator's code."""
    known = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in made.operatorCodes]
    if schema.BuiltinOperator.RESHAPE not in known:
        made.operatorCodes.append(code(schema.BuiltinOperator.RESHAPE, 1))
        return len(known)
    return known.index(schema.BuiltinOperator.RESHAPE)


def _name(output: Output) -> str:
    return "value" if output.name == "values" else output.name


def _entry(graph: Any, name: str, tensor: int) -> Any:
    graph.tensors[tensor].name = name
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def _described(output: Output) -> dict[str, Any]:
    shape = [ROWS, *output.shape[1:]]
    described = {"name": _name(output), "shape": [ROWS, 1] if output.name == "value" else shape}
    return described if output.classes is None else described | {"classes": list(output.classes)}


def _with_entry(made: Any, name: str, content: bytes) -> Any:
    made.metadata = [m for m in made.metadata or [] if _text(m.name) != name]
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(made.buffers)
    made.metadata.append(entry)
    made.buffers.append(Buffer(content))
    return made


def pack(made: Any) -> bytes:
    made.buffers = [b if isinstance(b, Buffer) else _aligned(b) for b in made.buffers]
    size = sum(len(b.data) for b in made.buffers if b.data is not None)
    builder = flatbuffers.Builder(size + 65536)
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _aligned(buffer: Any) -> Buffer:
    return Buffer(None if buffer.data is None else bytes(buffer.data))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
