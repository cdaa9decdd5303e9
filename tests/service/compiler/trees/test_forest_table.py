"""A table of nodes is kept only if it answers as the estimator does, in every kind of call."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.ensemble import RandomForestClassifier

from registry.errors import Refused
from registry.rows import Rows
from service.compiler.measure import parity
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.trees.flatten import flatten
from service.compiler.trees.forest_table import require_same_answers_alone
from service.runtime import node_file
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from tests.service.compiler.tflite import cases

DATA = cases.data(100)


def test_a_table_that_answers_a_row_alone_differently_is_refused(tmp_path: Path) -> None:
    model = RandomForestClassifier(3, random_state=0).fit(DATA.x, DATA.names)
    node_file.save(flatten(model), tmp_path / "forest.nodes")
    signature = describe(model, None, Corrections.read(None)).signature
    runtime = ForestRuntime(tmp_path / "forest.nodes", signature, load_or_compile())
    blocks = parity.reference(runtime.run, {"random": Rows(matrix=DATA.x)})
    require_same_answers_alone(runtime, blocks)
    runtime._record["few_shallow"] = runtime._record["few_depth"] = 0  # calls of few rows stop at the roots
    with pytest.raises(Refused, match="answers random rows differently alone and together"):
        require_same_answers_alone(runtime, blocks)
