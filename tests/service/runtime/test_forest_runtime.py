"""The kernel over the table of nodes: every ensemble's own answers, for any rows, from any thread."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

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
from service.compiler.measure.comparison_rows import _beside
from service.compiler.measure.tree_thresholds import thresholds
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import describe
from service.compiler.signature.estimator import Estimator
from service.compiler.trees.flatten import flatten
from service.compiler.trees.tree_pipeline import split
from service.runtime import forest_kernel, node_file
from service.runtime.forest_runtime import BLOCK, ForestRuntime
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
    steps, last = split(model)
    node_file.save(flatten(last), folder / "forest.npz", steps)
    return ForestRuntime(folder / "forest.npz", signature_of(model))


def at_splits(model: Any, rows: Array, most: int = 2000) -> Array:
    """Rows that hold a threshold of the model, or the next number beside it."""
    splits = thresholds(model)
    splits = splits[np.random.default_rng(0).permutation(len(splits))[:most]]
    made = []
    for values in _beside(splits[:, 1]):
        block = rows[np.arange(len(splits)) % len(rows)]
        block[np.arange(len(splits)), splits[:, 0].astype(int)] = values
        made.append(block)
    return np.concatenate(made) if len(splits) else rows[:0]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_arithmetic_with_columns_and_a_forest_is_refused_by_name(name: str) -> None:
    model, _ = cases.fitted(name, DATA)
    with pytest.raises(Refused, match="table of nodes"):
        flatten(split(model)[1])


@pytest.mark.parametrize("name", NAMES)
def test_an_ensemble_answers_as_it_does_in_scikit_learn(tmp_path: Path, name: str) -> None:
    model, rows = cases.fitted(name, DATA)
    far = (
        np.random.default_rng(1).choice([-1.0, 1.0], rows.shape)
        * 10.0 ** np.linspace(-40, 34, len(rows))[:, None]
    )
    asked = np.vstack([rows, far, at_splits(model, rows)])
    with np.errstate(over="ignore"):  # a tree that splits off missing values alone has an infinite threshold
        asked = asked[~np.isinf(asked.astype(np.float32)).any(axis=1)]
    runtime = served(tmp_path, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Estimator(model, signature_of(model)).run(Rows(matrix=asked))
    got = runtime.run(Rows(matrix=asked))
    assert set(got) == set(expected)
    for output, answer in expected.items():
        assert got[output].dtype == answer.dtype
        if output.endswith("label"):
            assert got[output].tolist() == answer.tolist()
        else:
            np.testing.assert_allclose(got[output], answer, rtol=1e-12, atol=1e-12)


def test_equal_votes_go_to_the_class_that_scikit_learn_picks(tmp_path: Path) -> None:
    features, labels = make_classification(400, 8, flip_y=0.4, random_state=0)
    model = RandomForestClassifier(50, random_state=0).fit(features, labels)
    rows = np.random.default_rng(1).normal(size=(5000, 8))
    chances = model.predict_proba(rows)
    assert (chances[:, 0] == chances[:, 1]).sum() > 20, "this dataset is made to give ties"
    answered = served(tmp_path, model).run(Rows(matrix=rows))
    assert (answered["label"] == model.predict(rows)).all()
    assert (answered["probabilities"] == chances).all()


@pytest.mark.parametrize("rows", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 511, 512, 513, 5 * BLOCK + 3])
def test_any_number_of_rows_is_answered_row_by_row(tmp_path: Path, rows: int) -> None:
    model = RandomForestRegressor(7, random_state=0).fit(DATA.x, DATA.values)
    asked = np.resize(DATA.x, (rows, cases.FEATURES))
    answered = served(tmp_path, model).run(Rows(matrix=asked))["values"]
    assert answered.shape == (rows, 2)
    np.testing.assert_array_equal(answered, np.resize(model.predict(DATA.x), (rows, 2)))


SPECIAL = st.sampled_from([np.nan, np.inf, -np.inf, 1e300, -1e300, 3.5e38, -3.5e38, 0.0, -0.0, 5e-324, 1e-45])
BOOSTED = HistGradientBoostingRegressor(max_iter=20, random_state=0).fit(DATA.holed, DATA.value)
GROWN = RandomForestRegressor(5, random_state=0).fit(DATA.holed, DATA.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forests")


@given(st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("model", [BOOSTED, GROWN], ids=["float64", "float32"])
def test_missing_infinite_and_huge_values_go_where_the_trees_send_them(
    folder: Path, model: Any, data: st.DataObject
) -> None:
    known = st.sampled_from(thresholds(model)[:, 1].tolist())
    number = st.one_of(
        SPECIAL, known, known.map(lambda v: float(np.nextafter(v, np.inf))), st.floats(width=64)
    )
    drawn = st.lists(st.lists(number, min_size=8, max_size=8), min_size=1, max_size=20)
    rows = np.array(data.draw(drawn), dtype=np.float64)
    with np.errstate(over="ignore"):
        expected = flatten(model).raw(rows)[:, 0]
    np.testing.assert_allclose(served(folder, model).run(Rows(matrix=rows))["value"], expected, rtol=1e-12)
    if model is BOOSTED:  # the other refuses what float32 cannot hold
        np.testing.assert_allclose(model.predict(rows), expected, rtol=1e-12)


def test_a_tree_as_deep_as_a_chain_is_walked_to_its_end(tmp_path: Path) -> None:
    column = (2.0 ** np.arange(-100.0, 100.0)).reshape(-1, 1)
    model = DecisionTreeRegressor(random_state=0).fit(column, column[:, 0])
    assert model.get_depth() > 50
    rows = np.random.default_rng(0).permutation(column)
    answered = served(tmp_path, model).run(Rows(matrix=rows))["value"]
    np.testing.assert_array_equal(answered, model.predict(rows))


def test_wide_rows_come_in_smaller_blocks(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 9000))
    model = ExtraTreesRegressor(5, random_state=0).fit(rows, rows[:, -1])
    np.testing.assert_array_equal(
        served(tmp_path, model).run(Rows(matrix=rows))["value"], model.predict(rows)
    )


def unaligned(rows: Array) -> Array:
    made = np.frombuffer(b"\0" + rows.tobytes(), np.uint8)[1:].view(np.float64).reshape(rows.shape)
    assert not made.flags.aligned
    return made


def test_rows_are_taken_in_whatever_form_they_lie_in_memory(tmp_path: Path) -> None:
    model = RandomForestRegressor(5, random_state=0).fit(DATA.x, DATA.value)
    runtime, expected = served(tmp_path, model), model.predict(DATA.x)
    read_only = DATA.x.copy()
    read_only.setflags(write=False)
    forms = [read_only, np.asfortranarray(DATA.x), DATA.x.astype(np.float32), np.repeat(DATA.x, 2, 0)[::2]]
    for matrix in [*forms, unaligned(DATA.x)]:
        np.testing.assert_array_equal(runtime.run(Rows(matrix=matrix))["value"], expected)
    columns = tuple(DATA.x.T)
    np.testing.assert_array_equal(runtime.run(Rows(columns=columns))["value"], expected)
    assert read_only.tobytes() == DATA.x.tobytes(), "rows are never written to"


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    runtime = served(tmp_path, RandomForestRegressor(2).fit(DATA.x, DATA.value))
    with pytest.raises(Invalid, match="8 features"):
        runtime.run(Rows(matrix=np.zeros((3, 7))))


def test_threads_that_ask_at_once_get_their_own_answers(tmp_path: Path) -> None:
    model = RandomForestClassifier(20, random_state=0).fit(DATA.holed, DATA.names)
    runtime = served(tmp_path, model)
    parts = np.array_split(DATA.holed, 8)
    answers: dict[int, Any] = {}

    def ask(i: int) -> None:
        for _ in range(20):
            answers[i] = runtime.run(Rows(matrix=parts[i]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, part in enumerate(parts):
        assert answers[i]["label"].tolist() == model.predict(part).tolist()
    assert forest_kernel.add_leaves.targetoptions["nogil"], "or they would take turns"


FITS = Signature("regression", (Input("a", "float64"),) * 8, (Output("value", "float64", (-1,)),))
TEXT = Signature("regression", (Input("a", "string"),) * 8, FITS.outputs)
NARROW = Signature("regression", FITS.inputs[:2], FITS.outputs)
CLASSES = Signature("classification", FITS.inputs, (Output("label", "int64", (-1,), (0, 1)),))
TARGETS = Signature("regression", FITS.inputs, (Output("values", "float64", (-1, 2), ("y0", "y1")),))


@pytest.mark.parametrize(
    "signature", [TEXT, NARROW, CLASSES, TARGETS], ids=["text", "narrow", "class", "two"]
)
def test_a_table_that_does_not_fit_the_signature_is_unavailable(tmp_path: Path, signature: Signature) -> None:
    path = tmp_path / "forest.npz"
    node_file.save(flatten(RandomForestRegressor(2, random_state=0).fit(DATA.x, DATA.value)), path)
    assert ForestRuntime(path, FITS).bytes > 0
    with pytest.raises(Unavailable, match="table of nodes"):
        ForestRuntime(path, signature)


def test_a_file_that_is_gone_or_no_table_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    for name in ("nonsense", "gone"):
        with pytest.raises(Unavailable, match="cannot be read"):
            ForestRuntime(tmp_path / name, FITS)


def test_loading_the_runtime_imports_no_scikit_learn() -> None:
    code = """
import sys
import service.runtime.forest_runtime
print([name for name in ("sklearn", "joblib", "pandas", "onnx", "onnxruntime") if name in sys.modules])
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
