"""Exports of Keras models and of published .tflite files, in this process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.build_messages import ExportBounds, ExportRequest, ExportResult
from registry.rows import Rows
from registry.vocabulary import Format, Quantize
from service.compiler.export import export_version
from service.compiler.tflite.metadata import read_metadata
from service.runtime.tflite_runtime import TfliteRuntime
from tests.service.compiler.keras import keras_models
from tests.service.compiler.keras.keras_models import Published

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def export_from(
    published: Published, out: Path, file: str, format: Format, **options: Any
) -> tuple[ExportRequest, ExportResult]:
    folder, built = published
    assert built.signature is not None, built.report
    out.mkdir()
    request = ExportRequest(
        artifact=str(folder / file),
        format=format,
        signature=built.signature,
        model="digits",
        version=1,
        out=str(out),
        example=str(folder / "example.csv"),
        example_media_type="text/csv",
        target="digit",
        **options,
    )
    return request, export_version(request)


@pytest.mark.parametrize(
    ("quantize", "bytes_below", "agree"),
    [("none", 1.0, 1.0), ("float16", 0.6, 0.999), ("dynamic", 0.4, 0.99), ("int8", 0.4, 0.97)],
)
def test_a_quantized_cnn_is_smaller_and_agrees_with_keras(
    published_cnn: Published, tmp_path: Path, quantize: Quantize, bytes_below: float, agree: float
) -> None:
    request, result = export_from(published_cnn, tmp_path / "out", "model.keras", "keras", quantize=quantize)
    assert result.state == "ready", result.report
    assert result.min_runtime
    file = Path(request.out, result.file or "")
    assert file.stat().st_size <= bytes_below * result.report["bytes"]["float32"]
    assert result.report["accuracy"]["drop"] < 0.02
    assert read_metadata(file.read_bytes())["features"][0] == "p0"
    pixels, _ = keras_models.digits()
    answers = TfliteRuntime(file, request.signature).run(Rows(pixels.reshape(-1, 64).astype(np.float64)))
    own = np.asarray(keras_models.cnn()(pixels, training=False))
    assert (answers["label"] == own.argmax(axis=1)).mean() >= agree


def test_an_export_above_max_bytes_is_rejected(published_cnn: Published, tmp_path: Path) -> None:
    bounds = ExportBounds(max_bytes=1000)
    _, result = export_from(published_cnn, tmp_path / "out", "model.keras", "keras", bounds=bounds)
    assert result.state == "rejected"
    assert "the bound is 1,000" in result.report["reason"]


def test_a_published_tflite_is_delivered_unchanged_or_quantized(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(keras_models.exported("cnn"))
    frame = keras_models.digits_frame(slice(keras_models.TRAINING_ROWS, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = keras_models.publish_file(
            tmp_path, tmp_path / "model.tflite", frame, "tflite", target="digit"
        )
    published = Published(tmp_path, built)
    unchanged, smaller = (
        export_from(published, tmp_path / f"export-{q}", "model.tflite", "tflite", quantize=q)
        for q in ("none", "dynamic")
    )
    for _, result in (unchanged, smaller):
        assert result.state == "ready", result.report
    assert Path(unchanged[0].out, unchanged[1].file or "").read_bytes() == keras_models.exported("cnn")
    assert Path(smaller[0].out, smaller[1].file or "").stat().st_size < 0.5 * len(
        keras_models.exported("cnn")
    )
