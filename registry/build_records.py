"""What a build is asked for, and what it answers: the two messages between the server and a build child."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from registry.signature import Signature
from registry.vocabulary import Format, Quantize


class BuildJob(msgspec.Struct, frozen=True, kw_only=True):
    """One uploaded model to be made servable. All paths are absolute and on this machine."""

    artifact: str
    format: Format
    out: str  # an existing, empty directory: the files that `Built` names are in it
    example: str | None = None
    example_media_type: str | None = None
    target: str | None = None  # the example's column that holds the true value
    signature: dict[str, Any] | None = None  # given by the user: whole, or only what he corrects
    lineage: dict[str, Any] = {}  # what the publisher said of it
    convert: bool = True  # False: converting it did not come to an end; only see whether it can be served
    memory_mb: int = 8192


class Built(msgspec.Struct, kw_only=True):
    """What became of it. `report` is JSON and says why; for a rejected model `report["reason"]`."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any]
    signature: Signature | None = None
    runtime: Literal["onnx", "tflite", "isolated"] | None = None
    runtime_reason: str | None = None  # one sentence for people: why this runtime
    lineage: dict[str, Any] = msgspec.field(default_factory=dict)
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    servable: str | None = None  # a file name in `out`; None when `isolated` serves the artifact itself
    forest: str | None = None  # another: the table of nodes that batch scoring runs a tree ensemble on


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an export must hold to be served; None does not ask."""

    max_disagreement: float | None = None  # share of rows with another label; regression: relative error
    max_accuracy_drop: float | None = (
        None  # accuracy of the source minus the export's, on the example's labels
    )
    max_bytes: int | None = None


class ExportJob(msgspec.Struct, frozen=True, kw_only=True):
    """A ready version to be written as .tflite. All paths are absolute and on this machine."""

    artifact: str
    format: Format  # the version's
    signature: Signature
    model: str
    version: int
    out: str  # an existing, empty directory: the files that `Exported` names are in it
    quantize: Quantize = "none"
    bounds: Bounds = Bounds()
    example: str | None = None
    example_media_type: str | None = None
    target: str | None = None
    calibration: str | None = None  # rows for int8; the example when there are none
    calibration_media_type: str | None = None
    memory_mb: int = 8192


class Exported(msgspec.Struct, kw_only=True):
    """What became of it. For a rejected export `report["reason"]` says why."""

    state: Literal["ready", "rejected"]
    report: dict[str, Any]
    file: str | None = None  # the .tflite, a file name in `out`
    zstd: str | None = None  # the same, compressed
    min_runtime: str | None = None
