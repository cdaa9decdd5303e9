"""The tables of the registry, except those of jobs (`registry/jobs/tables.py`).

"Model" always means a machine-learning model; the classes of this module are named rows.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime, stored in UTC. SQLite drops the time zone, so it is added again on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        try:
            return value.astimezone(UTC)
        except OverflowError:  # the first or last hours of the calendar, in another time zone
            return (datetime.min if value.year == 1 else datetime.max).replace(tzinfo=UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


BY_BYTES = String().with_variant(String(collation="C"), "postgresql")
"""Text that sorts the same on every database: PostgreSQL's usual collations ignore punctuation."""


class Base(DeclarativeBase):
    # None in a JSON column is stored as SQL NULL, so that queries can use IS NULL
    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy, never changed
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
        list[list[int]]: JSON(none_as_null=True),
        datetime: UTCDateTime(),
    }
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


NO_ID_REUSE = {"sqlite_autoincrement": True}
"""SQLite would reuse the id of a deleted newest row, but pools and tasks refer to rows by id."""


class ModelRow(Base):
    __tablename__ = "models"
    __table_args__ = (NO_ID_REUSE,)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(BY_BYTES, unique=True)
    last_number: Mapped[int] = mapped_column(default=0)  # numbers are not reused after a deletion
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]


class VersionRow(Base):
    """A version: the uploaded artifact, and the results of its build."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model_id", "number"), NO_ID_REUSE)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    state: Mapped[str]  # building -> ready | rejected, later archived
    # uploaded by the publisher
    format: Mapped[str]
    artifact: Mapped[str] = mapped_column(index=True)
    example: Mapped[dict[str, Any] | None]  # {"artifact", "media_type"}
    target: Mapped[str | None]
    answers: Mapped[dict[str, Any] | None]  # {"artifact", "media_type"}: the publisher's, to the example
    publisher_signature: Mapped[dict[str, Any] | None] = mapped_column("given_signature")  # or corrections
    publisher_alias: Mapped[str | None] = mapped_column("wanted_alias")  # set when the build is ready
    description: Mapped[str]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
    created_by: Mapped[str]
    # results of the build
    runtime: Mapped[str | None]
    runtime_reason: Mapped[str | None]
    servable: Mapped[str | None] = mapped_column(index=True)
    forest: Mapped[str | None] = mapped_column(index=True)  # a blob: the trees as one node table
    signature: Mapped[dict[str, Any] | None]
    lineage: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any] | None]
    built_at: Mapped[datetime | None]
    # whether another release of a library still gives the same answers; see `registry/verification.py`
    measured: Mapped[str | None] = mapped_column(index=True)  # a blob: rows, and the answers to them
    libraries: Mapped[str | None] = mapped_column(index=True)  # the versions they were measured with, as JSON
    verification: Mapped[dict[str, Any] | None]  # the result of the newest check
    fallback: Mapped[str | None]  # how the version is served since a runtime answers differently

    model: Mapped[ModelRow] = relationship(lazy="joined", innerjoin=True)
    tags: Mapped[list[TagRow]] = relationship(lazy="selectin", cascade="all, delete-orphan")
    aliases: Mapped[list[AliasRow]] = relationship(lazy="selectin", viewonly=True)


class TagRow(Base):
    __tablename__ = "version_tags"
    __table_args__ = (Index(None, "key", "value"),)

    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class AliasRow(Base):
    """An alias. It points at a version, and refers to the newest event of its history."""

    __tablename__ = "aliases"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    event_id: Mapped[int] = mapped_column(ForeignKey("alias_events.id"), index=True)
    edge_percent: Mapped[int | None]  # share of devices that get `version`, others: `edge_previous`
    edge_previous: Mapped[int | None]  # the last version number that was meant for all devices
    edge_halted: Mapped[str | None]  # the reason if the rollout was halted

    version: Mapped[VersionRow] = relationship(lazy="joined", innerjoin=True)
    model: Mapped[ModelRow] = relationship(viewonly=True)
    event: Mapped[AliasEventRow] = relationship(lazy="joined", innerjoin=True)


class AliasEventRow(Base):
    """One event of an alias, such as a move. It stays when the alias or the version is deleted."""

    __tablename__ = "alias_events"
    __table_args__ = (Index(None, "model_id", "alias", "id"), NO_ID_REUSE)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    alias: Mapped[str]
    version: Mapped[int | None]  # the version number; None if the alias was deleted
    action: Mapped[str]  # promote, rollback, delete, rollout, halt, traffic
    at: Mapped[datetime] = mapped_column(default=now)
    by: Mapped[str]
    reason: Mapped[str | None]
    previous_id: Mapped[int | None] = mapped_column(  # the event that a rollback goes to
        ForeignKey("alias_events.id"), index=True
    )
    traffic: Mapped[dict[str, Any] | None]  # the split after the event; None: `version` answers every call


class AliasTrafficRow(Base):
    """The traffic of an alias whose calls are split over versions, or are answered by a shadow too.

    See `registry/traffic.py`. Without a row, the alias's version answers every call.
    """

    __tablename__ = "alias_traffic"
    __table_args__ = (ForeignKeyConstraint(["model_id", "alias"], ["aliases.model_id", "aliases.name"]),)

    model_id: Mapped[int] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    put_id: Mapped[int] = mapped_column(ForeignKey("alias_events.id"), index=True)  # the newest request
    event_id: Mapped[int] = mapped_column(ForeignKey("alias_events.id"), index=True)  # the newest change
    weights: Mapped[dict[str, Any]]  # version number -> percent of the calls; the sum is 100
    segments: Mapped[list[list[int]]]  # [limit, version number]: the version of each hash; see `select`
    sticky_header: Mapped[str | None]
    error_rate: Mapped[float | None]  # bounds of the canaries, a share and milliseconds
    p99_ms: Mapped[float | None]
    shadow_version: Mapped[int | None]  # the shadow is a version, or what an alias points at
    shadow_alias: Mapped[str | None]
    shadow_id: Mapped[int | None] = mapped_column(  # the event that set the shadow
        ForeignKey("alias_events.id"), index=True
    )

    event: Mapped[AliasEventRow] = relationship(lazy="joined", innerjoin=True, foreign_keys=event_id)


class ShadowResultRow(Base):
    """What a shadow version answered, compared with the version that answered the callers."""

    __tablename__ = "shadow_results"

    shadow_id: Mapped[int] = mapped_column(  # the event that set the shadow
        ForeignKey("alias_events.id", ondelete="CASCADE"), primary_key=True
    )
    version: Mapped[int] = mapped_column(primary_key=True)
    shadow_version: Mapped[int] = mapped_column(primary_key=True)
    rows: Mapped[int] = mapped_column(BigInteger)  # compared
    agreed: Mapped[int] = mapped_column(BigInteger)  # of `rows`
    difference_sum: Mapped[float]  # of the largest difference of each row's numbers
    largest_difference: Mapped[float]
    failed: Mapped[int] = mapped_column(BigInteger)  # rows that the shadow could not answer
    shed: Mapped[int] = mapped_column(BigInteger)  # rows that were dropped under load
    last_error: Mapped[str | None]
    latency: Mapped[dict[str, Any]]  # histograms of both versions
    since: Mapped[datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime] = mapped_column(default=now)


class ExportRow(Base):
    """An export of a version as .tflite file: the request, and its results."""

    __tablename__ = "exports"
    __table_args__ = (NO_ID_REUSE,)

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id", ondelete="CASCADE"), index=True)
    state: Mapped[str]  # building -> ready | rejected
    # the request
    format: Mapped[str]
    quantize: Mapped[str]
    calibration: Mapped[dict[str, Any] | None]  # {"artifact", "media_type"}
    bounds: Mapped[dict[str, Any]]  # max_disagreement, max_accuracy_drop, max_bytes
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]
    # results of the export
    blob: Mapped[str | None] = mapped_column(index=True)
    bytes: Mapped[int | None]
    zstd: Mapped[str | None]  # the blob of the compressed file
    min_runtime: Mapped[str | None]
    report: Mapped[dict[str, Any] | None]
    finished_at: Mapped[datetime | None]
    measured: Mapped[str | None] = mapped_column(index=True)  # as of versions
    libraries: Mapped[str | None] = mapped_column(index=True)

    version: Mapped[VersionRow] = relationship(lazy="joined", innerjoin=True)


class DeviceReportRow(Base):
    """The report of a device about a version that it installed. The newest report of a device counts."""

    __tablename__ = "device_reports"
    __table_args__ = (Index(None, "model_id", "version", "device"), NO_ID_REUSE)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    version: Mapped[int]
    device: Mapped[str]
    status: Mapped[str]  # ok, failed
    latency_ms: Mapped[float | None]
    message: Mapped[str | None]
    at: Mapped[datetime] = mapped_column(default=now, index=True)


class TufMetadataRow(Base):
    """A signed TUF document; see `registry/tuf_documents.py`."""

    __tablename__ = "tuf_metadata"

    role: Mapped[str] = mapped_column(primary_key=True)  # root, targets, snapshot, timestamp
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)


class KeyRow(Base):
    """An API key. `digest` is its sha256; the secret is not stored."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str]
    scopes: Mapped[list[str]]
    models: Mapped[list[str] | None]  # None: every model
    created_at: Mapped[datetime] = mapped_column(default=now)
    created_by: Mapped[str]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class TaskRow(Base):
    """A task of the queue; see `registry/queue.py`."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index(None, "state", "kind", "priority", "id"),
        Index(None, "kind", "subject"),
        NO_ID_REUSE,
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    state: Mapped[str]
    priority: Mapped[int] = mapped_column(default=0)  # higher goes first
    not_before: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(default=0)  # number of claims
    failures: Mapped[int] = mapped_column(default=0)  # attempts that failed; in the others the worker died
    max_attempts: Mapped[int]
    concurrency_key: Mapped[str | None]  # tasks at once are limited per key: a job's model
    claimed_by: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    fence: Mapped[int] = mapped_column(default=0)
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]


class RevisionRow(Base):
    """One row: the registry's revision. Its row lock serializes transactions that record changes."""

    __tablename__ = "revision"

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]
    registry_id: Mapped[str]  # random: identifies the registry until it is restored from a backup


class ChangeRow(Base):
    """The subject that changed at a revision, so that readers reload only that subject."""

    __tablename__ = "changes"

    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str]  # model, key
    subject: Mapped[str]  # the model's name, the key's id


class PredictionLogRow(Base):
    """What is recorded of a model's predictions; see `registry/prediction_logs.py`. No row: nothing."""

    __tablename__ = "prediction_logs"

    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    sample: Mapped[float]  # share of the calls that are recorded
    keep_days: Mapped[int | None]  # None: no limit
    max_mb: Mapped[int | None]
    changed_at: Mapped[datetime] = mapped_column(default=now)
    changed_by: Mapped[str]


class LabelRow(Base):
    """The true value of one row of a prediction, as the holder of one key reported it."""

    __tablename__ = "labels"

    prediction_id: Mapped[str] = mapped_column(primary_key=True)
    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key_id: Mapped[str] = mapped_column(primary_key=True)  # decides which models the label can belong to
    label: Mapped[str]  # as JSON
    at: Mapped[datetime] = mapped_column(default=now, index=True)


class IdempotencyRow(Base):
    """The response to a POST with an `Idempotency-Key`, stored for a day."""

    __tablename__ = "idempotency"

    caller: Mapped[str] = mapped_column(primary_key=True)  # the API key's id
    key: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str]  # sha256 of method, path and body
    status: Mapped[int | None]  # None: the first request is still running
    location: Mapped[str | None]
    answer: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=now, index=True)
