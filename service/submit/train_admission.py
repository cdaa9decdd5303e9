"""Is this a training that can be done? As far as it can be said without opening the estimator.

Planning checks it all again, and has a child open the estimator.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from registry import versions
from registry.artifacts import Store
from registry.errors import FieldError, Invalid, invalid_field
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.vocabulary import TRAIN
from service.config import Settings
from service.submit import engines, inputs
from service.submit.score_admission import Spec, check_extra, some, within


def examine(settings: Settings, store: Store, spec: Spec) -> list[str]:
    """The features. Raises `Invalid` when the input cannot be read, or lacks the target."""
    # pyarrow comes with the first job, not with the start
    from service.formats import reading

    engines.require_engine(spec["engine"])
    place = inputs.find(settings, store, spec["input"])
    dataset = reading.open_dataset(place.location, place.media_type, alike=True, dtypes=dtypes_of(spec))
    target = spec["target"]
    if target not in dataset.columns:
        reading.check_commas(dataset)
        message = f"the target {target!r} is no column of the input; it has {', '.join(dataset.columns)}"
        raise invalid_field("target", "no such column", "a column's name", detail=message)
    _check_named(spec, target, dataset.columns)
    return [c for c in dataset.columns if c != target and c not in spec["exclude"]]


def dtypes_of(spec: Spec) -> dict[str, str]:
    """By column. One that is left out may be anything."""
    return dict.fromkeys(spec["exclude"], "string") | dict(spec["dtypes"])


def examine_then(settings: Settings, store: Store, spec: Spec, features: Sequence[str]) -> None:
    """Raises `Invalid` when what is to be scored then cannot be read, or lacks a column: a version would have
    been trained, and an alias moved, before anybody noticed."""
    from service.formats import reading

    if (then := spec["then"]) is None:
        return
    with within("then", then):
        if (artifact := then["input"].get("artifact")) is not None:
            versions.require_blob(store, artifact, "input.artifact")
        place = inputs.find(settings, store, then["input"])
        dataset = reading.open_dataset(place.location, place.media_type)
        check_extra(then, dataset)
    lacking = [name for name in features if name not in dataset.columns]
    if lacking:
        faults = [
            FieldError(f"what is to be scored then has no column {n!r}, which is trained on", field=n)
            for n in lacking
        ]
        raise Invalid(faults[0].message, faults)


def _check_named(spec: Spec, target: str, columns: Sequence[str]) -> None:
    """Raises `Invalid` naming each that is no column, or when nothing is left to learn from."""
    names = spec["exclude"]
    faults = [
        FieldError(f"the input has no column {name!r} {what}", field=field, expected=some(columns))
        for field, what in (("exclude", "to leave out"), ("dtypes", "to give a type to"))
        for name in spec[field]
        if name not in columns
    ]
    if target in names:
        faults.append(FieldError(f"the target {target!r} cannot be left out", field="exclude"))
    elif not set(columns) - {target, *names}:
        faults.append(FieldError("no column is left to learn from", field="exclude"))
    if faults:
        raise Invalid(faults[0].message, faults)


def accept(
    session: Session,
    store: Store,
    spec: Spec,
    *,
    by: str,
    schedule: str | None = None,
    parent_id: int | None = None,
) -> JobRow:
    """Enqueue it, in the caller's transaction. Raises `Invalid` when something it names was not uploaded."""
    engines.require_engine(spec["engine"])
    versions.hold_blobs(session, shared=True)
    versions.require_blob(store, spec["estimator"]["artifact"], "estimator.artifact")
    for field, part in (("input.artifact", spec), ("then.input.artifact", spec["then"] or {})):
        if (artifact := part.get("input", {}).get("artifact")) is not None:
            versions.require_blob(store, artifact, field)
    return jobs.create(
        session,
        jobs.NewJob(
            kind=TRAIN,
            engine=spec["engine"],
            spec=spec,
            model=spec["publish"]["name"],
            max_attempts=spec["max_attempts"],
            schedule=schedule,
            parent_id=parent_id,
        ),
        by=by,
    )
