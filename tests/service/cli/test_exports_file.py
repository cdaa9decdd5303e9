"""The file that `trivium export --out` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.cli.exports import _write_atomically
from tests.harness.durability import Event, recorded


def test_an_export_is_fsynced_before_its_rename_and_its_directory_after_it(tmp_path: Path) -> None:
    out = tmp_path / "model.tflite"
    out.write_bytes(b"the former export")
    with recorded() as log:
        _write_atomically(out, b"content")
    assert out.read_bytes() == b"content"
    log.saved(out)
    assert log.steps(tmp_path) == [
        "fsync model.tflite.part",
        "rename model.tflite.part -> model.tflite",
        "fsync .",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failed_write_leaves_the_former_export_and_no_other_file(tmp_path: Path, step: str) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == step:
            raise OSError(5, "Input/output error")

    out = tmp_path / "model.tflite"
    out.write_bytes(b"the former export")
    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        _write_atomically(out, b"content")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {out.name: b"the former export"}
