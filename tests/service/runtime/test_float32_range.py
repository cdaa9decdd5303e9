"""Numbers beyond float32 are refused by row and feature where the estimator refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.errors import Invalid
from registry.rows import Rows
from registry.signature import Input
from service.runtime.codec.columns import FLOAT32_MAX
from service.runtime.float32_range import require_float32
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from tests.service.compiler.helpers import build_model, runtime

INPUTS = (Input("a", "float64"), Input("b", "float64", nullable=True))
FRAME = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
TARGET = FRAME["a"] * 2 + FRAME["b"]


@pytest.mark.parametrize(
    "matrix",
    [[[1.0, 2.0]], [[1.0, np.nan]], [[FLOAT32_MAX, -FLOAT32_MAX]], [[1e38, np.nan]], np.empty((0, 2))],
)
def test_numbers_within_float32_and_missing_ones_pass(matrix: Any) -> None:
    require_float32(Rows(matrix=np.array(matrix, dtype=float)), INPUTS)


def test_rows_and_features_beyond_float32_are_named() -> None:
    matrix = np.array([[1.0, 2.0], [1.0, -1e39], [1e200, np.nan], [1e39, -1e39]])
    with pytest.raises(Invalid, match=r'^instance 1: "b" is -1e\+39, and the model itself refuses') as error:
        require_float32(Rows(matrix=matrix), INPUTS)
    places = [(fault.instance, fault.field) for fault in error.value.errors]
    assert places == [(1, "b"), (2, "a"), (3, "a"), (3, "b")]


def test_text_beside_numbers_is_not_compared() -> None:
    texts = np.array(["x", None], dtype=object)
    with pytest.raises(Invalid) as error:
        require_float32(Rows(columns=(texts, np.array([1.0, 1e39]))), INPUTS)
    assert [(fault.instance, fault.field) for fault in error.value.errors] == [(1, "b")]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_converted_forest_refuses_what_scikit_learn_refuses(tmp_path: Path, scaled: bool) -> None:
    forest = RandomForestRegressor(3, random_state=0)
    model = (make_pipeline(StandardScaler(), forest) if scaled else forest).fit(FRAME, TARGET)
    built = build_model(tmp_path, model, FRAME)
    assert (built.state, built.runtime) == ("ready", "onnx"), built.report
    assert built.forest is not None
    assert built.signature is not None
    beyond = Rows(matrix=np.array([[0.0, 0.0], [0.0, 1e39]]))
    with pytest.raises(ValueError, match="infinity or a value too large"):
        model.predict(pd.DataFrame(beyond.matrix, columns=["a", "b"]))
    bulk = ForestRuntime(tmp_path / "out" / built.forest, built.signature, load_or_compile())
    for served in (runtime(tmp_path, built), bulk):
        with pytest.raises(Invalid, match=r'^instance 1: "b" is') as error:
            served.run(beyond)
        assert [(fault.instance, fault.field) for fault in error.value.errors] == [(1, "b")]
        assert served.run(beyond.take([0]))["value"] == pytest.approx(
            model.predict(pd.DataFrame(beyond.matrix[:1], columns=["a", "b"]))
        )


def test_a_model_that_takes_larger_numbers_is_served_with_them(tmp_path: Path) -> None:
    model = HistGradientBoostingRegressor(max_iter=3, random_state=0).fit(FRAME, TARGET)
    built = build_model(tmp_path, model, FRAME)
    assert built.runtime == "onnx"
    beyond = np.array([[0.0, 1e39]])
    expected = model.predict(pd.DataFrame(beyond, columns=["a", "b"]))
    assert runtime(tmp_path, built).run(Rows(matrix=beyond))["value"] == pytest.approx(expected)
