"""Give a .tflite of another converter the names and the metadata of the files that Trivium writes."""

from __future__ import annotations

import json
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from registry.signature import Output, Signature
from service.compiler.tflite.metadata import ENTRY
from service.compiler.tflite.writer import ROWS, Buffer, operator_code

INPUT = "input"


def stamp(tflite: bytes, names: list[str], signature: Signature, model: str) -> bytes:
    """Name the one input `input` and the outputs as in the signature, and add the metadata entry.

    `names` are the names of the outputs in the file's own signature, in the order of `signature`. `model` is
    the kind of the model, for the metadata.
    """
    parsed = schema.ModelT.InitFromPackedBuf(tflite, 0)
    tensor_of = {_text(o.name): o.tensorIndex for o in parsed.signatureDefs[0].outputs}
    tensors = [tensor_of[name] for name in names]
    return rename(parsed, [INPUT], tensors, list(signature.outputs), signature, model)


def rename(
    parsed: Any,
    inputs: list[str],
    tensors: list[int],
    outputs: list[Output],
    signature: Signature,
    model: str,
) -> bytes:
    """Pack `parsed` (a `ModelT`, which changes) with these names for its inputs and these output tensors."""
    graph = parsed.subgraphs[0]
    tensors = [_with_copy(parsed, graph, i) for i in tensors]
    output_names = [_name(o) for o in outputs]
    for number, tensor in enumerate(graph.tensors):  # ai-edge-quantizer identifies tensors by their names
        if _text(tensor.name) in (*inputs, *output_names):
            tensor.name = f"{number}.{_text(tensor.name)}"
    signature_def = schema.SignatureDefT()
    signature_def.signatureKey, signature_def.subgraphIndex = "serving_default", 0
    signature_def.inputs = [_entry(graph, name, int(i)) for name, i in zip(inputs, graph.inputs, strict=True)]
    signature_def.outputs = [_entry(graph, name, i) for name, i in zip(output_names, tensors, strict=True)]
    parsed.signatureDefs = [signature_def]
    graph.outputs = tensors
    metadata: dict[str, Any] = {
        "task": signature.task,
        "features": [i.name for i in signature.inputs],
        "outputs": [_output_entry(o) for o in outputs],
        "model": model,
    }
    if bounds := {i.name: [i.minimum, i.maximum] for i in signature.inputs if i.enforced}:
        metadata["bounds"] = bounds
    return pack(_with_entry(parsed, ENTRY, json.dumps(metadata).encode()))


def _with_copy(parsed: Any, graph: Any, tensor: int) -> int:
    """`tensor`, or a copy if an operator reads it: ai-edge-quantizer gives such an output a wrong type."""
    if not any(tensor in step.inputs for step in graph.operators):
        return tensor
    source = graph.tensors[tensor]
    shape = np.array([ROWS, *source.shape[1:]], dtype=np.int32)
    target, copied = schema.TensorT(), schema.TensorT()
    target.name, target.type, target.shape = f"{tensor}.shape", schema.TensorType.INT32, [len(shape)]
    target.buffer = len(parsed.buffers)
    parsed.buffers.append(Buffer(shape.tobytes()))
    vars(copied).update({**vars(source), "buffer": 0})
    first = len(graph.tensors)
    graph.tensors += [target, copied]
    step = schema.OperatorT()
    step.opcodeIndex, step.inputs, step.outputs = _reshape(parsed), [tensor, first], [first + 1]
    step.builtinOptionsType, step.builtinOptions = (
        schema.BuiltinOptions.ReshapeOptions,
        schema.ReshapeOptionsT(),
    )
    step.builtinOptions.newShape = shape.tolist()
    graph.operators.append(step)
    return first + 1


def _reshape(parsed: Any) -> int:
    """The index of the code of RESHAPE, which is added if it is missing."""
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in parsed.operatorCodes]
    if schema.BuiltinOperator.RESHAPE not in codes:
        parsed.operatorCodes.append(operator_code(schema.BuiltinOperator.RESHAPE, 1))
        return len(codes)
    return codes.index(schema.BuiltinOperator.RESHAPE)


def _name(output: Output) -> str:
    return "value" if output.name == "values" else output.name


def _entry(graph: Any, name: str, tensor: int) -> Any:
    graph.tensors[tensor].name = name
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def _output_entry(output: Output) -> dict[str, Any]:
    shape = [ROWS, *output.shape[1:]]
    entry = {"name": _name(output), "shape": [ROWS, 1] if output.name == "value" else shape}
    return entry if output.classes is None else entry | {"classes": list(output.classes)}


def _with_entry(parsed: Any, name: str, content: bytes) -> Any:
    parsed.metadata = [m for m in parsed.metadata or [] if _text(m.name) != name]
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(parsed.buffers)
    parsed.metadata.append(entry)
    parsed.buffers.append(Buffer(content))
    return parsed


def pack(parsed: Any) -> bytes:
    parsed.buffers = [b if isinstance(b, Buffer) else _aligned(b) for b in parsed.buffers]
    size = sum(len(b.data) for b in parsed.buffers if b.data is not None)
    builder = flatbuffers.Builder(size + 65536)
    builder.Finish(parsed.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _aligned(buffer: Any) -> Buffer:
    return Buffer(None if buffer.data is None else bytes(buffer.data))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
