"""The oldest runtime that runs a .tflite file, from the operators of the file and their versions.

Source of the table: `tflite/tools/versioning/runtime_version.cc` of LiteRT (github.com/google-ai-edge/LiteRT)
in 2026. Its numbers are versions of TensorFlow Lite. LiteRT has its own version numbers: 1.0.1 follows
TensorFlow Lite 2.17 and supports everything up to it. So `tflite-runtime` and `ai-edge-litert` have separate
minimums.
"""

from __future__ import annotations

import struct
from importlib.metadata import version
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from registry.errors import Invalid

LITERT_FIRST = "1.0.1"
"""The first release of ai-edge-litert. It supports everything that TensorFlow Lite 2.17 supports."""
TFLITE_LAST = (2, 17)
OLDEST = "1.5"

FIRST_IN: dict[str, str] = {
    "ABS": "1.13 2.4 2.5 2.6 2.12",
    "ADD": "1.5 1.14 2.4 2.6 2.13",
    "ARG_MAX": "1.9 1.14 2.9",
    "ARG_MIN": "1.9 1.14 2.9",
    "AVERAGE_POOL_2D": "1.5 1.14 2.3",
    "BATCH_MATMUL": "2.3 2.3 2.4 2.5",
    "BATCH_TO_SPACE_ND": "1.6 1.14 2.3 2.12",
    "BROADCAST_ARGS": "2.6",
    "BROADCAST_TO": "2.5 2.5 2.5",
    "CAST": "1.5 2.7 2.8 2.9 2.12 2.15 2.17",
    "CEIL": "1.14",
    "CONCATENATION": "1.5 1.14 2.3 2.14",
    "CONV_2D": "1.5 1.14 1.14 2.3 2.4 2.9 2.11 2.15",
    "CONV_3D": "2.5",
    "COS": "1.14",
    "CUMSUM": "2.4",
    "DEPTHWISE_CONV_2D": "1.5 1.12 1.14 2.2 2.3 2.3 2.11",
    "DEPTH_TO_SPACE": "2.1 2.5",
    "DEQUANTIZE": "1.13 1.14 1.15 2.2 2.7 2.18",
    "DIV": "1.6 2.3",
    "ELU": "1.14",
    "EMBEDDING_LOOKUP": "1.13 1.14 1.14 2.18",
    "EQUAL": "1.14 1.14 2.3 2.13",
    "EXP": "1.7 2.12",
    "EXPAND_DIMS": "1.10",
    "FILL": "1.13 2.3 2.5 2.12",
    "FLOOR": "1.9",
    "FLOOR_DIV": "1.14 1.14 2.13",
    "FLOOR_MOD": "1.13 2.13",
    "FULLY_CONNECTED": "1.5 1.10 1.14 1.14 2.0 2.1 2.3 2.3 2.3 2.11 2.15 2.17 2.18",
    "GATHER": "1.6 1.14 1.15 2.4 2.5 2.13 2.15",
    "GATHER_ND": "1.14 2.3 2.5 2.13 2.16",
    "GELU": "2.9 2.9",
    "GREATER": "1.14 1.14",
    "GREATER_EQUAL": "1.14 1.14 2.13",
    "HARD_SWISH": "1.15",
    "L2_NORMALIZATION": "1.5 1.14",
    "LEAKY_RELU": "1.13 2.3",
    "LESS": "1.14 1.14 2.13",
    "LESS_EQUAL": "1.14 1.14",
    "LOG": "1.14 2.15",
    "LOGICAL_AND": "1.11",
    "LOGICAL_NOT": "1.11",
    "LOGICAL_OR": "1.11",
    "LOGISTIC": "1.14 1.14 2.3",
    "LOG_SOFTMAX": "1.14 1.14",
    "LSTM": "1.7 1.10 1.14 2.3",
    "MAXIMUM": "1.14 1.14 2.3 2.3",
    "MAX_POOL_2D": "1.5 1.14 2.3",
    "MEAN": "1.6 1.14 2.4",
    "MINIMUM": "1.14 1.14 2.3 2.3",
    "MIRROR_PAD": "1.13 2.3 2.12",
    "MUL": "1.5 1.14 1.15 2.3 2.6 2.11 2.13",
    "NEG": "1.9",
    "NOT_EQUAL": "1.14 1.14 2.3",
    "ONE_HOT": "1.11",
    "PACK": "1.11 1.14 2.3 2.13",
    "PAD": "1.5 1.14 2.4 2.6",
    "PADV2": "1.9 1.14 2.4 2.6",
    "POW": "1.10",
    "PRELU": "1.8",
    "QUANTIZE": "1.14 1.15 2.7",
    "RANGE": "1.13 2.14",
    "REDUCE_MAX": "1.11 1.14 2.5",
    "REDUCE_MIN": "1.11 1.14 2.5",
    "REDUCE_PROD": "1.11 2.6",
    "RELU": "1.5 2.1 2.5",
    "RELU6": "1.5 1.14 2.5",
    "RESHAPE": "1.5",
    "RESIZE_BILINEAR": "1.7 1.14 2.2 2.5",
    "RESIZE_NEAREST_NEIGHBOR": "1.13 1.14 2.3 2.4",
    "REVERSE_V2": "1.14 2.2 2.5",
    "ROUND": "1.14",
    "RSQRT": "1.10 2.5 2.15",
    "SELECT": "1.14 1.14 2.12 2.12",
    "SELECT_V2": "2.2 2.12",
    "SHAPE": "1.10",
    "SIN": "1.9",
    "SLICE": "1.14 1.14 1.14 2.4 2.5 2.14",
    "SOFTMAX": "1.5 1.14 2.3",
    "SPACE_TO_BATCH_ND": "1.6 1.14 2.3 2.12",
    "SPACE_TO_DEPTH": "1.5 1.14",
    "SPLIT": "1.5 1.14 1.14 2.3",
    "SPLIT_V": "1.13 2.3",
    "SQRT": "1.10",
    "SQUARE": "1.12",
    "SQUARED_DIFFERENCE": "1.13 2.5",
    "SQUEEZE": "1.6 2.5",
    "STRIDED_SLICE": "1.6 1.14 2.1 2.2 2.5 2.6 2.14 2.14",
    "SUB": "1.6 1.14 2.3 2.4 2.4",
    "SUM": "1.10 1.15",
    "TANH": "1.14 1.14 2.3",
    "TILE": "1.10 2.2 2.8",
    "TOPK_V2": "1.7 1.14 2.13",
    "TRANSPOSE": "1.6 1.14 1.15 2.3 2.4 2.12 2.14",
    "TRANSPOSE_CONV": "1.9 2.2 2.3 2.13 2.15",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "1.13 1.14 2.3 2.12",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "1.14 1.14 2.3",
    "UNPACK": "1.11 1.14 2.2 2.3",
    "WHERE": "1.14 2.8",
    "WHILE": "1.15",
    "ZEROS_LIKE": "1.12",
}
"""For each operator, the first TensorFlow Lite with version 1, 2, ... of the operator."""

_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def operator_codes(tflite: bytes) -> list[tuple[str, int]]:
    """(operator, version) of all operators of the file, sorted. Raises `Invalid` for another kind of file."""
    try:
        if not schema.Model.ModelBufferHasIdentifier(tflite, 0):
            raise ValueError("no identifier")
        model = schema.Model.GetRootAs(tflite)
        used = {
            graph.Operators(i).OpcodeIndex()
            for graph in _graphs(model)
            for i in range(graph.OperatorsLength())
        }
        return sorted({_name_and_version(model.OperatorCodes(i)) for i in used})
    except (ValueError, struct.error, IndexError, AttributeError, UnicodeDecodeError, TypeError) as error:
        raise Invalid("the bytes are not a .tflite file") from error


def _graphs(model: Any) -> list[Any]:
    return [model.Subgraphs(i) for i in range(model.SubgraphsLength())]


def _name_and_version(code: Any) -> tuple[str, int]:
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if number == schema.BuiltinOperator.CUSTOM:
        return f"CUSTOM {(code.CustomCode() or b'').decode()}", code.Version()
    return _NAMES.get(number, f"OPERATOR {number}"), code.Version()


def named_operators(tflite: bytes) -> list[tuple[str, str]]:
    """(operator, name of its first output) of every operator of the first graph, in order."""
    model = schema.Model.GetRootAs(tflite)
    graph = model.Subgraphs(0)
    steps = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return [
        (
            _name_and_version(model.OperatorCodes(o.OpcodeIndex()))[0],
            graph.Tensors(o.Outputs(0)).Name().decode(),
        )
        for o in steps
    ]


def operators(tflite: bytes) -> list[str]:
    """Names of all operators of the file, sorted. Raises `Invalid` for another kind of file."""
    return sorted({name for name, _ in operator_codes(tflite)})


def min_tflite(tflite: bytes) -> str | None:
    """The first TensorFlow Lite (`tflite-runtime`) that runs the file, like "2.5", or None."""
    required = [_first_runtime(name, number) for name, number in operator_codes(tflite)]
    if None in required:
        return None
    newest = max((_parts(n) for n in required if n is not None), default=_parts(OLDEST))
    return ".".join(map(str, newest)) if newest <= TFLITE_LAST else None


def min_runtime(tflite: bytes) -> str:
    """The first LiteRT (`ai-edge-litert`) that runs the file.

    For operators that are newer than TensorFlow Lite 2.17 or missing in the table: the installed release.
    """
    return LITERT_FIRST if min_tflite(tflite) is not None else version("ai-edge-litert")


def _first_runtime(name: str, number: int) -> str | None:
    versions = FIRST_IN.get(name, "").split()
    return versions[number - 1] if 0 < number <= len(versions) else None


def _parts(dotted: str) -> tuple[int, ...]:
    return tuple(int(n) for n in dotted.split("."))
