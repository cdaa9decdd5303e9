"""What compiled estimators hand to each other."""

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
    """What an estimator says about its rows. Labels are int64 [rows] indices into its classes (an outlier
    detector's are 1 and -1), probabilities [rows, k], both by output; the others are float32."""

    labels: tuple[GraphTensor, ...] = ()
    probabilities: tuple[GraphTensor, ...] = ()
    decision: GraphTensor | None = None  # [rows, 1] or [rows, k]
    value: GraphTensor | None = None  # [rows, targets]
    score: GraphTensor | None = None  # [rows]
    columns: GraphColumns | None = None  # of a transformer


@dataclass
class ConversionContext:
    """One conversion. `kept`: the dtype in which the estimator's own scalers answer."""

    graph: Graph
    compile: Callable[[ConversionContext, Any, GraphColumns], CompiledOutputs]
    kept: type[np.floating]
    fraction: float = 1.0  # of each ensemble's nodes, to be kept
    reduction: list[str] = field(default_factory=list)


Converter = Callable[[ConversionContext, Any, GraphColumns], CompiledOutputs]
