"""Request bodies and records of exports, manifests and device reports."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from fastapi import Header, Query
from pydantic import AfterValidator, BaseModel, Field

from registry.aliases import CHAMPION
from registry.build_messages import ExportBounds
from registry.exports import NewExport
from registry.media_types import ExampleType
from registry.names import NAME_PATTERN
from registry.rollouts import DeviceCounts, DeviceStatus, NewDeviceReport
from registry.tables import DeviceReportRow, ExportRow
from registry.vocabulary import ExportState, Quantize
from service.runtime.snapshot import SnapshotExport
from service.web.listing import ListResponse
from service.web.request_models import MAX_NUMBER, RequestBody, RequestModel, Sha256

MAX_DEVICE_LENGTH = 200

_TAIL = "%[89ABab][0-9A-Fa-f]"  # of a character's UTF-8 bytes after the first one
_ENCODED_CHARACTER = "|".join(
    (
        "%[0-7][0-9A-Fa-f]",
        f"%(?:[Cc][2-9A-Fa-f]|[Dd][0-9A-Fa-f]){_TAIL}",
        f"%(?:[Ee]0%[ABab][0-9A-Fa-f]|[Ee][Dd]%[89][0-9A-Fa-f]|[Ee][1-9A-CEFa-cef]{_TAIL}){_TAIL}",
        f"%(?:[Ff]0%[9ABab][0-9A-Fa-f]|[Ff]4%8[0-9A-Fa-f]|[Ff][1-3]{_TAIL}){_TAIL}{_TAIL}",
    )
)
DEVICE_PATTERN = rf"^(?:[ -$&-~]|{_ENCODED_CHARACTER}){{0,{MAX_DEVICE_LENGTH}}}$"
"""Headers are ASCII: other characters, and %, are percent-encoded as in a URL."""


def _decode_device(header: str | None) -> str | None:
    """Return the device's name as it is in its reports. Raises `ValueError`."""
    if header is None or re.fullmatch(DEVICE_PATTERN, header):
        return header and unquote(header)
    raise ValueError(
        f"a device's name is at most {MAX_DEVICE_LENGTH} characters, and in this header those outside ASCII, "
        "and %, are percent-encoded as UTF-8: send werk%C3%BC for werk\u00fc"
    )


DeviceId = Annotated[
    str | None,
    AfterValidator(_decode_device),
    Header(
        json_schema_extra={"pattern": DEVICE_PATTERN},
        description="the device's id, percent-encoded, which decides whether it is in a rollout",
    ),
]
RuntimeVersion = Annotated[
    str | None,
    Header(
        max_length=64,
        pattern=r"^v?[0-9]{1,9}(\.[0-9]{1,9})*[0-9A-Za-z.+-]*$",
        description="the device's LiteRT version: selects the newest export that runs on it",
        examples=["2.1.0"],
    ),
]


class Calibration(RequestBody):
    """A table with rows for int8 calibration; by default, the version's example is used."""

    artifact: Sha256
    media_type: ExampleType


class ExportBody(RequestBody):
    format: Literal["tflite"]
    quantize: Quantize = "none"
    calibration: Calibration | None = None
    max_disagreement: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False, description="largest share of rows with a different label"),
    ] = None
    max_accuracy_drop: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)] = None
    max_bytes: Annotated[int | None, Field(ge=1, le=2**53)] = None

    def to_new_export(self) -> NewExport:
        return NewExport(
            quantize=self.quantize,
            calibration=None if self.calibration is None else self.calibration.model_dump(),
            bounds=ExportBounds(self.max_disagreement, self.max_accuracy_drop, self.max_bytes),
        )


class ExportRecord(BaseModel):
    id: int
    model: str
    version: int
    format: str
    quantize: str
    state: ExportState
    sha256: str | None
    bytes: int | None
    min_runtime: str | None
    report: dict[str, Any] | None
    bounds: dict[str, Any]
    calibration: dict[str, Any] | None
    created_at: datetime
    created_by: str
    finished_at: datetime | None

    @classmethod
    def of(cls, row: ExportRow) -> ExportRecord:
        return cls(
            id=row.id,
            model=row.version.model.name,
            version=row.version.number,
            format=row.format,
            quantize=row.quantize,
            state=row.state,  # type: ignore[arg-type]
            sha256=row.blob,
            bytes=row.bytes,
            min_runtime=row.min_runtime,
            report=row.report,
            bounds=row.bounds,
            calibration=row.calibration,
            created_at=row.created_at,
            created_by=row.created_by,
            finished_at=row.finished_at,
        )


class EdgeQuery(RequestModel):
    """Selects a file. As the query model of a route it also rejects unknown parameters."""

    alias: Annotated[str, Query(pattern=NAME_PATTERN)] = CHAMPION
    quantize: Annotated[Quantize, Query()] = "none"


class Manifest(BaseModel):
    """The file that a device gets now, and its parity report. `url` always returns exactly these bytes."""

    model: str
    alias: str
    version: int
    quantize: str
    sha256: str
    bytes: int
    min_runtime: str | None
    url: str
    created_at: datetime
    report: dict[str, Any] | None

    @classmethod
    def of(cls, model: str, alias: str, export: SnapshotExport, report: dict[str, Any] | None) -> Manifest:
        return cls(
            model=model,
            alias=alias,
            version=export.version,
            quantize=export.quantize,
            sha256=export.sha256,
            bytes=export.bytes,
            min_runtime=export.min_runtime,
            url=f"/v1/blobs/{export.sha256}",
            created_at=export.created_at,
            report=report,
        )


class ReportBody(RequestBody):
    device: Annotated[str, Field(min_length=1, max_length=MAX_DEVICE_LENGTH, examples=["pi-0042"])]
    version: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    status: DeviceStatus
    latency_ms: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    message: Annotated[str | None, Field(max_length=2000)] = None

    def to_new_report(self) -> NewDeviceReport:
        return NewDeviceReport(**self.model_dump())


class ReportRecord(BaseModel):
    device: str
    version: int
    status: DeviceStatus
    latency_ms: float | None
    message: str | None
    at: datetime

    @classmethod
    def of(cls, row: DeviceReportRow) -> ReportRecord:
        return cls.model_validate(row, from_attributes=True)


class CountsRecord(BaseModel):
    """Number of devices whose latest report about the version is ok or failed."""

    version: int
    ok: int
    failed: int

    @classmethod
    def of(cls, counts: DeviceCounts) -> CountsRecord:
        return cls.model_validate(counts, from_attributes=True)


class ReportList(ListResponse[ReportRecord]):
    counts: list[CountsRecord]
