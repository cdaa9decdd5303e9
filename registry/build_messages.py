"""Requests and results of build children: the messages between the server and a child process."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from registry.signature import Signature
from registry.vocabulary import AnsweringRuntime, Format, Quantize, Runtime


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded model to compile. All paths are absolute paths on this machine."""

    artifact: str
    format: Format
    out: str  # an existing, empty directory; `BuildResult` names files in it
    example: str | None = None
    example_media_type: str | None = None
    target: str | None = None  # the example's column with the true values
    answers: str | None = None  # what the model answered to the example where it was trained
    answers_media_type: str | None = None
    signature: dict[str, Any] | None = None  # passed by the publisher: a whole signature, or corrections
    lineage: dict[str, Any] = {}  # as far as the publisher stated it
    convert: bool = True  # False: an earlier conversion did not end; only load the model
    memory_mb: int = 8192


class BuildResult(msgspec.Struct, kw_only=True):
    """The outcome of a build. `report` is JSON; for a rejected model, `report["reason"]` is the reason."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any]
    signature: Signature | None = None
    runtime: Runtime | None = None
    runtime_reason: str | None = None  # one sentence for users: why this runtime
    lineage: dict[str, Any] = msgspec.field(default_factory=dict)
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    servable: str | None = None  # a file in `out`; None if the `isolated` runtime serves the artifact itself
    forest: str | None = None  # a file in `out`: a tree ensemble as node table, for batch scoring
    measured: str | None = None  # a file in `out`: rows, and the served answers to them
    libraries: dict[str, str] = msgspec.field(default_factory=dict)  # versions that these answers depend on


class ExportBounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that an export must meet. None: not checked."""

    max_disagreement: float | None = None  # share of rows with another label; regression: relative error
    max_accuracy_drop: float | None = None  # accuracy of the source minus the export's, on the example
    max_bytes: int | None = None


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A ready version to export as .tflite. All paths are absolute paths on this machine."""

    artifact: str
    format: Format  # of the artifact
    signature: Signature
    model: str
    version: int
    out: str  # an existing, empty directory; `ExportResult` names files in it
    quantize: Quantize = "none"
    bounds: ExportBounds = ExportBounds()
    example: str | None = None
    example_media_type: str | None = None
    target: str | None = None
    calibration: str | None = None  # rows for int8; by default the example
    calibration_media_type: str | None = None
    memory_mb: int = 8192


class ExportResult(msgspec.Struct, kw_only=True):
    """The outcome of an export. For a rejected export, `report["reason"]` is the reason."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any]
    file: str | None = None  # the .tflite, a file in `out`
    zstd: str | None = None  # the compressed .tflite, a file in `out`
    min_runtime: str | None = None
    measured: str | None = None  # as of `BuildResult`
    libraries: dict[str, str] = msgspec.field(default_factory=dict)


class VerifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime to measure again on the rows of a build or an export. Paths are absolute."""

    runtime: AnsweringRuntime
    file: str
    measured: str
    signature: Signature
    tolerance: float
    out: str  # an existing directory; `VerifyResult.measured` names a file in it
    memory_mb: int = 8192


class VerifyResult(msgspec.Struct, kw_only=True):
    """`ready`: the answers agree. Otherwise `report["reason"]` is the reason."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any]
    measurable: bool = True  # False: the stored rows cannot be read, by this release of Trivium
    measured: str | None = None  # the same rows with the answers of now; None if there are none
    libraries: dict[str, str] = msgspec.field(default_factory=dict)
