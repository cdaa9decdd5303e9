"""Request bodies and records of models, versions, aliases and keys."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from registry import traffic
from registry.aliases import CHAMPION
from registry.media_types import ExampleType
from registry.models import ModelSummary
from registry.names import HEADER_NAME_PATTERN, LIBRARY_VERSION_PATTERN, NAME_PATTERN, NUMBER_PATTERN
from registry.tables import AliasEventRow, AliasRow, KeyRow, ShadowResultRow, VersionRow
from registry.traffic import AliasTraffic, LatencyHistogram
from registry.vocabulary import (
    SCOPES,
    AliasAction,
    Fallback,
    Format,
    Runtime,
    Scope,
    VerificationState,
    VersionState,
)
from service.web.request_models import MAX_NUMBER, RequestBody, Sha256

Name = Annotated[str, Field(pattern=NAME_PATTERN, examples=["fraud"])]
Tags = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=63)], Annotated[str, Field(max_length=255)]],
    Field(max_length=64, examples=[{"team": "risk"}]),
]
Description = Annotated[str, Field(max_length=10_000)]
Reason = Annotated[str | None, Field(max_length=1000, examples=["better recall"])]

LibraryVersions = Annotated[
    dict[
        Literal["python", "numpy", "scikit-learn"],
        Annotated[str, Field(pattern=LIBRARY_VERSION_PATTERN, max_length=64)],
    ],
    Field(examples=[{"python": "3.11.7", "numpy": "2.4.6", "scikit-learn": "1.9.0"}]),
]


class UploadedTable(RequestBody):
    artifact: Sha256
    media_type: ExampleType


class PublishBody(RequestBody):
    artifact: Sha256
    format: Format
    example: UploadedTable | None = None
    target: Annotated[str | None, Field(description="the example's column with the true values")] = None
    answers: Annotated[
        UploadedTable | None,
        Field(
            description="what the model answered to the example where it was trained: the columns of a batch "
            "output, in the example's order; a version that answers differently is rejected"
        ),
    ] = None
    signature: Annotated[
        dict[str, Any] | None, Field(description="a complete signature, or corrections of the inferred one")
    ] = None
    metrics: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    tags: Tags = Field(default_factory=dict)
    description: Description = ""
    alias: Annotated[
        Name | None, Field(description="an alias to point at the version as soon as it is ready")
    ] = None
    made_by: Annotated[
        LibraryVersions, Field(description="the library versions that created the artifact")
    ] = Field(default_factory=dict)
    published_from: Annotated[
        LibraryVersions,
        Field(
            description="the library versions of the publishing client; used in place of `made_by` only if "
            "its scikit-learn version is the one recorded in the artifact"
        ),
    ] = Field(default_factory=dict)


class VerifyBody(RequestBody):
    accept: Annotated[
        bool,
        Field(description="make the answers of now the measured ones, so that the version is served again"),
    ] = False


class EditBody(RequestBody):
    """Fields that are absent stay as they are."""

    tags: Tags | None = None
    description: Description | None = None
    archived: bool | None = None


class PromoteBody(RequestBody):
    version: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    reason: Reason = None
    edge_percent: Annotated[
        int | None, Field(ge=0, le=100, description="share of the devices that get the version; unset: all")
    ] = None


class RollbackBody(RequestBody):
    reason: Reason = None


def _require_version_or_alias(value: Any) -> Any:
    """Reject other kinds of values with one error, not one for each type of the union."""
    if isinstance(value, str):
        is_valid = re.fullmatch(NAME_PATTERN, value) is not None
    else:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        is_valid = value is None or (is_number and 1 <= value <= MAX_NUMBER)
    if not is_valid:
        raise ValueError("not a version number or an alias")
    return value


Shadow = Annotated[
    Annotated[int, Field(ge=1, le=MAX_NUMBER)] | Name | None,
    BeforeValidator(_require_version_or_alias),
    Field(description="a version number or an alias that answers too; its answers are compared only"),
]


class TrafficBounds(RequestBody):
    """At least one bound."""

    error_rate: Annotated[
        float | None, Field(ge=0, lt=1, description="share of the calls that may fail", examples=[0.02])
    ] = None
    p99_ms: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False, description="99th percentile of the latency", examples=[50]),
    ] = None

    @model_validator(mode="after")
    def _require_one(self) -> TrafficBounds:
        if self.error_rate is None and self.p99_ms is None:
            raise ValueError("not error_rate, p99_ms or both")
        return self


class TrafficBody(RequestBody):
    weights: Annotated[
        dict[Annotated[str, Field(pattern=NUMBER_PATTERN)], Annotated[float, Field(ge=0, le=100)]] | None,
        Field(
            max_length=100,
            description="percent of the calls by version number, with up to 4 decimals; the sum is 100. "
            "Unset: the alias's version answers every call",
            examples=[{"1": 90, "2": 10}],
        ),
    ] = None
    sticky_header: Annotated[
        str | None,
        Field(
            pattern=HEADER_NAME_PATTERN,
            max_length=100,
            description="calls with the same value of this header get the same version",
            examples=["X-User"],
        ),
    ] = None
    bounds: Annotated[
        TrafficBounds | None, Field(description="of canaries: one that passes a bound gets no more calls")
    ] = None
    shadow: Shadow = None
    reason: Reason = None


class KeyBody(RequestBody):
    name: Annotated[str, Field(min_length=1, max_length=100, examples=["scoring service"])]
    scopes: Annotated[
        list[Scope],
        Field(
            min_length=1,
            examples=[["predict"]],
            description="; ".join(f"`{scope}`: {permission}" for scope, permission in SCOPES.items()),
        ),
    ]
    models: Annotated[
        list[Name] | None, Field(description="limits the key to these models; unset: all", max_length=1000)
    ] = None
    expires_in: Annotated[
        float | None,
        Field(gt=0, le=3650 * 86400, description="seconds; unset: never expires", examples=[86400]),
    ] = None


class ArtifactRecord(BaseModel):
    sha256: str
    bytes: int


class ModelRecord(BaseModel):
    name: str
    versions: int
    latest_version: int | None
    champion: int | None
    aliases: dict[str, int]
    created_at: datetime
    created_by: str

    @classmethod
    def of(cls, summary: ModelSummary) -> ModelRecord:
        return cls(
            name=summary.model.name,
            versions=summary.versions,
            latest_version=summary.latest,
            champion=summary.aliases.get(CHAMPION),
            aliases=summary.aliases,
            created_at=summary.model.created_at,
            created_by=summary.model.created_by,
        )


class VerificationRecord(BaseModel):
    """Whether the runtimes still give the measured answers; see docs/howto/upgrade.md."""

    state: VerificationState
    at: datetime | None
    libraries: dict[str, str]
    figures: dict[str, Any]
    reason: str | None
    fallback: Annotated[
        Fallback | None, Field(description="what answers instead of a runtime that differs; none: nothing")
    ]
    accepted: dict[str, Any] | None

    @classmethod
    def of(cls, row: VersionRow) -> VerificationRecord | None:
        if row.verification is None:
            return None
        recorded = {"reason": None, "accepted": None, **row.verification, "fallback": row.fallback}
        return cls.model_validate(recorded)


class VersionRecord(BaseModel):
    model: str
    version: int
    state: VersionState
    runtime: Runtime | None
    runtime_reason: str | None
    signature: dict[str, Any] | None
    report: dict[str, Any] | None
    aliases: list[str]
    tags: dict[str, str]
    metrics: dict[str, float | None]
    description: str
    artifact: str
    format: str
    example: dict[str, Any] | None
    target: str | None
    answers: dict[str, Any] | None
    lineage: dict[str, Any]
    created_at: datetime
    created_by: str
    built_at: datetime | None
    verification: VerificationRecord | None

    @classmethod
    def of(cls, row: VersionRow) -> VersionRecord:
        return cls(
            model=row.model.name,
            version=row.number,
            state=row.state,  # type: ignore[arg-type]
            runtime=row.runtime,  # type: ignore[arg-type]
            runtime_reason=row.runtime_reason,
            signature=row.signature,
            report=row.report,
            aliases=sorted(a.name for a in row.aliases),
            tags={t.key: t.value for t in sorted(row.tags, key=lambda t: t.key)},
            metrics=row.metrics,
            description=row.description,
            artifact=row.artifact,
            format=row.format,
            example=row.example,
            target=row.target,
            answers=row.answers,
            lineage=row.lineage,
            created_at=row.created_at,
            created_by=row.created_by,
            built_at=row.built_at,
            verification=VerificationRecord.of(row),
        )


class AliasRecord(BaseModel):
    model: str
    alias: str
    version: int
    edge_percent: int | None
    edge_halted: str | None
    at: datetime
    by: str
    reason: str | None

    @classmethod
    def of(cls, model: str, row: AliasRow) -> AliasRecord:
        return cls(
            model=model,
            alias=row.name,
            version=row.version.number,
            edge_percent=row.edge_percent,
            edge_halted=row.edge_halted,
            at=row.event.at,
            by=row.event.by,
            reason=row.event.reason,
        )


class BoundsRecord(BaseModel):
    error_rate: float | None
    p99_ms: float | None


class TrafficSettings(BaseModel):
    weights: dict[str, float]
    sticky_header: str | None
    bounds: BoundsRecord | None
    shadow: int | str | None


class LatencyRecord(BaseModel):
    """Milliseconds; percentiles are at most 26 % too high. Null without calls."""

    calls: int
    mean: float | None
    p50: float | None
    p99: float | None

    @classmethod
    def of(cls, histogram: LatencyHistogram) -> LatencyRecord:
        calls = sum(histogram.counts)
        p50, p99 = (traffic.percentile(histogram, share) for share in (0.5, 0.99))
        mean = histogram.seconds / calls if calls else None
        return cls(calls=calls, mean=_milliseconds(mean), p50=_milliseconds(p50), p99=_milliseconds(p99))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds * 1000:.4g}")


class ShadowRecord(BaseModel):
    """The answers of `shadow_version` compared with those of `version`, in rows; see docs/howto/canary.md."""

    version: int
    shadow_version: int
    rows: int
    agreement: Annotated[float | None, Field(description="share of the compared rows")]
    mean_difference: float | None
    largest_difference: float
    failed: Annotated[int, Field(description="rows that the shadow could not answer")]
    last_error: str | None
    shed: Annotated[int, Field(description="rows that were dropped under load, or before it was loaded")]
    latency_ms: Annotated[LatencyRecord, Field(description="of the calls that were compared")]
    shadow_latency_ms: Annotated[LatencyRecord, Field(description="of the calls that the shadow ran alone")]
    since: datetime
    updated_at: datetime

    @classmethod
    def of(cls, row: ShadowResultRow) -> ShadowRecord:
        result = traffic.result_of(row)
        return cls(
            version=row.version,
            shadow_version=row.shadow_version,
            rows=row.rows,
            agreement=row.agreed / row.rows if row.rows else None,
            mean_difference=row.difference_sum / row.rows if row.rows else None,
            largest_difference=row.largest_difference,
            failed=row.failed,
            last_error=row.last_error,
            shed=row.shed,
            latency_ms=LatencyRecord.of(result.latency),
            shadow_latency_ms=LatencyRecord.of(result.shadow_latency),
            since=row.since,
            updated_at=row.updated_at,
        )


class TrafficRecord(TrafficSettings):
    """`version` is the alias's own. `at`, `by` and `reason` are those of the newest change."""

    model: str
    alias: str
    version: int
    at: datetime
    by: str
    reason: str | None
    shadow_report: list[ShadowRecord]

    @classmethod
    def of(cls, model: str, current: AliasTraffic, results: list[ShadowResultRow]) -> TrafficRecord:
        alias, row = current
        number = alias.version.number
        split = {"weights": {str(number): 100.0}, "sticky_header": None, "bounds": None, "shadow": None}
        event = alias.event if row is None else row.event
        return cls(
            model=model,
            alias=alias.name,
            version=number,
            at=event.at,
            by=event.by,
            reason=event.reason,
            shadow_report=[ShadowRecord.of(result) for result in results],
            **(split if row is None else traffic.describe(row)),
        )


class MoveRecord(BaseModel):
    """An entry of an alias's history; `version` is null when the alias was deleted."""

    version: int | None
    at: datetime
    by: str
    reason: str | None
    action: AliasAction
    traffic: Annotated[
        TrafficSettings | None,
        Field(description="the split since then; null: `version` answers every call"),
    ]

    @classmethod
    def of(cls, row: AliasEventRow) -> MoveRecord:
        split = None if row.traffic is None else TrafficSettings.model_validate(row.traffic)
        return cls(
            version=row.version,
            at=row.at,
            by=row.by,
            reason=row.reason,
            action=row.action,  # type: ignore[arg-type]
            traffic=split,
        )


class KeyRecord(BaseModel):
    id: str
    name: str
    scopes: list[Scope]
    models: list[str] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: KeyRow) -> KeyRecord:
        return cls.model_validate(row, from_attributes=True)


class IssuedKey(KeyRecord):
    key: Annotated[str, Field(description="the secret; it is not stored and cannot be shown again")]
