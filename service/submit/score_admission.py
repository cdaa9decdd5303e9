"""Is this a job that can be done? Resolve the version, check the names, read the first rows.

What is refused here is refused before anything is enqueued. Planning checks it all again: between the two
the input may have changed, and a schedule's job is not looked at before it is due. A `spec` is the body of
`POST /v1/jobs`, validated, with every default filled in. Nothing here knows HTTP: workers start the jobs of
schedules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy.orm import Session

from registry import aliases, models, versions
from registry.artifacts import Store
from registry.errors import FieldError, Invalid, NotReady, invalid_field
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.signature import Signature
from registry.tables import VersionRow
from registry.vocabulary import SCORE
from service.config import Settings
from service.runtime.codec.answers import Answers
from service.runtime.codec.columns import Column, columns_of
from service.submit import engines, inputs

if TYPE_CHECKING:  # pyarrow comes with the first job, not with the start
    from service.formats.dataset import Dataset

HEAD_ROWS = 100

Spec = dict[str, Any]


class Layout(NamedTuple):
    """What is read from the input for a scoring."""

    columns: tuple[Column, ...]
    extra: tuple[str, ...]  # id column first, then passthrough
    id_column: str | None


class Examined(NamedTuple):
    """What the first rows were like."""

    columns: list[str]
    rows: int
    failed: int
    warnings: list[str]


def version_of(session: Session, spec: Spec) -> VersionRow:
    """The version that the job will score with. Raises `NotFound`, `NotReady`."""
    model = spec["model"]
    if spec.get("version") is not None:
        version = versions.get(session, model, spec["version"])
    else:
        version = aliases.get(session, model, spec.get("alias") or aliases.CHAMPION).version
    _check_ready(version)
    return version


def _check_ready(version: VersionRow) -> None:
    if version.state != versions.READY:
        name = f"{version.model.name}:{version.number}"
        raise NotReady(f"{name} is {version.state}; only a ready version can score")


def layout(spec: Spec, signature: Signature) -> Layout:
    """Raises `Invalid` when a column of the input would stand twice in the output."""
    id_column, extra = spec.get("id_column"), _extra(spec)
    made = {leaf.name for leaf in Answers(signature).leaves}
    for name in extra:
        if name in made or any(name.startswith(f"{m}.") for m in made):
            field = "id_column" if name == id_column else "passthrough"
            message = f"the output has a column {name!r} of its own; rename yours"
            raise invalid_field(field, message, "another name")
    return Layout(columns_of(signature), extra, id_column)


def _extra(spec: Spec) -> tuple[str, ...]:
    """The columns to hand on: the id column first, then passthrough."""
    id_column = spec.get("id_column")
    return tuple(dict.fromkeys([*([id_column] if id_column else []), *spec.get("passthrough", ())]))


def examine(settings: Settings, store: Store, spec: Spec, version: VersionRow) -> Examined:
    """Read the first rows as the job will. Raises `Invalid` when columns are missing or no row is good."""
    # pyarrow comes with the first job, not with the start
    from service.formats import reading

    engines.require_engine(spec["engine"])
    wanted = layout(spec, versions.signature_of(version))
    _require_input(store, spec)
    place = inputs.find(settings, store, spec["input"])
    dataset = reading.open_dataset(place.location, place.media_type)
    check_extra(spec, dataset)
    head = reading.check_head(dataset, wanted.columns, wanted.extra, wanted.id_column, HEAD_ROWS)
    tolerant = spec.get("error_threshold") is not None  # who names a share waits for it
    if head.length and not len(head.rows) and not tolerant:
        errors = [FieldError(f.message, instance=f.row, field=f.field) for f in head.faults]
        raise Invalid(f"none of the first {head.length} rows can be scored: {errors[0].message}", errors)
    said = [f"row {f.row}: {f.message}" for f in head.faults]
    return Examined(list(dataset.columns), head.length, len(head.faults), said)


def check_extra(spec: Spec, dataset: Dataset) -> None:
    """Raises `Invalid` naming the field of the body whose column the input does not have."""
    from service.formats import reading

    faults = [
        FieldError(
            f"the input has no column {name!r}",
            field="id_column" if name == spec.get("id_column") else "passthrough",
            expected=some(dataset.columns),
        )
        for name in _extra(spec)
        if name not in dataset.columns
    ]
    if faults:
        reading.check_commas(dataset)
        raise Invalid(faults[0].message, faults)


def some(columns: Sequence[str]) -> str:
    """What was expected where a column's name was."""
    return "one of " + ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")


@contextmanager
def within(place: str, spec: Spec) -> Iterator[None]:
    """The fields of `spec` that are refused in this block are named as they stand in `place` of a larger
    body: `then.input.uri`. Columns of the input keep their names, but those that a field has, too."""
    try:
        yield
    except Invalid as error:
        error.errors = tuple(
            msgspec.structs.replace(e, field=f"{place}.{e.field}") if _root(e) in spec else e
            for e in error.errors
        )
        raise


def _root(fault: FieldError) -> str:
    return (fault.field or "").partition(".")[0]


def _require_input(store: Store, spec: Spec) -> None:
    if (artifact := spec["input"].get("artifact")) is not None:
        versions.require_blob(store, artifact, "input.artifact")


def accept(
    session: Session,
    store: Store,
    spec: Spec,
    version: VersionRow,
    *,
    by: str,
    schedule: str | None = None,
    parent_id: int | None = None,
) -> JobRow:
    """Enqueue it, in the caller's transaction. Raises `Invalid` when the input was not uploaded; `NotFound`,
    `NotReady` when the version went out of use meanwhile."""
    models.lock(session, spec["model"])  # who deletes or archives a version has it, too
    _check_ready(versions.get(session, spec["model"], version.number))
    engines.require_engine(spec["engine"])
    versions.hold_blobs(session, shared=True)
    _require_input(store, spec)
    return jobs.create(
        session,
        jobs.NewJob(
            kind=SCORE,
            engine=spec["engine"],
            spec=spec,
            model=spec["model"],
            version=version,
            max_attempts=spec["max_attempts"],
            keep_s=spec["expires_in"] or jobs.DEFAULT_KEEP_S,
            schedule=schedule,
            parent_id=parent_id,
        ),
        by=by,
    )
