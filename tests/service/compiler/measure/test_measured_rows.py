"""The stored rows of a version: which are kept, and what counts as the same answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from registry.errors import Refused
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from service.compiler.measure import measured_rows

CLASSES = ("no", "yes")
SIGNATURE = Signature(
    "classification",
    (Input("x", "float64"), Input("y", "float64")),
    (Output("label", "string", (-1,), CLASSES), Output("probabilities", "float64", (-1, 2), CLASSES)),
)


def rows(count: int, width: int = 2, seed: int = 0) -> Rows:
    return Rows(matrix=np.random.default_rng(seed).random((count, width)))


def answer(rows: Rows, shift: float = 0.0) -> Outputs:
    assert rows.matrix is not None
    second = np.clip(rows.matrix[:, 0] + shift, 0, 1)
    label = np.array(CLASSES, dtype=object)[(second > 0.5).astype(int)]
    return {"label": label, "probabilities": np.column_stack([1 - second, second])}


def test_rows_and_answers_are_read_as_they_were_saved(tmp_path: Path) -> None:
    kinds = {"example": rows(20), "random": rows(30, seed=1)}
    assert measured_rows.save(tmp_path, kinds, answer) == measured_rows.FILE
    blocks = measured_rows.read(tmp_path / measured_rows.FILE)
    assert {b.kind: len(b.rows) for b in blocks} == {"example": 20, "random": 30}
    figures = measured_rows.compare(blocks, answer, SIGNATURE, 2e-6)
    assert (figures.within, figures.largest_difference) == (True, 0.0)


def test_texts_and_missing_values_are_kept(tmp_path: Path) -> None:
    columns = (np.array(["a", None, ""], dtype=object), np.array([1.0, np.nan, 2.0]))
    value = {"value": np.array([1.0, np.nan, np.inf])}
    measured_rows.save(tmp_path, {"example": Rows(columns=columns)}, lambda rows: value)
    (block,) = measured_rows.read(tmp_path / measured_rows.FILE)
    assert block.rows.columns is not None
    assert block.rows.columns[0].tolist() == ["a", None, ""]
    np.testing.assert_array_equal(block.rows.columns[1], columns[1])
    np.testing.assert_array_equal(block.answers["value"], value["value"])


def test_rows_are_limited_and_every_kind_keeps_some(tmp_path: Path) -> None:
    kinds = {"example": rows(10_000), "wide": rows(20), "threshold": rows(1200)}
    measured_rows.save(tmp_path, kinds, answer)
    counts = {b.kind: len(b.rows) for b in measured_rows.read(tmp_path / measured_rows.FILE)}
    assert counts["wide"] == measured_rows.MIN_KIND_ROWS
    assert sum(counts.values()) <= measured_rows.MAX_ROWS + 2 * measured_rows.MIN_KIND_ROWS


def test_wide_rows_are_fewer(tmp_path: Path) -> None:
    measured_rows.save(tmp_path, {"random": rows(200, width=10_000)}, answer)
    file = tmp_path / measured_rows.FILE
    assert file.stat().st_size <= measured_rows.MAX_BYTES
    assert len(measured_rows.read(file)[0].rows) >= 25


def test_a_model_that_accepts_no_row_has_no_file(tmp_path: Path) -> None:
    def refuse(rows: Rows) -> Outputs:
        raise ValueError("outside the domain")

    assert measured_rows.save(tmp_path, {"random": rows(5)}, refuse) is None


def test_other_labels_and_numbers_are_differences(tmp_path: Path) -> None:
    measured_rows.save(tmp_path, {"random": rows(200)}, answer)
    blocks = measured_rows.read(tmp_path / measured_rows.FILE)
    figures = measured_rows.compare(blocks, lambda r: answer(r, 0.01), SIGNATURE, 2e-6)
    assert not figures.within
    assert figures.label_mismatches > 0
    assert figures.largest_difference == pytest.approx(0.01)


def test_the_other_label_of_a_tie_is_no_difference(tmp_path: Path) -> None:
    tied = Rows(matrix=np.full((3, 2), 0.5))
    measured_rows.save(tmp_path, {"example": tied}, answer)
    blocks = measured_rows.read(tmp_path / measured_rows.FILE)
    assert measured_rows.compare(blocks, lambda r: answer(r, 1e-9), SIGNATURE, 2e-6).within


@pytest.mark.parametrize("content", [b"", b"\x80", msgspec.msgpack.encode([{"kind": "example"}])])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(Refused, match="measured rows cannot be read"):
        measured_rows.read(file)


def test_few_rows_are_answered_at_once_where_an_answer_is_wide(tmp_path: Path) -> None:
    counts = []

    def vectors(rows: Rows) -> Outputs:
        counts.append(len(rows))
        return {"vector": np.zeros((len(rows), 2**16))}

    measured_rows.save(tmp_path, {"random": rows(500)}, vectors)
    assert max(counts) <= measured_rows.MAX_BYTES // (8 * 2**16)
    assert (tmp_path / measured_rows.FILE).stat().st_size <= measured_rows.MAX_BYTES
