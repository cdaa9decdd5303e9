"""Indices and shapes of a .tflite file at their bounds: the last valid one passes, the next is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from registry.errors import Refused
from service.compiler.tflite import tflite_gate
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.tflite_gate import MAX_DIMENSIONS, read_checked
from service.compiler.tflite.writer import operator_code


def small_file() -> bytes:
    """`value` = the input [rows, 2] times 2, plus 1."""
    graph = Graph(2)
    return graph.finish({"value": graph.add(graph.mul(graph.input, 2.0), 1.0)}, {})


def packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def changed(change: Callable[[Any], None]) -> bytes:
    model = schema.ModelT.InitFromPackedBuf(small_file(), 0)
    change(model)
    return packed(model)


def graph_of(model: Any) -> Any:
    return model.subgraphs[0]


def set_at(path: str, value: Any) -> Callable[[Any], None]:
    """A change of one field, for example `subgraphs.0.inputs`."""

    def change(model: Any) -> None:
        *parents, last = path.split(".")
        target = model
        for name in parents:
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        setattr(target, last, value)

    return change


COUNT = len(graph_of(schema.ModelT.InitFromPackedBuf(small_file(), 0)).tensors)
BUFFERS = len(schema.ModelT.InitFromPackedBuf(small_file(), 0).buffers)


def test_the_small_file_has_the_tensors_that_the_tests_change() -> None:
    model = read_checked(small_file())
    names = [tflite_gate.decode_name(t.name) for t in graph_of(model).tensors]
    assert names == ["input", "constant1", "mul0", "constant2", "value"]
    assert [s.inputs.tolist() for s in graph_of(model).operators] == [[0, 1], [2, 3]]
    assert (COUNT, BUFFERS, len(model.operatorCodes)) == (5, 3, 2)


@pytest.mark.parametrize(
    "change",
    [
        set_at("subgraphs.0.inputs", [0, COUNT - 1]),
        set_at("subgraphs.0.outputs", [0, COUNT - 1]),
        set_at("subgraphs.0.operators.1.inputs", [2, -1]),  # an optional operand that is left out
        set_at("subgraphs.0.operators.1.intermediates", [COUNT - 1]),
        set_at("subgraphs.0.tensors.4.buffer", 0),
        set_at("subgraphs.0.tensors.4.shape", [1] * MAX_DIMENSIONS),
        set_at("subgraphs.0.tensors.4.shape", [0]),
        set_at("subgraphs.0.tensors.4.isVariable", True),
    ],
)
def test_the_last_valid_index_is_accepted(change: Callable[[Any], None]) -> None:
    assert read_checked(changed(change)).version == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_at("version", 2), "version 2 of its schema"),
        (set_at("version", 4), "version 4 of its schema"),
        (set_at("subgraphs", []), "lacks a graph or buffers"),
        (set_at("buffers", []), "lacks a graph or buffers"),
        (set_at("buffers.1.offset", 1), "weights outside its tables"),
        (set_at("buffers.1.size", 1), "weights outside its tables"),
        (set_at("subgraphs.0.tensors", []), "has 0 tensors"),
        (set_at("subgraphs.0.inputs", [COUNT]), "the inputs: a tensor index is out of range"),
        (set_at("subgraphs.0.inputs", [-1]), "the inputs: a tensor index is out of range"),
        (set_at("subgraphs.0.outputs", [COUNT]), "the outputs: a tensor index is out of range"),
        (set_at("subgraphs.0.outputs", [-1]), "the outputs: a tensor index is out of range"),
        (set_at("subgraphs.0.inputs", []), "lacks inputs or outputs"),
        (set_at("subgraphs.0.outputs", []), "lacks inputs or outputs"),
        (set_at("subgraphs.0.operators.0.opcodeIndex", 2), "operator 0 has a code that does not exist"),
        (set_at("subgraphs.0.operators.0.inputs", [COUNT, 1]), "operator 0: a tensor index is out of range"),
        (set_at("subgraphs.0.operators.0.inputs", [-2, 1]), "operator 0: a tensor index is out of range"),
        (set_at("subgraphs.0.operators.1.outputs", [COUNT]), "operator 1: a tensor index is out of range"),
        (set_at("subgraphs.0.operators.1.outputs", [-1]), "operator 1: a tensor index is out of range"),
        (
            set_at("subgraphs.0.operators.1.intermediates", [COUNT]),
            "operator 1: a tensor index is out of range",
        ),
        (set_at("subgraphs.0.operators.0.inputs", [4, 1]), "operator 0 reads a tensor before an operator"),
        (set_at("subgraphs.0.operators.0.inputs", [2, 1]), "operator 0 reads a tensor before an operator"),
        (set_at("subgraphs.0.operators.0.outputs", [1]), "operator 0 overwrites a constant"),
        (set_at("subgraphs.0.operators", []), "an output is not written by any operator"),
        (set_at("subgraphs.0.tensors.4.buffer", BUFFERS), "tensor 4 has a buffer that does not exist"),
        (set_at("subgraphs.0.tensors.4.shape", [1] * (MAX_DIMENSIONS + 1)), "tensor 4 has the shape"),
        (set_at("subgraphs.0.tensors.4.shape", [-1, 2]), r"tensor 4 has the shape \[-1, 2\]"),
        (set_at("subgraphs.0.tensors.1.shape", [2]), r"tensor 1 holds 4 bytes where its shape \[2\] needs 8"),
        (set_at("subgraphs.0.tensors.1.shape", [0]), r"tensor 1 holds 4 bytes where its shape \[0\] needs 0"),
        (set_at("subgraphs.0.tensors.1.type", 99), "tensor 1 has an unknown type"),
    ],
)
def test_an_index_or_a_shape_beyond_the_file_is_refused(change: Callable[[Any], None], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_checked(changed(change))


def both(*changes: Callable[[Any], None]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for part in changes:
            part(model)

    return change


def test_the_first_tensor_counts_like_every_other() -> None:
    written = set_at("subgraphs.0.operators.1.outputs", [0])
    read_checked(changed(both(written, set_at("subgraphs.0.outputs", [0]))))
    with pytest.raises(Refused, match="operator 0 reads a tensor before an operator writes it"):
        read_checked(changed(set_at("subgraphs.0.inputs", [4])))


def test_a_variable_may_be_read_before_it_is_written() -> None:
    reads_variable = set_at("subgraphs.0.operators.0.inputs", [4, 1])
    read_checked(changed(both(reads_variable, set_at("subgraphs.0.tensors.4.isVariable", True))))
    with pytest.raises(Refused, match="operator 0 reads a tensor before"):
        read_checked(changed(reads_variable))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *(("FLOAT32", 4), ("INT32", 4), ("UINT32", 4), ("FLOAT16", 2), ("INT16", 2), ("UINT16", 2)),
        *(("BFLOAT16", 2), ("INT8", 1), ("UINT8", 1), ("BOOL", 1), ("INT64", 8), ("UINT64", 8)),
        *(("FLOAT64", 8), ("COMPLEX64", 8)),
    ],
)
def test_a_constant_has_the_bytes_of_its_shape_and_type(dtype: str, size: int) -> None:
    typed = both(
        set_at("subgraphs.0.tensors.1.type", getattr(schema.TensorType, dtype)),
        set_at("subgraphs.0.tensors.1.shape", [3, 2]),
    )
    read_checked(changed(both(typed, set_at("buffers.1.data", list(bytes(6 * size))))))
    for other in (6 * size - 1, 6 * size + 1):
        with pytest.raises(Refused, match=f"holds {other} bytes where its shape .* needs {6 * size}"):
            read_checked(changed(both(typed, set_at("buffers.1.data", list(bytes(other))))))


def test_a_tensor_without_scales_is_not_quantized() -> None:
    tensor = schema.TensorT()
    assert not tflite_gate.is_quantized(tensor)
    tensor.quantization = schema.QuantizationParametersT()
    assert not tflite_gate.is_quantized(tensor)
    for scales, quantized in (([], False), ([0.5], True), ([0.5, 0.5], True)):
        tensor.quantization.scale = np.array(scales)
        assert tflite_gate.is_quantized(tensor) is quantized


def test_a_graph_has_at_most_its_limit_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_gate, "MAX_TENSORS", COUNT)
    read_checked(small_file())
    monkeypatch.setattr(tflite_gate, "MAX_TENSORS", COUNT - 1)
    with pytest.raises(Refused, match=f"has {COUNT} tensors"):
        read_checked(small_file())


def test_faults_of_a_second_graph_name_it() -> None:
    def add_graph(model: Any) -> None:
        model.subgraphs.append(schema.ModelT.InitFromPackedBuf(small_file(), 0).subgraphs[0])
        model.subgraphs[1].inputs = [COUNT]

    with pytest.raises(Refused, match="the inputs of subgraph 1: a tensor index is out of range"):
        read_checked(changed(add_graph))


def with_scales(shape: list[int], scales: int, axis: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = graph_of(model).tensors[4]
        tensor.shape = shape
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.ones(scales, dtype=np.float32)
        tensor.quantization.quantizedDimension = axis

    return change


@pytest.mark.parametrize(
    ("shape", "scales", "axis", "accepted"),
    [
        ([3, 2], 3, 0, True),
        ([3, 2], 2, 1, True),
        ([3, 2], 1, 7, True),  # one scale has no axis
        ([3, 2], 2, 0, False),
        ([3, 2], 4, 0, False),
        ([3, 2], 2, 2, False),
        ([3, 2], 2, -1, False),
    ],
)
def test_scales_are_one_or_one_per_entry_of_their_axis(
    shape: list[int], scales: int, axis: int, accepted: bool
) -> None:
    content = changed(with_scales(shape, scales, axis))
    if accepted:
        assert tflite_gate.is_quantized(graph_of(read_checked(content)).tensors[4])
    else:
        with pytest.raises(Refused, match=f"tensor 4 has {scales} scales"):
            read_checked(content)


def with_code(operator: int, custom: bytes | None = None) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.operatorCodes.append(operator_code(operator, 1, custom))

    return change


CODES = schema.BuiltinOperator


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_code(CODES.WHILE), "uses WHILE; loops and calls may never end"),
        (with_code(CODES.IF), "uses IF; loops"),
        (with_code(CODES.CALL_ONCE), "uses CALL_ONCE; loops"),
        (with_code(CODES.CUSTOM, b"FlexAdd"), "uses FlexAdd, which is not among LiteRT's own"),
        (with_code(CODES.CUSTOM, b"Mine"), "uses Mine, which is not among LiteRT's own"),
        (with_code(CODES.CUSTOM, b"ADD"), "uses ADD, which is not among LiteRT's own"),
        (with_code(CODES.CUSTOM), "which is not among LiteRT's own"),
        (with_code(5000), "uses operator 5000, which is not among LiteRT's own"),
    ],
)
def test_operators_that_may_not_end_or_are_not_litert_own_are_refused(
    change: Callable[[Any], None], words: str
) -> None:
    with pytest.raises(Refused, match=words):
        read_checked(changed(change))


def test_custom_operators_of_litert_are_accepted() -> None:
    for name in (b"TFLite_Detection_PostProcess", b"AudioSpectrogram", b"Mfcc"):
        model = read_checked(changed(with_code(CODES.CUSTOM, name)))
        assert tflite_gate.operator_name(model, 2) == name.decode()


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"\x00\x00\x00\x00TFL2" + bytes(64)])
def test_bytes_without_the_identifier_are_refused(content: bytes) -> None:
    with pytest.raises(Refused, match="the identifier TFL3 is missing"):
        read_checked(content)


def test_a_truncated_file_is_refused() -> None:
    content = small_file()
    for end in (8, 16, len(content) // 2):
        with pytest.raises(Refused):
            read_checked(content[:end])
