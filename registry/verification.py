"""Checks whether versions still give the answers that were measured at their build.

Another release of a library may answer differently. A check measures each runtime of a version again on the
stored rows (`service/builds/verify_tasks.py`). A runtime that answers differently is not used any more:
`fallback` is what answers instead, until the version is published again, archived, or its new answers are
accepted. An export that answers differently is rejected, so devices get it no longer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import aliases, models, queue, revision, versions
from registry.errors import Conflict, NotFound, NotReady, Unavailable
from registry.jobs.tables import JobRow, ScheduleRow
from registry.signature import Signature
from registry.tables import AliasRow, ExportRow, ModelRow, VersionRow, now
from registry.vocabulary import DIFFERS, FALLBACK_FORMATS, PENDING, READY, REJECTED, VERIFY_TASK, Fallback

PRIORITY = -10
"""Lower than that of builds and exports, because a user waits for those."""
ATTEMPTS = 10


class MeasuredExport(msgspec.Struct, frozen=True):
    id: int
    quantize: str
    blob: str
    measured: str | None  # None: the published file itself


class MeasuredVersion(msgspec.Struct, frozen=True):
    """The inputs of a check; files are named by their blobs."""

    format: str
    signature: Signature
    runtime: str
    artifact: str
    servable: str | None
    forest: str | None
    measured: str
    accepts: bool  # the answers of now become the measured ones
    exports: list[MeasuredExport]


class CheckedExport(msgspec.Struct, frozen=True):
    libraries: dict[str, str]
    reason: str | None  # why it is rejected; None: it agrees


class CheckResult(msgspec.Struct, frozen=True):
    """The outcome of a check."""

    state: str  # agreed or differs
    libraries: dict[str, str]
    figures: dict[str, Any]  # by runtime or export: what was measured
    fallback: Fallback | None = None
    reason: str | None = None
    measured: str | None = None  # the blob of the accepted answers
    exports: dict[int, CheckedExport] = {}
    measurable: bool = True  # False: the stored rows cannot be read, so the version is served as before


def refusal(model: str, number: int) -> Unavailable:
    """The error of a version that nothing serves: why, and what to do."""
    return Unavailable(
        f"{model}:{number} is not served: since a library was upgraded, it no longer gives the answers that "
        f"it was published with (GET /v1/models/{model}/versions/{number} returns the figures). Publish it "
        "again, move the alias to another version, or accept the new answers: "
        f"trivium verify {model}:{number} --accept"
    )


def request(session: Session, version_id: int, *, accept_by: str | None = None) -> VersionRow:
    """Enqueue a check, unless one is queued, and mark the version as pending.

    With `accept_by`, the check makes the answers of now the measured ones, in this caller's name. Raises
    `NotFound`, `NotReady`, and `Conflict` for a version without measured rows.
    """
    subject = str(version_id)
    if accept_by is not None:
        queue.cancel(session, VERIFY_TASK, subject)  # it does not accept
    queue.enqueue_once(session, VERIFY_TASK, subject, max_attempts=ATTEMPTS, priority=PRIORITY)
    models.lock(session, versions.get_by_id(session, version_id).model.name)
    version = versions.get_by_id(session, version_id)
    name = f"{version.model.name}:{version.number}"
    if version.state != READY:
        raise NotReady(f"{name} is {version.state}; only a ready version can be verified")
    if version.measured is None:
        raise Conflict(f"{name} has no measured rows to verify it on; publish it again")
    version.verification = {**(version.verification or {}), "state": PENDING}
    if accept_by is not None:
        version.verification["accept_by"] = accept_by
    session.flush()
    return version


def inputs(session: Session, version_id: int) -> MeasuredVersion:
    """Return the inputs of a check. Raises `NotFound` if the version is not ready any more."""
    version = versions.get_by_id(session, version_id)
    if version.state != READY or version.measured is None or version.runtime is None:
        raise NotFound("ready version", f"{version.model.name}:{version.number}")
    ready = select(ExportRow).where(ExportRow.version_id == version_id, ExportRow.state == READY)
    exports = session.scalars(ready)
    return MeasuredVersion(
        format=version.format,
        signature=versions.signature_of(version),
        runtime=version.runtime,
        artifact=version.artifact,
        servable=version.servable,
        forest=version.forest,
        measured=version.measured,
        accepts="accept_by" in (version.verification or {}),
        exports=[MeasuredExport(e.id, e.quantize, e.blob or "", e.measured) for e in exports],
    )


def finish(session: Session, version_id: int, result: CheckResult) -> VersionRow:
    """Record the outcome of a check. Raises `NotFound` if the version was deleted meanwhile."""
    models.lock(session, versions.get_by_id(session, version_id).model.name)
    version = versions.get_by_id(session, version_id)
    earlier = version.verification or {}
    accepted = earlier.get("accepted")
    if result.measured is not None:
        version.measured = result.measured
        accepted = {"by": earlier.get("accept_by"), "at": now().isoformat()}
    version.libraries = versions.libraries_text(result.libraries)
    if result.measurable:
        version.fallback = result.fallback
    version.verification = {
        "state": result.state,
        "at": now().isoformat(),
        "libraries": result.libraries,
        "figures": result.figures,
        **({"reason": result.reason} if result.reason else {}),
        **({"accepted": accepted} if accepted else {}),
    }
    for export_id, checked in result.exports.items():
        _finish_export(session, export_id, checked)
    revision.record_change(session, "model", version.model.name)
    session.flush()
    return version


def reject(session: Session, version_id: int, reason: str) -> VersionRow:
    """Record a check that ended several times without a result, as if the runtime answered differently.

    Raises `NotFound`.
    """
    version = versions.get_by_id(session, version_id)
    recorded = json.loads(version.libraries or "{}")
    has_estimator = version.format in FALLBACK_FORMATS and version.runtime != "isolated"
    fallback: Fallback = "isolated" if has_estimator else "none"
    return finish(session, version_id, CheckResult(DIFFERS, recorded, {}, fallback, reason))


def outdated(session: Session, is_outdated: Callable[[dict[str, str]], bool]) -> list[int]:
    """Return the ids of the ready versions in use that were measured with other library versions.

    A version is in use if an alias or its rollback, a schedule, an unfinished job or an export needs it.
    """
    measured = [VersionRow.state == READY, VersionRow.measured.is_not(None)]
    texts = set(session.scalars(select(VersionRow.libraries).where(*measured).distinct()))
    of_exports = select(ExportRow.libraries).where(ExportRow.state == READY).distinct()
    texts |= set(session.scalars(of_exports))
    old = [text for text in texts if text is not None and is_outdated(json.loads(text))]
    if not old:
        return []
    exports = select(ExportRow.version_id).where(ExportRow.state == READY, ExportRow.libraries.in_(old))
    query = select(VersionRow.id).where(
        *measured, VersionRow.libraries.in_(old) | VersionRow.id.in_(exports.scalar_subquery())
    )
    found = set(session.scalars(query))
    return sorted(found & set(_used(session)))


def _used(session: Session) -> Iterator[int]:
    for alias in session.scalars(select(AliasRow)):
        yield alias.version_id
        if (target := aliases.rollback_target(session, alias)) is not None:
            yield target[1].id
        if aliases.is_rolling_out(alias):
            other = aliases.version_outside_rollout(session, alias)
            if other is not None:
                yield other.id
    yield from session.scalars(select(ExportRow.version_id).where(ExportRow.state == READY))
    unfinished = select(JobRow.version_id).where(JobRow.finished_at.is_(None), JobRow.version_id.is_not(None))
    yield from (i for i in session.scalars(unfinished) if i is not None)
    for job in session.scalars(select(ScheduleRow.job)):
        if isinstance(job.get("version"), int):
            query = select(VersionRow.id).join(ModelRow)
            yield from session.scalars(
                query.where(ModelRow.name == job.get("model"), VersionRow.number == job["version"])
            )


def differing(session: Session) -> list[VersionRow]:
    """Return the ready versions that no longer give the measured answers, by model and number."""
    state = VersionRow.verification["state"].as_string()
    measured = VersionRow.fallback.is_not(None) | (state == DIFFERS)  # `pending` keeps the fallback
    query = select(VersionRow).join(ModelRow).where(VersionRow.state == READY, measured)
    return list(session.scalars(query.order_by(ModelRow.name, VersionRow.number)).unique())


def withdrawn_exports(session: Session) -> list[ExportRow]:
    """Return the exports that were ready and were rejected by a check, newest first."""
    query = select(ExportRow).where(ExportRow.state == REJECTED, ExportRow.libraries.is_not(None))
    return list(session.scalars(query.order_by(ExportRow.id.desc())).unique())


def _finish_export(session: Session, export_id: int, checked: CheckedExport) -> None:
    row = session.get(ExportRow, export_id)
    if row is None or row.state != READY:
        return
    row.libraries = versions.libraries_text(checked.libraries)
    if checked.reason is not None:
        row.state = REJECTED
        row.report = {**(row.report or {}), "reason": checked.reason}
