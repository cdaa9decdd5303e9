"""Is this a job that can be done? Resolve the version, check the names, read the first rows.

What is refused here is refused before anything is enqueued. Planning checks it all again: between the two
the input may have changed, and a schedule's job is not looked at before it is due.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from registry import aliases, jobs, versions
from registry.artifacts import Store
from registry.batch_tables import JobRow
from registry.errors import FieldError, Invalid, NotReady
from registry.signature import Signature
from registry.tables import VersionRow
from service.batch import places
from service.batch.schemas import Checkup, ScoreBody
from service.config import Settings
from service.runtime.codec.answers import Answers
from service.runtime.codec.columns import Column

HEAD_ROWS = 100


class Layout(NamedTuple):
    """What is read from the input for a scoring."""

    columns: tuple[Column, ...]
    extra: tuple[str, ...]  # id column first, then passthrough
    id_column: str | None


def version_of(session: Session, body: ScoreBody) -> VersionRow:
    """The version that the job will score with. Raises `NotFound`, `NotReady`."""
    if body.version is not None:
        version = versions.get(session, body.model, body.version)
    else:
        version = aliases.get(session, body.model, body.alias or aliases.CHAMPION).version
    if version.state != versions.READY:
        raise NotReady(f"{body.model}:{version.number} is {version.state}; only a ready version can score")
    return version


def layout(spec: dict[str, Any], signature: Signature) -> Layout:
    """Raises `Invalid` when a column of the input would stand twice in the output."""
    id_column = spec.get("id_column")
    extra = tuple(dict.fromkeys([*([id_column] if id_column else []), *spec.get("passthrough", ())]))
    made = {leaf.name for leaf in Answers(signature).leaves}
    for name in extra:
        if name in made or any(name.startswith(f"{m}.") for m in made):
            field = "id_column" if name == id_column else "passthrough"
            message = f"the output has a column {name!r} of its own; rename yours"
            raise Invalid(message, [FieldError(message, field=field, expected="another name")])
    return Layout(tuple(Column(i) for i in signature.inputs), extra, id_column)


def examine(settings: Settings, store: Store, body: ScoreBody, version: VersionRow) -> Checkup:
    """Read the first rows as the job will. Raises `Invalid` when columns are missing or no row is good."""
    # pyarrow comes with the first job, not with the start
    from service.batch import files

    signature = versions.signature_of(version)
    wanted = layout(body.model_dump(), signature)
    place = places.find(settings, store, body.input.model_dump())
    dataset = files.open_dataset(place.location, place.media_type)
    head = files.check_head(dataset, wanted.columns, wanted.extra, wanted.id_column, HEAD_ROWS)
    if head.length and not len(head.rows):
        errors = [FieldError(f.message, instance=f.row, field=f.field) for f in head.faults]
        raise Invalid(f"none of the first {head.length} rows can be scored: {errors[0].message}", errors)
    return Checkup(
        model=body.model,
        version=version.number,
        columns=list(dataset.columns),
        rows_checked=head.length,
        rows_failed=head.length - len(head.rows),
        warnings=[f"row {f.row}: {f.message}" for f in head.faults],
    )


def accept(
    session: Session,
    store: Store,
    body: ScoreBody,
    version: VersionRow,
    *,
    by: str,
    schedule: str | None = None,
    parent_id: int | None = None,
) -> JobRow:
    """Enqueue it, in the caller's transaction. Raises `Invalid` when the input was not uploaded."""
    if body.input.artifact is not None:
        versions.hold_blobs(session, shared=True)
        versions.require_blob(store, body.input.artifact, "input.artifact")
    return jobs.create(
        session,
        jobs.NewJob(
            kind=jobs.SCORE,
            engine=body.engine,
            spec=body.model_dump(mode="json", exclude={"dry_run"}),
            model=body.model,
            version=version,
            max_attempts=body.max_attempts,
            keep_s=body.expires_in or jobs.KEEP_S,
            schedule=schedule,
            parent_id=parent_id,
        ),
        by=by,
    )
