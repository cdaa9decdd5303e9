"""Small .tflite graphs whose answers depend on other rows or on earlier calls."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from service.compiler.tflite.operators import Graph
from service.compiler.tflite.stamp import pack


def minus_mean_of_rows() -> bytes:
    """`y` = the input [rows, 3] minus its mean over the rows."""
    graph = Graph(3)
    axes = graph.constant([0], "int32")
    mean = graph.operator(
        "MEAN", [graph.input, axes], (1, 3), "float32", table="ReducerOptions", keepDims=True
    )
    return graph.finish({"y": graph.sub(graph.input, mean)}, {})


def recurrent(steps: int) -> bytes:
    """`y` [1, 2]: the state of a recurrent operator after `steps` steps, for one row at a time.

    The operator keeps the state in a variable tensor. With `steps` -1, the rows themselves are the steps.
    """
    graph = Graph(2 * max(steps, 1))
    sequence = graph.reshape(graph.input, (1, steps, 2))
    random = np.random.default_rng(0)
    weights = [graph.constant(random.normal(size=shape)) for shape in ((2, 2), (2, 2), (2,))]
    state = graph._tensor("state", (1, 2), "float32", 0)
    states = graph.operator(
        "UNIDIRECTIONAL_SEQUENCE_RNN",
        [sequence, *weights, state],
        (1, steps, 2),
        "float32",
        table="SequenceRNNOptions",
        fusedActivationFunction=schema.ActivationFunctionType.TANH,
    )
    if steps == -1:
        answer = graph.reshape(states, (-1, 2))
    else:
        answer = graph.mul(
            graph.take(graph.reshape(states, (1, steps * 2)), [steps * 2 - 2, steps * 2 - 1]), 1.0
        )
    parsed: Any = schema.ModelT.InitFromPackedBuf(graph.finish({"y": answer}, {}), 0)
    parsed.subgraphs[0].tensors[state.index].isVariable = True
    if steps > 0:
        for tensor in parsed.subgraphs[0].tensors:
            tensor.shapeSignature = None
    return pack(parsed)
