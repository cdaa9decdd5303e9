"""Exports of Keras models and of published .tflite files, in this process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.build_messages import BuildResult, ExportBounds, ExportRequest, ExportResult
from registry.rows import Rows
from registry.vocabulary import Format, Quantize
from service.compiler.export import export_version
from service.compiler.tflite import read_metadata
from service.runtime.tflite_runtime import TfliteRuntime
from tests.service.compiler.keras import keras_models as made

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def exported(
    folder: Path, built: BuildResult, file: str, format: Format, **more: Any
) -> tuple[ExportRequest, ExportResult]:
    assert built.signature is not None, built.report
    out = folder / f"export-{more.get('quantize')}"
    out.mkdir()
    job = ExportRequest(
        artifact=str(folder / file),
        format=format,
        signature=built.signature,
        model="digits",
        version=1,
        out=str(out),
        example=str(folder / "example.csv"),
        example_media_type="text/csv",
        target="digit",
        **more,
    )
    return job, export_version(job)


@pytest.mark.parametrize(
    ("quantize", "bytes_below", "agree"),
    [("none", 1.0, 1.0), ("float16", 0.6, 0.999), ("dynamic", 0.4, 0.99), ("int8", 0.4, 0.97)],
)
def test_a_cnn_is_exported_smaller_and_answers_nearly_alike(
    tmp_path: Path, quantize: Quantize, bytes_below: float, agree: float
) -> None:
    built = made.publish(tmp_path, made.cnn(), made.digits_frame(slice(made.TRAINING_ROWS, None)), target="digit")
    job, found = exported(tmp_path, built, "model.keras", "keras", quantize=quantize)
    assert found.state == "ready", found.report
    assert found.min_runtime
    file = Path(job.out, found.file or "")
    assert file.stat().st_size <= bytes_below * found.report["bytes"]["float32"]
    assert found.report["accuracy"]["drop"] < 0.02
    assert read_metadata(file.read_bytes())["features"][0] == "p0"
    pixels, _ = made.digits()
    got = TfliteRuntime(file, job.signature).run(Rows(pixels.reshape(-1, 64).astype(np.float64)))
    own = np.asarray(made.cnn()(pixels, training=False))
    assert (got["label"] == own.argmax(axis=1)).mean() >= agree


def test_an_export_above_its_bytes_is_rejected(tmp_path: Path) -> None:
    built = made.publish(tmp_path, made.cnn(), made.digits_frame(slice(made.TRAINING_ROWS, None)), target="digit")
    _, found = exported(tmp_path, built, "model.keras", "keras", bounds=ExportBounds(max_bytes=1000))
    assert found.state == "rejected"
    assert "the bound is 1,000" in found.report["reason"]


def test_a_published_tflite_is_delivered_as_it_is_or_smaller(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(made.exported("cnn"))
    frame = made.digits_frame(slice(made.TRAINING_ROWS, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = made.publish_file(tmp_path, tmp_path / "model.tflite", frame, "tflite", target="digit")
    whole, smaller = (
        exported(tmp_path, built, "model.tflite", "tflite", quantize=q) for q in ("none", "dynamic")
    )
    for _, found in (whole, smaller):
        assert found.state == "ready", found.report
    assert Path(whole[0].out, whole[1].file or "").read_bytes() == made.exported("cnn")
    assert Path(smaller[0].out, smaller[1].file or "").stat().st_size < 0.5 * len(made.exported("cnn"))
