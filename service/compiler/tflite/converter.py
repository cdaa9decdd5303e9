"""The interface of all converters: their arguments and their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.compiler.tflite.graph_columns import GraphColumns
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import GraphTensor


@dataclass(frozen=True)
class CompiledOutputs:
    """Tensors that a compiled estimator computes.

    Labels are int64 [rows] indices of its classes (1 and -1 for an outlier detector), probabilities are
    [rows, k]; both have one tensor per output. All others are float32.
    """

    labels: tuple[GraphTensor, ...] = ()
    probabilities: tuple[GraphTensor, ...] = ()
    decision: GraphTensor | None = None  # [rows, 1] or [rows, k]
    value: GraphTensor | None = None  # [rows, targets]
    score: GraphTensor | None = None  # [rows]
    columns: GraphColumns | None = None  # of a transformer


@dataclass
class ConversionContext:
    """State of one conversion."""

    graph: Graph
    compile: Callable[[ConversionContext, Any, GraphColumns], CompiledOutputs]
    scaler_dtype: type[np.floating]  # dtype of the rows that the estimator's own scalers return
    fraction: float = 1.0  # of the nodes of each tree ensemble that stay
    reductions: list[str] = field(default_factory=list)  # describe what was removed from tree ensembles


Converter = Callable[[ConversionContext, Any, GraphColumns], CompiledOutputs]
