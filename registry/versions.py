"""Versions: publish, build, read, archive, delete.

The uploaded artifact and the results of its build never change; tags, description and the archived state can.
Version numbers are not reused.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from registry import aliases, models, queue, revision, traffic
from registry.artifacts import Store, check_sha256
from registry.build_messages import BuildResult
from registry.errors import InUse, NotFound, NotReady, invalid_field
from registry.jobs.tables import JobRow
from registry.names import check_name
from registry.pages import Page, decode_token, make_page
from registry.signature import Signature
from registry.tables import AliasRow, ModelRow, TagRow, VersionRow, now
from registry.vocabulary import AGREED, ARCHIVED, BUILD_TASK, BUILDING, FORMATS, READY, REJECTED

BUILD_PRIORITY = 10
BUILD_ATTEMPTS = 10
"""Reject the model after this many builds ended by a server crash."""
_BLOB_LOCK_ID = 7341  # PostgreSQL advisory lock: shared by publishing, exclusive for garbage collection


class NewVersion(msgspec.Struct, frozen=True):
    """An uploaded artifact with the statements of its publisher."""

    model: str
    artifact: str
    format: str
    example: dict[str, Any] | None = None  # {"artifact", "media_type"}
    target: str | None = None
    answers: dict[str, Any] | None = None  # {"artifact", "media_type"}: the publisher's, to the example
    signature: dict[str, Any] | None = None
    metrics: dict[str, float] = {}
    tags: dict[str, str] = {}
    description: str = ""
    alias: str | None = None
    made_by: dict[str, str] = {}  # library -> version that the artifact was made with
    published_from: dict[str, str] = {}  # library -> version of the publisher's environment


def publish(session: Session, store: Store, new: NewVersion, *, by: str) -> VersionRow:
    """Add a version in state `building` and enqueue its build, in the caller's transaction.

    Raises `Invalid` (name, alias, format, an artifact that was not uploaded, answers without an example).
    """
    if new.alias is not None:
        check_name(new.alias, "alias")
    if new.format not in FORMATS:
        raise invalid_field(
            "format", "unknown format", " or ".join(FORMATS), detail=f"format {new.format!r} is not supported"
        )
    owner = models.lock_or_create(session, new.model, by)
    lock_blobs(session, shared=True)
    require_blob(store, new.artifact, "artifact")
    if new.example is not None:
        require_blob(store, new.example["artifact"], "example.artifact")
    if new.answers is not None:
        if new.example is None:
            raise invalid_field(
                "answers",
                "answers without an example",
                "the example whose rows were answered",
                detail="answers belong to the rows of an example: add the example",
            )
        require_blob(store, new.answers["artifact"], "answers.artifact")
    owner.last_number += 1
    version = VersionRow(
        model=owner,
        number=owner.last_number,
        state=BUILDING,
        format=new.format,
        artifact=new.artifact,
        example=new.example,
        target=new.target,
        answers=new.answers,
        publisher_signature=new.signature,
        publisher_alias=new.alias,
        description=new.description,
        metrics=new.metrics,
        lineage=_publisher_lineage(new),
        created_by=by,
        created_at=now(),
        tags=[TagRow(key=k, value=v) for k, v in new.tags.items()],
    )
    session.add(version)
    session.flush()
    queue.enqueue(session, BUILD_TASK, str(version.id), priority=BUILD_PRIORITY, max_attempts=BUILD_ATTEMPTS)
    revision.record_change(session, "model", owner.name)
    return version


def finish_build(session: Session, version_id: int, result: BuildResult) -> VersionRow:
    """Record a build's result. Its files must be in the blob store, and `result` names their blobs.

    A ready version gets the alias that its publisher requested, unless the alias points at a newer version:
    builds may end in any order. Raises `NotFound` if the version was deleted.
    """
    name = session.scalar(select(ModelRow.name).join(VersionRow).where(VersionRow.id == version_id))
    if name is None:
        raise NotFound("version", version_id)
    owner = models.lock(session, name)
    version = get_by_id(session, version_id)  # may have been deleted while waiting for the lock
    version.state = result.state
    version.report = result.report
    version.signature = result.signature.to_json() if result.signature else None
    version.runtime = result.runtime
    version.runtime_reason = result.runtime_reason
    version.servable = result.servable
    version.forest = result.forest
    version.lineage = {**version.lineage, **result.lineage}
    version.metrics = {**result.metrics, **version.metrics}  # the publisher's metrics take precedence
    version.built_at = now()
    if result.measured is not None:
        version.measured = result.measured
        version.libraries = libraries_text(result.libraries)
        version.verification = {
            "state": AGREED,
            "at": version.built_at.isoformat(),
            "libraries": result.libraries,
            "figures": {},
        }
    revision.record_change(session, "model", owner.name)
    session.flush()
    if version.state == READY and version.publisher_alias is not None:
        set_publisher_alias(session, version, version.publisher_alias)
    return version


def reject(session: Session, version_id: int, reason: str) -> VersionRow:
    """Record that the build failed. Raises `NotFound` if the version was deleted."""
    return finish_build(session, version_id, BuildResult(state=REJECTED, report={"reason": reason}))


def get_by_id(session: Session, version_id: int) -> VersionRow:
    """Raises `NotFound`."""
    version = session.get(VersionRow, version_id, populate_existing=True)
    if version is None:
        raise NotFound("version", version_id)
    return version


def get(session: Session, model: str, number: int) -> VersionRow:
    """Return the version as it is now, also if the session has loaded it before. Raises `NotFound`."""
    query = select(VersionRow).join(ModelRow).where(ModelRow.name == model, VersionRow.number == number)
    version = session.scalar(query.execution_options(populate_existing=True))
    if version is None:
        owner = models.get(session, model)  # raises if the model is missing
        newest = session.scalar(select(func.max(VersionRow.number)).where(VersionRow.model_id == owner.id))
        raise version_not_found(model, number, newest)
    return version


def version_not_found(model: str, number: int, newest: int | None) -> NotFound:
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
    """Return a page of the model's versions, newest first.

    `q` is part of the description; a version must have all `tags`.
    """
    owner = models.get(session, model)
    query = select(VersionRow).where(VersionRow.model_id == owner.id)
    if (last := decode_token(page_token, int)) is not None:
        query = query.where(VersionRow.number < last)
    if q:
        query = query.where(VersionRow.description.icontains(q, autoescape=True))
    if tags:
        query = models.with_tags(query, tags)
    rows = session.scalars(query.order_by(VersionRow.number.desc()).limit(page_size + 1)).unique().all()
    return make_page(rows, page_size, lambda v: v.number)


def edit(
    session: Session,
    model: str,
    number: int,
    *,
    tags: dict[str, str] | None = None,
    description: str | None = None,
    archived: bool | None = None,
) -> VersionRow:
    """Replace tags or description, archive or unarchive. Raises `NotFound`, `InUse`, `NotReady`."""
    owner = models.lock(session, model)
    version = get(session, model, number)
    if tags is not None:
        existing = {t.key: t for t in version.tags}
        version.tags = [existing.get(k) or TagRow(key=k) for k in tags]
        for tag in version.tags:
            tag.value = tags[tag.key]
    if description is not None:
        version.description = description
    if archived is not None and archived != (version.state == ARCHIVED):
        if version.state not in (READY, ARCHIVED):
            raise NotReady(f"{model}:{number} is {version.state}; only a ready version can be archived")
        if archived:
            _require_not_in_use(session, owner, version, "archived")
        version.state = ARCHIVED if archived else READY
    revision.record_change(session, "model", model)
    session.flush()
    return version


def remove(session: Session, model: str, number: int) -> None:
    """Delete the version. Garbage collection deletes its blobs later.

    Raises `NotFound`, `InUse` with the alias, rollback, traffic or job that needs the version.
    """
    # Lock the task before the model, in the same order as the end of a build; the other order could deadlock.
    version_id = select(VersionRow.id).join(ModelRow)
    version_id = version_id.where(ModelRow.name == model, VersionRow.number == number)
    queue.cancel(session, BUILD_TASK, str(session.scalar(version_id)))
    owner = models.lock(session, model)
    version = get(session, model, number)
    _require_not_in_use(session, owner, version, "deleted")
    models.require_no_open_job(
        session, f"{model}:{number} cannot be deleted", JobRow.version_id == version.id
    )
    session.delete(version)
    revision.record_change(session, "model", model)


def lock_blobs(session: Session, *, shared: bool) -> None:
    """Exclude garbage collection (`shared`) or publishing. SQLite allows one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        lock = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        session.execute(text(f"SELECT {lock}({_BLOB_LOCK_ID})"))


def libraries_text(libraries: dict[str, str]) -> str:
    """Return the form of library versions in a row: equal versions are equal texts."""
    return json.dumps(libraries, sort_keys=True)


def signature_of(version: VersionRow) -> Signature:
    """Return the version's signature. Raises `NotReady` before the build has set it."""
    if version.signature is None:
        raise NotReady(f"{version.model.name}:{version.number} is {version.state} and has no signature")
    return Signature.from_json(version.signature)


def _publisher_lineage(new: NewVersion) -> dict[str, Any]:
    """Return the lineage that the publisher stated. The build compares it with the file.

    See `service/compiler/lineage.py`.
    """
    made_by = {name: {"version": version, "said_by": "publisher"} for name, version in new.made_by.items()}
    lineage = {"made_by": made_by, "published_from": new.published_from}
    return {name: value for name, value in lineage.items() if value}


def set_publisher_alias(session: Session, version: VersionRow, alias: str) -> None:
    """Point `alias` at a ready version for its publisher, unless it points at a newer version.

    Raises `Conflict` if the version is not ready.
    """
    owner = models.lock(session, version.model.name)
    row = session.get(AliasRow, (owner.id, alias), populate_existing=True)
    if row is None or row.version.number <= version.number:
        reason = "published with this alias"
        aliases.promote(session, owner.name, alias, version.number, by=version.created_by, reason=reason)


def require_blob(store: Store, sha256: str, field: str) -> None:
    """Reset the age of the blob. Raises `Invalid` with `field` if it was not uploaded."""
    check_sha256(sha256, field)
    if not store.touch(sha256):
        raise invalid_field(
            field,
            "unknown artifact",
            "PUT /v1/artifacts/{sha256} first",
            detail=f"{field} {sha256} was not uploaded",
        )


def _require_not_in_use(session: Session, owner: ModelRow, version: VersionRow, action: str) -> None:
    name = f"{owner.name}:{version.number}"
    for row in session.scalars(select(AliasRow).where(AliasRow.model_id == owner.id)):
        if row.version_id == version.id:
            raise InUse(f"{name} is {row.name} and cannot be {action}; promote another version first")
        if aliases.is_rolling_out(row) and row.edge_previous == version.number:
            raise InUse(
                f"{name} is the version of devices outside the rollout of {row.name}, and cannot be {action}"
            )
        target = aliases.rollback_target(session, row)
        if target is not None and target[1].id == version.id:
            raise InUse(f"{name} is the rollback target of {row.name} and cannot be {action}")
        if (use := traffic.describe_use(session, row, version.number)) is not None:
            raise InUse(f"{name} {use} and cannot be {action}; change the traffic of {row.name} first")
