"""Bounds of request bodies and headers of exports and devices: the last accepted and first rejected value."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.edge.edge_schemas import Calibration, DeviceId, EdgeQuery, ExportBody, ReportBody, RuntimeVersion
from service.publish.model_schemas import PromoteBody

EXPORT: dict[str, Any] = {"format": "tflite"}
REPORT: dict[str, Any] = {"device": "pi-1", "version": 1, "status": "ok"}
CALIBRATION: dict[str, Any] = {"artifact": "0" * 64, "media_type": "text/csv"}
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("model", "body", "field", "accepted", "rejected"),
    [
        (ExportBody, EXPORT, "format", ["tflite"], ["onnx", "", None]),
        (ExportBody, EXPORT, "quantize", ["none", "int8"], ["int4", None]),
        (ExportBody, EXPORT, "max_disagreement", [None, 0, 0.0, 1, 2.5], [-1e-9, NAN, INFINITE]),
        (ExportBody, EXPORT, "max_accuracy_drop", [None, 0, 1], [-1e-9, 1 + 1e-9, NAN]),
        (ExportBody, EXPORT, "max_bytes", [None, 1, 2**53], [0, 2**53 + 1, 1.5]),
        (ExportBody, EXPORT, "calibration", [None, CALIBRATION], ["0" * 64, {}]),
        (
            Calibration,
            CALIBRATION,
            "artifact",
            ["0" * 64, "f" * 64],
            ["0" * 63, "0" * 65, "g" * 64, "F" * 64],
        ),
        (Calibration, CALIBRATION, "media_type", ["text/csv"], ["image/png", None]),
        (ReportBody, REPORT, "device", ["a", "a" * 200], ["", "a" * 201, None]),
        (ReportBody, REPORT, "version", [1, 2**31 - 1], [0, 2**31, "1", None]),
        (ReportBody, REPORT, "status", ["ok", "failed"], ["fine", None]),
        (ReportBody, REPORT, "latency_ms", [None, 0, 0.5], [-1e-9, NAN, INFINITE]),
        (ReportBody, REPORT, "message", [None, "", "a" * 2000], ["a" * 2001]),
        (PromoteBody, {"version": 1}, "edge_percent", [None, 0, 1, 99, 100], [-1, 101, 0.5]),
        (EdgeQuery, {}, "alias", ["champion", "a"], ["", "Not A Name"]),
        (EdgeQuery, {}, "quantize", ["none", "float16"], ["int4", ""]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_is_accepted_up_to_its_bounds(
    model: type[BaseModel], body: dict[str, Any], field: str, accepted: list[Any], rejected: list[Any]
) -> None:
    for value in accepted:
        assert getattr(model.model_validate(body | {field: value}), field) is not ...
    for value in rejected:
        with pytest.raises(ValidationError) as refusal:
            model.model_validate(body | {field: value})
        assert {error["loc"][0] for error in refusal.value.errors()} == {field}


@pytest.mark.parametrize(
    ("header", "accepted", "rejected"),
    [
        (DeviceId, [None, "", "a" * 200], ["a" * 201, "%C3%BC" * 201, "100%", "\u00fc", "%C3", "%ED%A0%80"]),
        (
            RuntimeVersion,
            ["2", "v2.1", "2.1.0", "9" * 9, "1." + "9" * 9, "2.1.0rc1", "2.1-nightly+3", "2" + "a" * 63],
            ["", "v", "two", "2" + "a" * 64, "2.1 or so", "-1"],
        ),
    ],
    ids=["device", "runtime"],
)
def test_a_header_is_accepted_up_to_its_bounds(header: Any, accepted: list[Any], rejected: list[Any]) -> None:
    adapter: TypeAdapter[str | None] = TypeAdapter(header)
    for value in accepted:
        assert adapter.validate_python(value) == value
    for value in rejected:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_the_defaults_leave_an_export_without_bounds() -> None:
    new = ExportBody.model_validate(EXPORT).to_new_export()
    assert (new.quantize, new.calibration) == ("none", None)
    assert (new.bounds.max_disagreement, new.bounds.max_accuracy_drop, new.bounds.max_bytes) == (
        None,
        None,
        None,
    )
    body = EXPORT | {
        "calibration": CALIBRATION,
        "max_disagreement": 0.1,
        "max_accuracy_drop": 0.2,
        "max_bytes": 3,
    }
    new = ExportBody.model_validate(body).to_new_export()
    assert new.calibration == CALIBRATION
    assert (new.bounds.max_disagreement, new.bounds.max_accuracy_drop, new.bounds.max_bytes) == (0.1, 0.2, 3)
    query = EdgeQuery.model_validate({})
    assert (query.alias, query.quantize) == ("champion", "none")


def test_a_device_id_in_a_header_is_percent_decoded() -> None:
    decode = TypeAdapter[str | None](DeviceId).validate_python
    for name in (
        "werk 1",
        "m\u00fcller",
        "\u5de5\u5382",
        "100%",
        "a/b",
        "\U0001f600" * 200,
        "\U0010ffff",
        "\ud7ff",
    ):
        assert decode(quote(name, safe="")) == name
