"""Versions: publish one, build it, find it, archive it, delete it.

A version is immutable in what was uploaded and what the builder made of it; tags, description and
being archived are all that changes. Its number is never given out again.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from registry import aliases, models, queue, revision
from registry.artifacts import Store, check_sha256
from registry.build_records import Built
from registry.errors import InUse, NotFound, NotReady, invalid_field
from registry.names import check_name
from registry.pages import Page, after, cut
from registry.signature import Signature
from registry.tables import AliasRow, ModelRow, TagRow, VersionRow, now
from registry.vocabulary import BUILD_TASK, FORMATS

BUILDING = "building"  # uploaded, waiting for or inside the builder
READY = "ready"  # built, and the same function as what was uploaded, as far as the report says
REJECTED = "rejected"  # cannot be served; the report says why
ARCHIVED = "archived"  # was ready, is out of use; can be brought back

BUILD_PRIORITY = 10
BUILD_ATTEMPTS = 10
"""So often may a server die in the middle of a build before the model is held to be the cause."""
_BLOB_LOCK = 7341  # PostgreSQL advisory lock: publishing shares it, garbage collection has it alone


class NewVersion(msgspec.Struct, frozen=True):
    """What a publisher says about an uploaded artifact."""

    model: str
    artifact: str
    format: str
    example: dict[str, Any] | None = None  # {"artifact", "media_type"}
    target: str | None = None
    signature: dict[str, Any] | None = None
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    description: str = ""
    alias: str | None = None
    made_by: dict[str, str] = {}  # versions by library: what made the artifact
    published_from: dict[str, str] = {}  # the same of the environment that it is published from


class BuildInputs(msgspec.Struct, frozen=True):
    """What a build needs to know about a version."""

    artifact: str
    format: str
    example: str | None
    example_media_type: str | None
    target: str | None
    signature: dict[str, Any] | None
    lineage: dict[str, Any]  # so far: what its publisher said


def publish(session: Session, store: Store, new: NewVersion, *, by: str) -> VersionRow:
    """Record a version in state `building` and enqueue its build, in the caller's transaction.

    Raises `Invalid` (name, alias, format, an artifact that was not uploaded).
    """
    if new.alias is not None:
        check_name(new.alias, "alias")
    if new.format not in FORMATS:
        raise invalid_field(
            "format", "unknown format", " or ".join(FORMATS), detail=f"format {new.format!r} is not supported"
        )
    owner = models.lock_or_create(session, new.model, by)
    hold_blobs(session, shared=True)
    require_blob(store, new.artifact, "artifact")
    if new.example is not None:
        require_blob(store, new.example["artifact"], "example.artifact")
    owner.last_number += 1
    version = VersionRow(
        model=owner,
        number=owner.last_number,
        state=BUILDING,
        format=new.format,
        artifact=new.artifact,
        example=new.example,
        target=new.target,
        given_signature=new.signature,
        wanted_alias=new.alias,
        description=new.description,
        metrics=new.metrics,
        lineage=_said(new),
        created_by=by,
        created_at=now(),
        tags=[TagRow(key=k, value=v) for k, v in new.tags.items()],
    )
    session.add(version)
    session.flush()
    queue.enqueue(session, BUILD_TASK, str(version.id), priority=BUILD_PRIORITY, max_attempts=BUILD_ATTEMPTS)
    revision.note(session, "model", owner.name)
    return version


def build_inputs(session: Session, version_id: int) -> BuildInputs:
    """Raises `NotFound` when the version was deleted meanwhile."""
    version = _by_id(session, version_id)
    example = version.example or {}
    return BuildInputs(
        artifact=version.artifact,
        format=version.format,
        example=example.get("artifact"),
        example_media_type=example.get("media_type"),
        target=version.target,
        signature=version.given_signature,
        lineage=version.lineage,
    )


def finish_build(session: Session, version_id: int, built: Built) -> VersionRow:
    """Record what the builder made: `ready` or `rejected`. What `built` names are blobs by now.

    A ready version takes the alias its publisher wished for, unless that points at a newer version by now:
    builds end in any order. Raises `NotFound` when the version was deleted.
    """
    name = session.scalar(select(ModelRow.name).join(VersionRow).where(VersionRow.id == version_id))
    if name is None:
        raise NotFound("version", version_id)
    owner = models.lock(session, name)
    version = _by_id(session, version_id)  # it may have been deleted while we waited
    version.state = built.state
    version.report = built.report
    version.signature = built.signature.to_json() if built.signature else None
    version.runtime = built.runtime
    version.runtime_reason = built.runtime_reason
    version.servable = built.servable
    version.forest = built.forest
    version.lineage = {**version.lineage, **built.lineage}
    version.metrics = {**built.metrics, **version.metrics}  # the publisher's own figures win
    version.built_at = now()
    revision.note(session, "model", owner.name)
    session.flush()
    if version.state == READY and version.wanted_alias is not None:
        _take_alias(session, owner, version, version.wanted_alias)
    return version


def reject(session: Session, version_id: int, reason: str) -> VersionRow:
    """End a build that cannot be finished. Raises `NotFound` when the version was deleted."""
    return finish_build(session, version_id, Built(state="rejected", report={"reason": reason}))


def get(session: Session, model: str, number: int) -> VersionRow:
    """Raises `NotFound`."""
    version = session.scalar(
        select(VersionRow).join(ModelRow).where(ModelRow.name == model, VersionRow.number == number)
    )
    if version is None:
        owner = models.get(session, model)  # says so when it is the model that is missing
        newest = session.scalar(select(func.max(VersionRow.number)).where(VersionRow.model_id == owner.id))
        raise no_version(model, number, newest)
    return version


def no_version(model: str, number: int, newest: int | None) -> NotFound:
    return NotFound("version", f"{model}:{number}", f"the newest is {newest}" if newest else "")


def search(
    session: Session,
    model: str,
    *,
    q: str | None = None,
    tags: list[tuple[str, str]] | None = None,
    page_size: int = 100,
    page_token: str | None = None,
) -> Page[VersionRow]:
    """The model's versions, newest first: those whose description holds `q` and that carry all `tags`."""
    owner = models.get(session, model)
    query = select(VersionRow).where(VersionRow.model_id == owner.id)
    if (last := after(page_token, int)) is not None:
        query = query.where(VersionRow.number < last)
    if q:
        query = query.where(VersionRow.description.icontains(q, autoescape=True))
    if tags:
        query = models.tagged(query, tags)
    rows = session.scalars(query.order_by(VersionRow.number.desc()).limit(page_size + 1)).unique().all()
    return cut(rows, page_size, lambda v: v.number)


def edit(
    session: Session,
    model: str,
    number: int,
    *,
    tags: dict[str, str] | None = None,
    description: str | None = None,
    archived: bool | None = None,
) -> VersionRow:
    """Replace tags or description, archive or bring back. Raises `NotFound`, `InUse`, `NotReady`."""
    owner = models.lock(session, model)
    version = get(session, model, number)
    if tags is not None:
        kept = {t.key: t for t in version.tags}
        version.tags = [kept.get(k) or TagRow(key=k) for k in tags]
        for tag in version.tags:
            tag.value = tags[tag.key]
    if description is not None:
        version.description = description
    if archived is not None and archived != (version.state == ARCHIVED):
        if version.state not in (READY, ARCHIVED):
            raise NotReady(f"{model}:{number} is {version.state}; only a ready version can be archived")
        if archived:
            _refuse_if_in_use(session, owner, version, "archived")
        version.state = ARCHIVED if archived else READY
    revision.note(session, "model", model)
    session.flush()
    return version


def remove(session: Session, model: str, number: int) -> None:
    """Delete the version. Its blobs stay until garbage collection.

    Raises `NotFound`, `InUse` naming the alias, the rollback or the job it would break.
    """
    # The task before the model, as whoever ends a build does: the other way round the two would deadlock.
    found = select(VersionRow.id).join(ModelRow).where(ModelRow.name == model, VersionRow.number == number)
    queue.cancel(session, BUILD_TASK, str(session.scalar(found)))
    owner = models.lock(session, model)
    version = get(session, model, number)
    _refuse_if_in_use(session, owner, version, "deleted")
    models.refuse_while_at_work(session, f"{model}:{number} cannot be deleted", VersionRow.id == version.id)
    session.delete(version)
    revision.note(session, "model", model)


def hold_blobs(session: Session, *, shared: bool) -> None:
    """Keep garbage collection and publishing apart. SQLite's one writer does that by itself."""
    if session.get_bind().dialect.name == "postgresql":
        lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        session.execute(text(f"SELECT {lock}({_BLOB_LOCK})"))


def signature_of(version: VersionRow) -> Signature:
    """Raises `NotReady` when the version has none yet."""
    if version.signature is None:
        raise NotReady(f"{version.model.name}:{version.number} is {version.state} and has no signature")
    return Signature.from_json(version.signature)


def _said(new: NewVersion) -> dict[str, Any]:
    """The lineage as far as its publisher knows it; `build.lineage.settle` compares it with the file."""
    made_by = {name: {"version": version, "said_by": "publisher"} for name, version in new.made_by.items()}
    said = {"made_by": made_by, "published_from": new.published_from}
    return {name: value for name, value in said.items() if value}


def _by_id(session: Session, version_id: int) -> VersionRow:
    version = session.get(VersionRow, version_id, populate_existing=True)
    if version is None:
        raise NotFound("version", version_id)
    return version


def _take_alias(session: Session, owner: ModelRow, version: VersionRow, alias: str) -> None:
    row = session.get(AliasRow, (owner.id, alias), populate_existing=True)
    if row is None or row.version.number <= version.number:
        reason = "published with this alias"
        aliases.promote(session, owner.name, alias, version.number, by=version.created_by, reason=reason)


def require_blob(store: Store, sha256: str, field: str) -> None:
    check_sha256(sha256, field)
    if not store.touch(sha256):
        raise invalid_field(
            field,
            "unknown artifact",
            "PUT /v1/artifacts/{sha256} first",
            detail=f"{field} {sha256} was not uploaded",
        )


def _refuse_if_in_use(session: Session, owner: ModelRow, version: VersionRow, verb: str) -> None:
    name = f"{owner.name}:{version.number}"
    for row in session.scalars(select(AliasRow).where(AliasRow.model_id == owner.id)):
        if row.version_id == version.id:
            raise InUse(f"{name} is {row.name} and cannot be {verb}; promote another version first")
        if aliases.is_rolling_out(row) and row.edge_previous == version.number:
            raise InUse(f"{name} is what devices outside the rollout of {row.name} get, and cannot be {verb}")
        target = aliases.rollback_target(session, row)
        if target is not None and target[1].id == version.id:
            raise InUse(f"{name} is where a rollback of {row.name} would go and cannot be {verb}")
