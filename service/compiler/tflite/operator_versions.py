"""Set the versions of operators according to the types of their tensors, after quantization.

ai-edge-quantizer does not change the versions. A runtime that is too old then loads the file and gives wrong
answers (`tflite-runtime` 2.14 does so for dynamic int8 with per-channel scales); with the right version it
refuses to load the file. The rules are those of TensorFlow's `op_version.cc`, except that dynamic dense
layers always get the version for per-channel scales, because older kernels round rows differently.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from service.compiler.tflite.writer import Buffer, operator_code

_INT8 = schema.TensorType.INT8
_QUANTIZED_WEIGHTS = {schema.TensorType.INT8, schema.TensorType.INT4, schema.TensorType.INT2}
_CODES = vars(schema.BuiltinOperator)
HYBRID: dict[int, tuple[int, int]] = {
    _CODES["FULLY_CONNECTED"]: (12, 12),
    _CODES["CONV_2D"]: (2, 5),
    _CODES["DEPTHWISE_CONV_2D"]: (4, 6),
    _CODES["BATCH_MATMUL"]: (4, 4),
    _CODES["EMBEDDING_LOOKUP"]: (3, 4),
}
"""Versions for float activations with int8 weights: with one scale, and with per-channel scales."""
INTEGER: dict[int, int] = {
    _CODES["FULLY_CONNECTED"]: 4,
    _CODES["CONV_2D"]: 3,
    _CODES["DEPTHWISE_CONV_2D"]: 3,
    _CODES["RESHAPE"]: 1,
    _CODES["QUANTIZE"]: 1,
    _CODES["DEQUANTIZE"]: 2,
}
"""Versions for int8 only. Every other operator supports int8 from version 2 on."""


def update_operator_versions(tflite: bytes) -> bytes:
    """Raise the version of each operator to the one that its tensors need."""
    model = schema.ModelT.InitFromPackedBuf(tflite)
    pairs: list[tuple[int, int, bytes | None]] = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
            pair = (builtin, max(code.version, _required_version(builtin, operator, graph)), code.customCode)
            if pair not in pairs:
                pairs.append(pair)
            operator.opcodeIndex = pairs.index(pair)
    model.operatorCodes = [operator_code(*pair) for pair in pairs]
    _name_by_signature(model)
    model.buffers = [Buffer(None if b.data is None else bytes(b.data)) for b in model.buffers]
    builder = flatbuffers.Builder(len(tflite) + 65536)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _name_by_signature(model: Any) -> None:
    """Give the graph's inputs and outputs the names of the signature.

    The quantizer adds tensors with its own names there (`probabilities_dequant`), and devices look tensors up
    by name.
    """
    for signature in model.signatureDefs or []:
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        for entry in [*signature.inputs, *signature.outputs]:
            for other in tensors:
                if other.name == entry.name:
                    other.name = entry.name + (b".inner" if isinstance(entry.name, bytes) else ".inner")
            tensors[entry.tensorIndex].name = entry.name


def _required_version(builtin: int, operator: Any, graph: Any) -> int:
    kinds = [graph.tensors[i].type for i in operator.inputs if i >= 0]
    if not kinds:
        return 1
    if kinds[0] == _INT8:
        return INTEGER.get(builtin, 2)
    weights = [graph.tensors[i] for i in operator.inputs[1:2] if i >= 0]
    if builtin in HYBRID and weights and weights[0].type in _QUANTIZED_WEIGHTS:
        scales = weights[0].quantization.scale if weights[0].quantization else None
        return HYBRID[builtin][int(scales is not None and len(scales) > 1)]
    return 1
