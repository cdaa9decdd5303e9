"""The forest runtime gives the answers of each ensemble, for any rows, from any thread."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeRegressor

from registry.errors import Invalid, Refused, Unavailable
from registry.rows import Array, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure.comparison_rows import with_neighbours
from service.compiler.measure.tree_thresholds import tree_splits
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.trees.flatten import flatten
from service.compiler.trees.tree_pipeline import split_forest_pipeline
from service.runtime import node_file
from service.runtime.codec.columns import FLOAT32_MAX
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from service.runtime.kernel_table import BLOCK, FEW_ROWS
from service.runtime.nodes import NodeTable
from tests.service.compiler.tflite import cases

ROOT = Path(__file__).parents[3]
DATA = cases.data(500)
REFUSED = (
    "ColumnTransformer + RandomForestClassifier",
    "OrdinalEncoder + RandomForestClassifier",
    "MultiOutputClassifier of trees",
    "VotingClassifier, hard, of trees",
)
NAMES = [name for name in cases.TREES if name not in REFUSED]


def signature_of(model: Any) -> Signature:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return describe(model, None, Corrections.read(None)).signature


def served(folder: Path, model: Any) -> ForestRuntime:
    steps, last = split_forest_pipeline(model)
    node_file.save(flatten(last), folder / "forest.nodes", steps)
    return ForestRuntime(folder / "forest.nodes", signature_of(model), load_or_compile())


def rows_around_thresholds(model: Any, rows: Array, limit: int = 2000) -> Array:
    """Rows with a threshold of the model, or an adjacent number, in one feature."""
    splits = tree_splits(model)
    splits = splits[np.random.default_rng(0).permutation(len(splits))[:limit]]
    blocks = []
    for values in with_neighbours(splits[:, 1]):
        block = rows[np.arange(len(splits)) % len(rows)]
        block[np.arange(len(splits)), splits[:, 0].astype(int)] = values
        blocks.append(block)
    return np.concatenate(blocks) if len(splits) else rows[:0]


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused(name: str) -> None:
    model, _ = cases.fitted(name, DATA)
    with pytest.raises(Refused, match="table of nodes"):
        flatten(split_forest_pipeline(model)[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_ensemble_gives_the_answers_of_scikit_learn(tmp_path: Path, name: str) -> None:
    model, rows = cases.fitted(name, DATA)
    extreme = (
        np.random.default_rng(1).choice([-1.0, 1.0], rows.shape)
        * 10.0 ** np.linspace(-40, 34, len(rows))[:, None]
    )
    all_rows = np.vstack([rows, extreme, rows_around_thresholds(model, rows)])
    with np.errstate(over="ignore"):  # a split of missing values alone has an infinite threshold
        all_rows = all_rows[~np.isinf(all_rows.astype(np.float32)).any(axis=1)]
    runtime = served(tmp_path, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = EstimatorRuntime(model, signature_of(model)).run(Rows(matrix=all_rows))
    outputs = runtime.run(Rows(matrix=all_rows))
    assert set(outputs) == set(expected)
    for output, answer in expected.items():
        assert outputs[output].dtype == answer.dtype
        if output.endswith("label"):
            assert outputs[output].tolist() == answer.tolist()
        else:
            np.testing.assert_allclose(outputs[output], answer, rtol=1e-12, atol=1e-12)
    some = np.arange(0, len(all_rows), 7)
    alone = [runtime.run(Rows(matrix=all_rows[i : i + 1])) for i in some.tolist()]
    for output, answer in outputs.items():
        assert np.concatenate([a[output] for a in alone]).tolist() == answer[some].tolist(), "to the last bit"


def test_ties_go_to_the_class_that_scikit_learn_predicts(tmp_path: Path) -> None:
    features, labels = make_classification(400, 8, flip_y=0.4, random_state=0)
    model = RandomForestClassifier(50, random_state=0).fit(features, labels)
    rows = np.random.default_rng(1).normal(size=(5000, 8))
    probabilities = model.predict_proba(rows)
    assert (probabilities[:, 0] == probabilities[:, 1]).sum() > 20, "the data set must have ties"
    answered = served(tmp_path, model).run(Rows(matrix=rows))
    assert (answered["label"] == model.predict(rows)).all()
    assert (answered["probabilities"] == probabilities).all()


@pytest.mark.parametrize(
    "rows", [0, 1, FEW_ROWS - 1, FEW_ROWS, FEW_ROWS + 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3]
)
def test_any_number_of_rows_is_supported(tmp_path: Path, rows: int) -> None:
    model = RandomForestRegressor(7, random_state=0).fit(DATA.x, DATA.values)
    all_rows = np.resize(DATA.x, (rows, cases.FEATURES))
    answered = served(tmp_path, model).run(Rows(matrix=all_rows))["values"]
    assert answered.shape == (rows, 2)
    np.testing.assert_array_equal(answered, np.resize(model.predict(DATA.x), (rows, 2)))


SPECIAL = st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300, 3.5e38, -3.5e38, 0.0, -0.0, 5e-324, 1e-45])
BOOSTED = HistGradientBoostingRegressor(max_iter=20, random_state=0)
FULLY_GROWN_FOREST = RandomForestRegressor(5, random_state=0)


class ServedForest(NamedTuple):
    model: Any
    table: NodeTable
    runtime: ForestRuntime


@pytest.fixture(scope="module", params=[BOOSTED, FULLY_GROWN_FOREST], ids=["float64", "float32"])
def forest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ServedForest:
    """A forest that was fitted with missing values. Its thresholds are of the type in the id."""
    model = request.param.fit(DATA.with_missing, DATA.value)
    return ServedForest(model, flatten(model), served(tmp_path_factory.mktemp("forest"), model))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_missing_infinite_and_huge_values_reach_the_right_leaves(
    forest: ServedForest, data: st.DataObject
) -> None:
    model, table, runtime = forest
    threshold = st.sampled_from(tree_splits(model)[:, 1].tolist())
    number = st.one_of(
        SPECIAL, threshold, threshold.map(lambda v: float(np.nextafter(v, np.inf))), st.floats(width=64)
    )
    row_lists = st.lists(st.lists(number, min_size=8, max_size=8), min_size=1, max_size=20)
    rows = np.array(data.draw(row_lists), dtype=np.float64)
    beyond = np.abs(rows) > FLOAT32_MAX
    if model is not BOOSTED and beyond.any():  # the random forest itself refuses such numbers
        with pytest.raises(Invalid, match="refuses numbers beyond the range of float32"):
            runtime.run(Rows(matrix=rows))
        rows = np.where(beyond, np.nan, rows)
    expected = table.raw(rows)[:, 0]
    np.testing.assert_allclose(runtime.run(Rows(matrix=rows))["value"], expected, rtol=1e-12)
    np.testing.assert_allclose(model.predict(rows), expected, rtol=1e-12)


def test_rows_reach_the_leaves_of_a_very_deep_tree(tmp_path: Path) -> None:
    column = (2.0 ** np.arange(-100.0, 100.0)).reshape(-1, 1)
    model = DecisionTreeRegressor(random_state=0).fit(column, column[:, 0])
    assert model.get_depth() > 50
    rows = np.random.default_rng(0).permutation(column)
    answered = served(tmp_path, model).run(Rows(matrix=rows))["value"]
    np.testing.assert_array_equal(answered, model.predict(rows))


def test_blocks_of_wide_rows_have_fewer_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 9000))
    model = ExtraTreesRegressor(5, random_state=0).fit(rows[:50], rows[:50, -1])
    np.testing.assert_array_equal(
        served(tmp_path, model).run(Rows(matrix=rows))["value"], model.predict(rows)
    )


def unaligned(rows: Array) -> Array:
    matrix = np.frombuffer(b"\0" + rows.tobytes(), np.uint8)[1:].view(np.float64).reshape(rows.shape)
    assert not matrix.flags.aligned
    return matrix


def test_rows_may_have_any_memory_layout(tmp_path: Path) -> None:
    model = RandomForestRegressor(5, random_state=0).fit(DATA.x, DATA.value)
    runtime, expected = served(tmp_path, model), model.predict(DATA.x)
    read_only = DATA.x.copy()
    read_only.setflags(write=False)
    forms = [read_only, np.asfortranarray(DATA.x), DATA.x.astype(np.float32), np.repeat(DATA.x, 2, 0)[::2]]
    for matrix in [*forms, unaligned(DATA.x)]:
        np.testing.assert_array_equal(runtime.run(Rows(matrix=matrix))["value"], expected)
    columns = tuple(DATA.x.T)
    np.testing.assert_array_equal(runtime.run(Rows(columns=columns))["value"], expected)
    assert read_only.tobytes() == DATA.x.tobytes(), "rows must stay unchanged"


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    runtime = served(tmp_path, RandomForestRegressor(2).fit(DATA.x, DATA.value))
    with pytest.raises(Invalid, match="8 features, the rows have 7"):
        runtime.run(Rows(matrix=np.zeros((3, 7))))


def test_concurrent_threads_get_their_own_answers(tmp_path: Path) -> None:
    model = RandomForestClassifier(20, random_state=0).fit(DATA.with_missing, DATA.names)
    runtime = served(tmp_path, model)
    parts = np.array_split(DATA.with_missing, 8)
    answers: dict[int, Any] = {}

    def run(i: int) -> None:
        for _ in range(20):
            answers[i] = runtime.run(Rows(matrix=parts[i]))
            first = runtime.run(Rows(matrix=parts[i][:1]))
            assert first["probabilities"].tolist() == answers[i]["probabilities"][:1].tolist()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, part in enumerate(parts):
        assert answers[i]["label"].tolist() == model.predict(part).tolist()


MATCHING = Signature("regression", (Input("a", "float64"),) * 8, (Output("value", "float64", (-1,)),))
TEXT = Signature("regression", (Input("a", "string"),) * 8, MATCHING.outputs)
NARROW_SIGNATURE = Signature("regression", MATCHING.inputs[:2], MATCHING.outputs)
CLASSES = Signature("classification", MATCHING.inputs, (Output("label", "int64", (-1,), (0, 1)),))
TARGETS = Signature("regression", MATCHING.inputs, (Output("values", "float64", (-1, 2), ("y0", "y1")),))


@pytest.mark.parametrize(
    "signature", [TEXT, NARROW_SIGNATURE, CLASSES, TARGETS], ids=["text", "narrow", "class", "two"]
)
def test_a_table_that_does_not_fit_the_signature_is_unavailable(tmp_path: Path, signature: Signature) -> None:
    path = tmp_path / "forest.nodes"
    node_file.save(flatten(RandomForestRegressor(2, random_state=0).fit(DATA.x, DATA.value)), path)
    assert ForestRuntime(path, MATCHING, load_or_compile()).bytes > 0
    with pytest.raises(Unavailable, match="table of nodes"):
        ForestRuntime(path, signature, load_or_compile())


def test_a_missing_or_invalid_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    for name, message in (("nonsense", "it is too short"), ("missing", "cannot be read")):
        with pytest.raises(Unavailable, match=message):
            ForestRuntime(tmp_path / name, MATCHING, load_or_compile())


def test_loading_the_runtime_imports_no_scikit_learn() -> None:
    code = """
import sys
import service.runtime.forest_runtime
print([name for name in ("sklearn", "joblib", "pandas", "onnx", "onnxruntime") if name in sys.modules])
"""
    argv = [sys.executable, "-c", code]
    process = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert process.stdout.strip() == "[]"
