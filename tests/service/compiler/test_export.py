"""Exports of scikit-learn versions in this process: ready files, rejections and reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.build_messages import ExportBounds, ExportRequest, ExportResult
from registry.rows import Rows
from service.compiler.export import export_version
from service.compiler.tflite.metadata import read_metadata
from service.runtime.tflite_runtime import TfliteRuntime
from tests.service.builds.export_requests import export_request, table

RequestFor = Callable[..., ExportRequest]


@pytest.fixture
def request_for(tmp_path: Path) -> RequestFor:
    def request_for(model: Any, rows: pd.DataFrame | None = None, **options: Any) -> ExportRequest:
        rows = table() if rows is None else rows
        model.fit(rows.drop(columns="y"), rows["y"])
        return export_request(tmp_path, model, rows, **options)

    return request_for


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(10, max_depth=6, random_state=0)


def network() -> Any:
    return make_pipeline(StandardScaler(), MLPClassifier((64, 64), max_iter=20, tol=1.0, random_state=0))


def ready(exported: ExportResult) -> dict[str, Any]:
    assert exported.state == "ready", exported.report
    return exported.report


def reason(exported: ExportResult) -> str:
    assert exported.state == "rejected"
    assert (exported.file, exported.zstd, exported.min_runtime) == (None, None, None)
    return str(exported.report["reason"])


def test_a_forest_as_tflite_gives_the_same_labels_one_ulp_next_to_its_thresholds(
    request_for: RequestFor,
) -> None:
    request = request_for(forest())
    report = ready(export_version(request))
    assert report["label_agreement"] == 1.0
    assert report["kinds"]["threshold"]["rows"] > 500
    assert all(kind["label_mismatches"] == 0 and kind["judged"] for kind in report["kinds"].values())
    assert report["largest_difference"] < 1e-6


def test_the_file_runs_on_litert_and_names_its_features_and_classes(request_for: RequestFor) -> None:
    request = request_for(forest())
    exported = export_version(request)
    ready(exported)
    assert exported.file is not None
    file = Path(request.out, exported.file)
    rows = table(50, seed=1)
    answers = TfliteRuntime(file, request.signature).run(Rows(rows.drop(columns="y").to_numpy()))
    model = joblib.load(request.artifact)
    assert answers["label"].tolist() == model.predict(rows.drop(columns="y")).tolist()
    metadata = read_metadata(file.read_bytes())
    assert metadata["features"] == ["f0", "f1", "f2", "f3"]
    assert metadata["outputs"][0]["classes"] == ["no", "yes"]


def test_the_compressed_copy_decompresses_to_the_same_file(request_for: RequestFor) -> None:
    request = request_for(forest())
    exported = export_version(request)
    report = ready(exported)
    assert exported.file is not None
    assert exported.zstd is not None
    plain, packed = (
        Path(request.out, exported.file).read_bytes(),
        Path(request.out, exported.zstd).read_bytes(),
    )
    assert pa.Codec("zstd").decompress(packed, len(plain), asbytes=True) == plain
    assert (report["bytes"]["tflite"], report["bytes"]["zstd"]) == (len(plain), len(packed))
    assert len(packed) < len(plain) / 2


def test_the_report_states_runtime_operators_latency_and_accuracy(request_for: RequestFor) -> None:
    exported = export_version(request_for(LogisticRegression()))
    report = ready(exported)
    assert report["min_runtime"] == exported.min_runtime
    assert "FULLY_CONNECTED" in report["operators"]
    assert 0 < report["latency_us"]["p50"] <= report["latency_us"]["p99"]
    assert report["bytes"]["artifact"] > 0
    accuracy = report["accuracy"]
    assert accuracy["measure"] == "accuracy"
    assert 0.8 < accuracy["before"] == accuracy["after"]
    assert msgspec.json.decode(msgspec.json.encode(report)) == report


def test_the_report_states_the_default_bounds(request_for: RequestFor) -> None:
    strict = ready(export_version(request_for(forest())))["bounds"]
    assert strict == {"labels": 0.0, "numbers": 0.001, "accuracy_drop": 0.002, "bytes": None}


def test_a_regression_is_judged_by_its_largest_relative_error(tmp_path: Path) -> None:
    rows = table().assign(y=lambda t: 3 * t["f0"] - t["f1"] + 100)
    model = LinearRegression().fit(rows.drop(columns="y"), rows["y"])
    report = ready(export_version(export_request(tmp_path, model, rows)))
    assert report["label_agreement"] is None
    assert report["largest_difference"] < 1e-5
    assert report["accuracy"]["measure"] == "r2"
    assert not report["kinds"]["wide"]["judged"]  # float32 has too few digits there for any model


def test_a_regression_outside_the_requested_error_is_rejected(tmp_path: Path) -> None:
    rows = table().assign(y=lambda t: 3 * t["f0"] - t["f1"] + 100)
    model = LinearRegression().fit(rows.drop(columns="y"), rows["y"])
    request = export_request(tmp_path, model, rows, bounds=ExportBounds(max_disagreement=0.0))
    assert "a number differs from the model's" in reason(export_version(request))


def test_an_estimator_without_a_tflite_form_is_rejected_by_name(request_for: RequestFor) -> None:
    text = reason(export_version(request_for(KNeighborsClassifier())))
    assert "KNeighborsClassifier has no TFLite form; supported: " in text
    assert "LogisticRegression" in text


def test_text_features_are_rejected_by_name(tmp_path: Path) -> None:
    rows = table().assign(f0="a")
    model = RandomForestClassifier(2).fit(rows[["f1"]], rows["y"])
    request = export_request(tmp_path, model, rows[["f1", "y"]])
    inputs = tuple(
        msgspec.structs.replace(i, name="colour", dtype="string") for i in request.signature.inputs
    )
    request = msgspec.structs.replace(
        request,
        signature=msgspec.structs.replace(request.signature, inputs=inputs),
        example=None,
        target=None,
    )
    assert "'colour' is text" in reason(export_version(request))


def test_onnx_versions_are_rejected_by_name(request_for: RequestFor) -> None:
    request = msgspec.structs.replace(request_for(forest()), format="onnx")
    assert "format onnx has no TFLite form" in reason(export_version(request))


def test_a_file_above_max_bytes_is_rejected_with_both_sizes(request_for: RequestFor) -> None:
    text = reason(export_version(request_for(LogisticRegression(), bounds=ExportBounds(max_bytes=100))))
    assert "the bound is 100" in text
    assert "bytes" in text


def test_a_bound_that_cannot_be_measured_rejects_the_export(tmp_path: Path) -> None:
    rows = table()
    model = LogisticRegression().fit(rows.drop(columns="y"), rows["y"])
    request = export_request(
        tmp_path, model, rows.drop(columns="y"), bounds=ExportBounds(max_accuracy_drop=0.1)
    )
    assert "no example with a target column" in reason(export_version(request))


def test_an_artifact_that_is_not_a_model_is_rejected(request_for: RequestFor) -> None:
    request = request_for(forest())
    Path(request.artifact).write_bytes(b"no pickle")
    assert "pickle" in reason(export_version(request))


def test_integers_that_float32_cannot_hold_add_a_warning(tmp_path: Path) -> None:
    rows = table().assign(f0=lambda t: np.arange(len(t)) + 1_700_000_000)
    model = forest().fit(rows.drop(columns="y"), rows["y"])
    exported = export_version(export_request(tmp_path, model, rows))
    assert any("cannot tell all values of f0 apart" in warning for warning in exported.report["warnings"])


def test_the_report_states_how_answers_change_when_inputs_are_rounded_to_float32(tmp_path: Path) -> None:
    """Histogram boosting compares doubles, and its thresholds may lie on values of the data."""
    rows = table().assign(f0=lambda t: np.where(np.arange(len(t)) % 2, 0.1, np.nextafter(0.1, 1)))
    rows["y"] = np.where(rows["f0"] > 0.1, "yes", "no")
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=1).fit(rows[["f0"]], rows["y"])
    exported = export_version(export_request(tmp_path, model, rows[["f0", "y"]]))
    rounding = exported.report["input_rounding"]
    assert (rounding["rows"], rounding["label_mismatches"]) == (400, 200)
    assert any("rounded" in warning for warning in exported.report["warnings"])
    (folder := tmp_path / "forest").mkdir()
    forest_job = export_request(folder, forest().fit(rows[["f0"]], rows["y"]), rows[["f0", "y"]])
    assert export_version(forest_job).report["input_rounding"]["label_mismatches"] == 0, (
        "a forest rounds its input itself"
    )


def test_an_export_without_an_example_is_compared_on_random_rows(tmp_path: Path) -> None:
    rows = table()
    model = forest().fit(rows.drop(columns="y"), rows["y"])
    report = ready(export_version(export_request(tmp_path, model, None)))
    assert set(report["kinds"]) == {"random", "wide", "threshold"}
    assert report["accuracy"] is None


def test_int8_is_calibrated_with_one_half_of_the_example_and_compared_on_the_other(
    request_for: RequestFor,
) -> None:
    report = ready(export_version(request_for(network(), quantize="int8")))
    assert report["calibration"] == {"rows": 200, "from": "the version's example"}
    assert report["kinds"]["example"] == {**report["kinds"]["example"], "rows": 200, "judged": True}
    assert not report["kinds"]["random"]["judged"]
    assert report["accuracy"]["rows"] == 200
    assert report["bytes"]["tflite"] < 0.7 * report["bytes"]["float32"]
    assert report["notes"] == [
        f"int8: {report['bytes']['float32']:,} bytes before, {report['bytes']['tflite']:,} after"
    ]


def test_a_small_example_is_used_for_calibration_and_comparison_with_a_warning(
    request_for: RequestFor,
) -> None:
    report = ready(
        export_version(request_for(network(), table(20), quantize="int8", bounds=ExportBounds(1.0, 1.0)))
    )
    assert any("20 rows" in warning and "also" in warning for warning in report["warnings"])


def test_with_calibration_rows_int8_is_compared_on_the_complete_example(
    request_for: RequestFor, tmp_path: Path
) -> None:
    file = tmp_path / "rows.json"
    file.write_text(table(50, seed=3).to_json(orient="records"))
    options = {"calibration": str(file), "calibration_media_type": "application/json"}
    report = ready(export_version(request_for(network(), quantize="int8", **options)))
    assert report["calibration"] == {"rows": 50, "from": "the given rows"}
    assert report["kinds"]["example"]["rows"] == 400


def test_int8_without_rows_is_rejected_with_a_hint_for_calibration_rows(tmp_path: Path) -> None:
    rows = table()
    model = network().fit(rows.drop(columns="y"), rows["y"])
    text = reason(export_version(export_request(tmp_path, model, None, quantize="int8")))
    assert "give calibration rows, or publish it with an example" in text


@pytest.mark.parametrize("mode", ["float16", "dynamic", "int8"])
def test_quantizing_a_forest_changes_nothing_and_the_report_notes_it(
    request_for: RequestFor, mode: str
) -> None:
    report = ready(export_version(request_for(forest(), quantize=mode)))
    assert report["bytes"]["tflite"] == report["bytes"]["float32"]
    assert "gains nothing" in report["notes"][0]
    assert report["label_agreement"] == 1.0


@pytest.mark.parametrize("mode", ["float16", "dynamic"])
def test_a_quantized_network_is_smaller_and_within_its_bounds(request_for: RequestFor, mode: str) -> None:
    report = ready(export_version(request_for(network(), quantize=mode)))
    assert report["bytes"]["tflite"] < 0.75 * report["bytes"]["float32"]
    assert report["label_agreement"] > 0.97


def test_int8_calibrated_with_unsuitable_rows_is_rejected_with_its_figures(
    request_for: RequestFor, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    (table(50).drop(columns="y") * 1e-3).to_csv(file, index=False)
    options = {"calibration": str(file), "calibration_media_type": "text/csv"}
    text = reason(export_version(request_for(network(), quantize="int8", **options)))
    assert "labels differ from the model's" in text
    assert "the bound is 0.05" in text


def test_a_forest_drops_trees_and_leaves_to_fit_max_bytes_and_the_report_lists_them(
    request_for: RequestFor,
) -> None:
    request = request_for(RandomForestClassifier(50, random_state=0))
    full_bytes = ready(export_version(request))["bytes"]["tflite"]
    exported = export_version(
        msgspec.structs.replace(request, bounds=ExportBounds(max_bytes=full_bytes // 3))
    )
    report = ready(exported)
    assert exported.file is not None
    assert (
        full_bytes // 5
        < Path(request.out, exported.file).stat().st_size
        == report["bytes"]["tflite"]
        <= full_bytes // 3
    )
    assert report["bytes"]["float32"] == full_bytes
    assert "of 50 trees" in report["given_up"] or "leaves" in report["given_up"]
    assert report["label_agreement"] > 0.95
    assert report["bounds"]["labels"] == 0.05
    assert not report["kinds"]["threshold"]["judged"]


def test_a_forest_that_lost_too_much_is_rejected(request_for: RequestFor) -> None:
    request = request_for(RandomForestClassifier(50, random_state=0))
    full_bytes = ready(export_version(request))["bytes"]["tflite"]
    text = reason(
        export_version(msgspec.structs.replace(request, bounds=ExportBounds(0.0, None, full_bytes // 3)))
    )
    assert "labels differ from the model's" in text


def test_a_forest_above_max_bytes_is_rejected_with_its_smallest_size(request_for: RequestFor) -> None:
    text = reason(export_version(request_for(forest(), bounds=ExportBounds(max_bytes=200))))
    assert "the bound is 200" in text
    assert "at least" in text
