"""The oldest runtime of a file: the first and the last known version of an operator, and newer ones."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from service.compiler.tflite.operator_versions import HYBRID, INTEGER, _required_version
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.runtime_versions import (
    FIRST_IN,
    LITERT_FIRST,
    _first_runtime,
    min_runtime,
    min_tflite,
    operator_codes,
)
from service.compiler.tflite.writer import operator_code

CODES = schema.BuiltinOperator


def with_operators(*codes: tuple[int, int, bytes | None]) -> bytes:
    """A file whose operators have these codes: builtin, version, name of a custom operator."""
    graph = Graph(1)
    value = graph.input
    for _ in codes:
        value = graph.abs(value)
    model = schema.ModelT.InitFromPackedBuf(graph.finish({"value": value}, {}), 0)
    model.operatorCodes = [operator_code(*code) for code in codes]
    for number, operator in enumerate(model.subgraphs[0].operators):
        operator.opcodeIndex = number
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    ("name", "number", "first"),
    [("ABS", 0, None), ("ABS", 1, "1.13"), ("ABS", 5, "2.12"), ("ABS", 6, None), ("NONE", 1, None)],
)
def test_an_operator_is_known_from_its_first_to_its_last_listed_version(
    name: str, number: int, first: str | None
) -> None:
    assert _first_runtime(name, number) == first
    assert len(FIRST_IN["ABS"].split()) == 5


@pytest.mark.parametrize(
    ("codes", "tflite"),
    [
        ([(CODES.ADD, 1, None)], "1.5"),
        ([(CODES.ADD, 1, None), (CODES.ABS, 5, None)], "2.12"),  # 2.12 is newer than 2.5
        ([(CODES.ADD, 1, None), (CODES.MUL, 2, None)], "1.14"),
        ([(CODES.CAST, 7, None)], "2.17"),
        ([(CODES.DEQUANTIZE, 6, None)], None),  # 2.18
        ([(CODES.CAST, 8, None)], None),
        ([(CODES.CUSTOM, 1, b"Mfcc")], None),
        ([], "1.5"),
    ],
)
def test_the_newest_operator_determines_the_oldest_runtime(
    codes: list[tuple[int, int, bytes | None]], tflite: str | None
) -> None:
    content = with_operators(*codes)
    assert min_tflite(content) == tflite
    assert min_runtime(content) == (LITERT_FIRST if tflite else version("ai-edge-litert"))


def test_the_operators_in_use_are_listed_once_with_their_versions() -> None:
    content = with_operators((CODES.MUL, 2, None), (CODES.ADD, 3, None), (CODES.CUSTOM, 4, b"Mine"))
    assert operator_codes(content) == [("ADD", 3), ("CUSTOM Mine", 4), ("MUL", 2)]
    graph = Graph(1)
    twice = graph.add(graph.add(graph.input, 1.0), 2.0)
    assert operator_codes(graph.finish({"value": twice}, {})) == [("ADD", 1)]


def operator_on(*types: str, scales: int = 0) -> tuple[Any, Any]:
    """An operator and its graph; `types` are those of its operands, `scales` those of the second one."""
    graph, operator = schema.SubGraphT(), schema.OperatorT()
    graph.tensors = []
    for name in types:
        tensor = schema.TensorT()
        tensor.type = getattr(schema.TensorType, name)
        graph.tensors.append(tensor)
    if scales:
        graph.tensors[1].quantization = schema.QuantizationParametersT()
        graph.tensors[1].quantization.scale = [0.5] * scales
    operator.inputs = list(range(len(types)))
    return operator, graph


@pytest.mark.parametrize(
    ("code", "types", "scales", "expected"),
    [
        ("CONV_2D", ("FLOAT32", "FLOAT32"), 0, 1),
        ("CONV_2D", ("FLOAT32", "INT8"), 0, 2),
        ("CONV_2D", ("FLOAT32", "INT8"), 1, 2),
        ("CONV_2D", ("FLOAT32", "INT8"), 2, 5),
        ("CONV_2D", ("FLOAT32", "INT4"), 2, 5),
        ("CONV_2D", ("INT8", "INT8"), 2, 3),
        ("FULLY_CONNECTED", ("FLOAT32", "INT8"), 1, 12),
        ("FULLY_CONNECTED", ("INT8", "INT8"), 1, 4),
        ("ADD", ("INT8", "INT8"), 0, 2),
        ("ADD", ("FLOAT32", "INT8"), 0, 1),
        ("RESHAPE", ("INT8", "INT32"), 0, 1),
        ("ADD", (), 0, 1),
    ],
)
def test_the_types_of_the_operands_determine_the_version(
    code: str, types: tuple[str, ...], scales: int, expected: int
) -> None:
    operator, graph = operator_on(*types, scales=scales)
    assert _required_version(getattr(CODES, code), operator, graph) == expected
    assert set(HYBRID) & set(INTEGER)


def test_operands_that_are_left_out_do_not_count() -> None:
    operator, graph = operator_on("FLOAT32", "INT8", scales=2)
    operator.inputs = [0, -1]
    assert _required_version(CODES.CONV_2D, operator, graph) == 1
    operator.inputs = [-1, 1]
    assert _required_version(CODES.ADD, operator, graph) == 2
