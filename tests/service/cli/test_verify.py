"""`trivium verify` and what `doctor` names, against a real server and its real builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from registry import db, versions
from registry.artifacts import Store
from service.compiler.measure import measured_rows
from service.config import Settings


def change_measured_labels(home: Path, folder: Path, model: str) -> None:
    """Store the other label for each measured row: as if all runtimes answered differently now."""
    settings = Settings(home=home)
    store, engine = Store(settings.blobs), db.connect(settings.url)
    with db.sessions(engine).begin() as session:
        row = versions.get(session, model, 1)
        blocks = measured_rows.read(store.path(row.measured))
        swapped = {
            id(b.rows): {
                **b.answers,
                "label": np.where(b.answers["label"] == "yes", "no", "yes").astype(object),
            }
            for b in blocks
        }
        measured_rows.save(folder, {b.kind: b.rows for b in blocks}, lambda rows: swapped[id(rows)])
        row.measured = store.put_file(folder / measured_rows.FILE).sha256
    engine.dispose()


def test_a_version_that_agrees_is_printed_with_its_figures(live, published):
    result = live("verify", f"{published}:1")
    assert result.code == 0, result.err
    first, second = result.out.splitlines()
    assert first == f"{published}:1 agrees"
    assert second.startswith("  onnx: ")
    assert "0 label mismatches" in second


def test_a_version_that_differs_fails_the_command_and_doctor_until_it_is_accepted(
    live, server, published, tmp_path
):
    name = f"{published}:1"
    change_measured_labels(server.home, tmp_path, published)
    differs = live("verify", published)
    assert differs.code == 1
    assert differs.out.startswith(f"{name} differs: onnx: ")
    assert "predictions and jobs are refused" in differs.out
    assert f"{name} differs: onnx: " in live("show", name).out
    doctor = live("doctor")
    assert doctor.code == 1
    assert f"answers: {name} (onnx: " in doctor.out
    accepted = live("verify", name, "--accept", "--json")
    assert (accepted.code, accepted.record["agreed"]) == (0, True), accepted.err
    assert accepted.record["versions"][0]["verification"]["figures"]["onnx"]["accepted"]
    assert name not in live("doctor").out
    assert "other answers were accepted by admin at " in live("verify", name).out


def test_answers_of_a_runtime_that_fails_are_not_accepted(live, server, published):
    settings = Settings(home=server.home)
    store, engine = Store(settings.blobs), db.connect(settings.url)
    with db.sessions(engine).begin() as session:
        versions.get(session, published, 1).servable = store.put([b"no graph"]).sha256
    engine.dispose()
    result = live("verify", f"{published}:1", "--accept")
    assert result.code == 1
    assert "nothing was accepted: the version's runtime fails" in result.err
    assert "  now: " in result.out
    assert live("delete", f"{published}", "--yes").code == 0


def test_a_version_without_measured_rows_cannot_be_verified(live, server, published):
    engine = db.connect(Settings(home=server.home).url)
    with db.sessions(engine).begin() as session:
        versions.get(session, published, 1).measured = None
    engine.dispose()
    result = live("verify", f"{published}:1")
    assert result.code == 1
    assert f"{published}:1 cannot be verified" in result.out
    assert "publish it again" in result.out


@pytest.mark.parametrize("model", [(), ("iris",)])
def test_answers_of_several_versions_are_not_accepted_at_once(trivium, model):
    result = trivium("verify", *model, "--accept")
    assert result.code == 2
    assert "--accept needs one version" in result.err
