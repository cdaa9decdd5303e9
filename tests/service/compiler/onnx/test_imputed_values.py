"""SimpleImputer in ONNX: the filled value, and what becomes of a filled value at a threshold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.compiler.onnx import convert
from service.compiler.onnx.convert import Candidate
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.trees.flatten import flatten
from service.compiler.trees.tree_pipeline import split_forest_pipeline
from service.runtime import node_file
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from service.runtime.onnx_runtime import OnnxRuntime

ROWS = np.array([[0.0, 5.0], [1.0, np.nan], [2.0, 7.0], [np.nan, 9.0]])


def signature_of(model: Any) -> Signature:
    return describe(model, None, Corrections.read(None)).signature


def in_onnx(folder: Path, model: Any, rows: np.ndarray, floats: Any = "float64") -> Outputs:
    signature = signature_of(model)
    convert.save(convert.convert(model, signature, Candidate(floats, "tensor")), folder / "model.onnx")
    return OnnxRuntime(folder / "model.onnx", signature).run(Rows(matrix=rows))


@pytest.mark.parametrize("floats", ["float64", "float32"])
@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
def test_missing_numbers_become_the_statistics_of_their_column(
    tmp_path: Path, strategy: str, floats: str
) -> None:
    model = SimpleImputer(strategy=strategy).fit(ROWS)
    np.testing.assert_allclose(
        in_onnx(tmp_path, model, ROWS, floats)["vector"], model.transform(ROWS), rtol=1e-6
    )


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_an_imputed_value_equal_to_a_threshold_goes_left_in_onnx_and_in_the_table(
    tmp_path: Path, scale: bool, above: bool
) -> None:
    steps = [StandardScaler()] if scale else []
    model = make_pipeline(SimpleImputer(), *steps, DecisionTreeClassifier())
    model.fit(np.array([[0.0], [1.0]] * 20), [0, 1] * 20)
    filled = np.float32(model[:-1].transform([[np.nan]])[0, 0])
    model[-1].tree_.threshold[0] = np.nextafter(filled, np.float32(-np.inf)) if above else filled
    rows = np.array([[np.nan], [0.0], [1.0]])
    expected = model.predict(rows).tolist()
    assert expected[0] == int(above)
    assert in_onnx(tmp_path, model, rows)["label"].tolist() == expected
    column_steps, last = split_forest_pipeline(model)
    node_file.save(flatten(last), tmp_path / "forest.nodes", column_steps)
    table = ForestRuntime(tmp_path / "forest.nodes", signature_of(model), load_or_compile())
    assert table.run(Rows(matrix=rows))["label"].tolist() == expected


@pytest.mark.parametrize(
    "imputer",
    [SimpleImputer(missing_values=-1.0), SimpleImputer(add_indicator=True)],
    ids=["other missing value", "indicator"],
)
def test_other_imputers_are_not_converted(tmp_path: Path, imputer: SimpleImputer) -> None:
    rows = np.nan_to_num(ROWS, nan=-1.0) if imputer.missing_values == -1.0 else ROWS
    with pytest.raises(NotImplementedError, match="an imputer"):
        in_onnx(tmp_path, imputer.fit(rows), rows)


def test_an_imputer_that_drops_an_empty_column_is_not_converted(tmp_path: Path) -> None:
    model = SimpleImputer().fit(ROWS)
    signature = signature_of(model)
    model.statistics_ = np.array([1.0, np.nan])
    with pytest.raises(NotImplementedError, match="adds or drops columns"):
        convert.convert(model, signature, Candidate("float64", "tensor"))
