"""Operator versions that fit what a quantized operator holds.

ai-edge-quantizer leaves every operator at the version it had. A runtime that is too old then takes the file
and answers nonsense (`tflite-runtime` 2.14 did, for dynamic int8 with a scale for each channel); with the
right version it refuses to load it. The rules are those of TensorFlow's `op_version.cc`, but dynamic dense
layers always get the version of those with a scale for each channel: older kernels round rows differently.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from service.compiler.tflite.writer import Buffer, code

_INT8 = schema.TensorType.INT8
_SMALL = {schema.TensorType.INT8, schema.TensorType.INT4, schema.TensorType.INT2}
_CODES = vars(schema.BuiltinOperator)
HYBRID: dict[int, tuple[int, int]] = {
    _CODES["FULLY_CONNECTED"]: (12, 12),
    _CODES["CONV_2D"]: (2, 5),
    _CODES["DEPTHWISE_CONV_2D"]: (4, 6),
    _CODES["BATCH_MATMUL"]: (4, 4),
    _CODES["EMBEDDING_LOOKUP"]: (3, 4),
}
"""Float activations with int8 weights: the version with one scale, and with a scale for each channel."""
INTEGER: dict[int, int] = {
    _CODES["FULLY_CONNECTED"]: 4,
    _CODES["CONV_2D"]: 3,
    _CODES["DEPTHWISE_CONV_2D"]: 3,
    _CODES["RESHAPE"]: 1,
    _CODES["QUANTIZE"]: 1,
    _CODES["DEQUANTIZE"]: 2,
}
"""All int8; every other operator knows int8 from version 2 on."""


def update_operator_versions(tflite: bytes) -> bytes:
    """The file with each operator at the version that its tensors need, if that is newer than its own."""
    model = schema.ModelT.InitFromPackedBuf(tflite)
    pairs: list[tuple[int, int, bytes | None]] = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            old = model.operatorCodes[operator.opcodeIndex]
            builtin = max(old.builtinCode, old.deprecatedBuiltinCode)
            pair = (builtin, max(old.version, _needed(builtin, operator, graph)), old.customCode)
            if pair not in pairs:
                pairs.append(pair)
            operator.opcodeIndex = pairs.index(pair)
    model.operatorCodes = [code(*pair) for pair in pairs]
    _name_by_signature(model)
    model.buffers = [Buffer(None if b.data is None else bytes(b.data)) for b in model.buffers]
    builder = flatbuffers.Builder(len(tflite) + 65536)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _name_by_signature(model: Any) -> None:
    """The quantizer puts tensors of its own at the edges (`probabilities_dequant`): a device that goes by the
    names of the graph's inputs and outputs must find those it knows."""
    for signature in model.signatureDefs or []:
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        for entry in [*signature.inputs, *signature.outputs]:
            for other in tensors:
                if other.name == entry.name:
                    other.name = entry.name + (b".inner" if isinstance(entry.name, bytes) else ".inner")
            tensors[entry.tensorIndex].name = entry.name


def _needed(builtin: int, operator: Any, graph: Any) -> int:
    kinds = [graph.tensors[i].type for i in operator.inputs if i >= 0]
    if not kinds:
        return 1
    if kinds[0] == _INT8:
        return INTEGER.get(builtin, 2)
    weights = [graph.tensors[i] for i in operator.inputs[1:2] if i >= 0]
    if builtin in HYBRID and weights and weights[0].type in _SMALL:
        scales = weights[0].quantization.scale if weights[0].quantization else None
        return HYBRID[builtin][int(scales is not None and len(scales) > 1)]
    return 1
