from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from registry.errors import Invalid, Unavailable
from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.compiler.tflite.conversion import convert
from service.compiler.tflite.operators import Graph
from service.runtime.tflite_runtime import BLOCK_ROWS, TfliteRuntime
from tests.service.compiler.tflite import cases
from tests.service.compiler.tflite.litert_helpers import loaded, signature_of

DATA = cases.data(600)
MODEL = RandomForestClassifier(10, max_depth=6, random_state=0).fit(DATA.x, DATA.names)
SIGNATURE = signature_of(MODEL)
FILE = convert(MODEL, SIGNATURE)


def test_labels_are_the_classes_themselves(tmp_path: Path) -> None:
    answer = loaded(tmp_path, FILE, SIGNATURE).run(Rows(matrix=DATA.x))
    assert answer["label"].tolist() == MODEL.predict(DATA.x.astype(np.float32)).tolist()
    assert answer["probabilities"].dtype == np.float64


def test_batches_of_any_size_answer_row_by_row(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, FILE, SIGNATURE)
    expected = MODEL.predict(DATA.x.astype(np.float32))
    for size in (1, 7, BLOCK_ROWS, BLOCK_ROWS + 1, 1, 600):
        assert runtime.run(Rows(matrix=DATA.x[:size]))["label"].tolist() == expected[:size].tolist()


def test_threads_get_their_own_answers(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, FILE, SIGNATURE)
    expected = MODEL.predict(DATA.x.astype(np.float32))

    def run(i: int) -> bool:
        rows = slice(i, i + 1 + i % 5)
        return runtime.run(Rows(matrix=DATA.x[rows]))["label"].tolist() == expected[rows].tolist()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(400)))


def test_rows_can_be_columns_or_a_matrix(tmp_path: Path) -> None:
    runtime = loaded(tmp_path, FILE, SIGNATURE)
    columns = Rows(columns=tuple(DATA.x[:9].T))
    assert runtime.run(columns)["label"].tolist() == runtime.run(Rows(matrix=DATA.x[:9]))["label"].tolist()
    text = Rows(columns=(np.array(["a"], dtype=object), *DATA.x[:1, 1:].T))
    with pytest.raises(Invalid, match="takes no text"):
        runtime.run(text)


def test_several_targets_are_one_array(tmp_path: Path) -> None:
    model = RandomForestRegressor(5, max_depth=4, random_state=0).fit(DATA.x, DATA.values)
    signature = signature_of(model)
    answer = loaded(tmp_path, convert(model, signature), signature).run(Rows(matrix=DATA.x))
    assert answer["values"].shape == (600, 2)


@pytest.mark.parametrize("content", [b"", b"nonsense", FILE[: len(FILE) // 2]])
def test_a_file_that_is_not_tflite_is_unavailable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(Unavailable, match="cannot be loaded"):
        TfliteRuntime(path, SIGNATURE)


def test_a_file_for_other_features_is_unavailable(tmp_path: Path) -> None:
    more = msgspec.structs.replace(SIGNATURE, inputs=(*SIGNATURE.inputs, Input("another", "float64")))
    with pytest.raises(Unavailable, match="holds 8 numbers, the signature has 9 features"):
        loaded(tmp_path, FILE, more)


def test_a_file_without_the_signatures_output_is_unavailable(tmp_path: Path) -> None:
    model = RandomForestRegressor(2, max_depth=2, random_state=0).fit(DATA.x, DATA.value)
    with pytest.raises(Unavailable, match="no output 'label'"):
        loaded(tmp_path, convert(model, signature_of(model)), SIGNATURE)


def lookup_table() -> bytes:
    """A graph that looks up `x0` in a table of ten numbers; other values are refused."""
    graph = Graph(1)
    value = graph.gather(graph.constant(np.arange(10.0)), graph.cast(graph.input, "int32"))
    return graph.finish({"value": graph.mul(value, 2.0)}, {})


def test_a_refusal_does_not_contain_the_texts_of_earlier_ones(tmp_path: Path) -> None:
    """LiteRT adds the text of each error to those before it."""
    signature = Signature("regression", (Input("x0", "float64"),), (Output("value", "float64", (-1,)),))
    runtime = loaded(tmp_path, lookup_table(), signature)
    messages = set()
    for number in range(5):
        with pytest.raises(
            Invalid, match="the model refuses these rows: gather index out of bounds; Node number"
        ) as raised:
            runtime.run(Rows(matrix=np.full((1 + number % 2, 1), 10.0)))
        messages.add(str(raised.value))
        assert runtime.run(Rows(matrix=np.array([[3.0], [9.0]])))["value"].tolist() == [6.0, 18.0]
    assert len(messages) == 1
