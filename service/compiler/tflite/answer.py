"""What compiled estimators hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.compiler.tflite.columns import Columns
from service.compiler.tflite.operators import Graph
from service.compiler.tflite.writer import Tensor


@dataclass(frozen=True)
class Answer:
    """What an estimator says about its rows. Labels are int64 [rows] indices into its classes (an outlier
    detector's are 1 and -1), probabilities [rows, k], both by output; the others are float32."""

    labels: tuple[Tensor, ...] = ()
    probabilities: tuple[Tensor, ...] = ()
    decision: Tensor | None = None  # [rows, 1] or [rows, k]
    value: Tensor | None = None  # [rows, targets]
    score: Tensor | None = None  # [rows]
    columns: Columns | None = None  # of a transformer


@dataclass
class Context:
    """One conversion. `kept`: the dtype in which the estimator's own scalers answer."""

    graph: Graph
    compile: Callable[[Context, Any, Columns], Answer]
    kept: type[np.floating]
    fraction: float = 1.0  # of each ensemble's nodes, to be kept
    given_up: list[str] = field(default_factory=list)


Converter = Callable[[Context, Any, Columns], Answer]
