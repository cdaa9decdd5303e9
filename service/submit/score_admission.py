"""Admission of scoring jobs: resolve the version, check the column names, read the first rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.orm import Session

from registry import aliases, models, verification, versions
from registry.artifacts import Store
from registry.errors import FieldError, Invalid, NotReady, invalid_field
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.signature import Signature
from registry.tables import VersionRow
from registry.vocabulary import READY, SCORE
from service.config import Settings
from service.runtime.codec.answer_encoder import AnswerEncoder
from service.runtime.codec.columns import Column, columns_of
from service.submit.admission import (
    HeadReport,
    JobAdmission,
    JobSpec,
    check_location,
    one_of_columns,
    require_artifact,
    require_engine,
)
from service.submit.input_locations import locate_input

if TYPE_CHECKING:  # imports pyarrow, which a server loads with its first job
    from service.formats.dataset import Dataset

HEAD_ROWS = 100
"""Rows that are read before a job is accepted."""


class ScoreColumns(NamedTuple):
    """The columns of the input that a scoring job reads."""

    features: tuple[Column, ...]
    copied: tuple[str, ...]  # into the output: the id column first, then passthrough
    id_column: str | None


class ScoreAdmission(JobAdmission):
    model_path = ("model",)
    output_stage = jobs.SCORE_STAGE

    def resolve_version(self, session: Session, spec: JobSpec) -> VersionRow:
        if spec.get("version") is not None:
            version = versions.get(session, spec["model"], spec["version"])
        else:
            version = aliases.get(session, spec["model"], spec.get("alias") or aliases.CHAMPION).version
        _require_ready(version)
        return version

    def check(self, session: Session, settings: Settings, store: Store, spec: JobSpec) -> None:
        version = self.resolve_version(session, spec)
        columns_to_read(spec, versions.signature_of(version))
        versions.lock_blobs(session, shared=True)
        check_location(settings, store, spec)

    def examine(
        self, settings: Settings, store: Store, spec: JobSpec, version: VersionRow | None
    ) -> HeadReport:
        from service.formats import (
            reading,
            writing,
        )  # import pyarrow, which a server loads with its first job

        assert version is not None, "resolve_version returned it"
        require_engine(spec["engine"])
        columns = columns_to_read(spec, versions.signature_of(version))
        require_artifact(store, spec, "input")
        place = locate_input(settings, store, spec["input"])
        dataset = reading.open_dataset(
            place.location, place.media_type, name=place.name, features=columns.features
        )
        require_copied_columns(spec, dataset)
        head = reading.read_head(dataset, columns.features, columns.copied, columns.id_column, HEAD_ROWS)
        unwritable = writing.find_unwritable_rows(head.extra, spec["output"]["media_type"])
        head = reading.add_faults(head, 0, unwritable, columns.id_column)
        has_threshold = spec.get("error_threshold") is not None  # then the share of all rows decides
        if head.length and not len(head.rows) and not has_threshold:
            errors = [FieldError(f.message, instance=f.row, field=f.field) for f in head.faults]
            message = none_scorable(head.length, errors[0].message)
            raise Invalid(message, errors)
        warnings = [f"row {f.row}: {f.message}" for f in head.faults]
        return HeadReport(list(dataset.columns), head.length, len(head.faults), warnings)

    def accept(
        self,
        session: Session,
        store: Store,
        spec: JobSpec,
        version: VersionRow | None,
        *,
        by: str,
        schedule: str | None = None,
        parent_id: int | None = None,
    ) -> JobRow:
        assert version is not None, "resolve_version returned it"
        models.lock(session, spec["model"])  # deleting or archiving a version takes the same lock
        _require_ready(versions.get(session, spec["model"], version.number))
        require_engine(spec["engine"])
        versions.lock_blobs(session, shared=True)
        require_artifact(store, spec, "input")
        new_job = jobs.NewJob(
            kind=SCORE,
            engine=spec["engine"],
            spec=spec,
            model=self.model_of(spec),
            version=version,
            max_attempts=spec["max_attempts"],
            keep_s=spec["expires_in"] or jobs.DEFAULT_KEEP_S,
            schedule=schedule,
            parent_id=parent_id,
        )
        return jobs.create(session, new_job, by=by)


def none_scorable(rows: int, reason: str) -> str:
    """Return the message for an input whose first rows cannot be scored. `reason`: of the first one."""
    return (
        f"none of the first {rows} rows can be scored: {reason.rstrip('.')}; if later rows can be, set "
        "error_threshold (--error-threshold), the share of rows that may fail"
    )


def columns_to_read(spec: JobSpec, signature: Signature) -> ScoreColumns:
    """Return the columns to read. Raises `Invalid` if a copied column has the name of an output column."""
    id_column, copied = spec.get("id_column"), _copied_columns(spec)
    output_names = {leaf.name for leaf in AnswerEncoder(signature).fields}
    for name in copied:
        if name in output_names or any(name.startswith(f"{output}.") for output in output_names):
            field = "id_column" if name == id_column else "passthrough"
            message = f"the output already has a column {name!r}: rename the column of the input"
            raise invalid_field(field, message, "another name")
    return ScoreColumns(columns_of(signature), copied, id_column)


def _copied_columns(spec: JobSpec) -> tuple[str, ...]:
    id_column = spec.get("id_column")
    return tuple(dict.fromkeys([*([id_column] if id_column else []), *spec.get("passthrough", ())]))


def require_copied_columns(spec: JobSpec, dataset: Dataset) -> None:
    """Raises `Invalid` naming each field of the body whose column is missing in the input."""
    from service.formats import reading

    errors = [
        FieldError(
            f"the input has no column {name!r}",
            field="id_column" if name == spec.get("id_column") else "passthrough",
            expected=one_of_columns(dataset.columns),
        )
        for name in _copied_columns(spec)
        if name not in dataset.columns
    ]
    if errors:
        reading.check_separator(dataset)
        raise Invalid(errors[0].message, errors)


def _require_ready(version: VersionRow) -> None:
    if version.state != READY:
        name = f"{version.model.name}:{version.number}"
        raise NotReady(f"{name} is {version.state}; only a ready version can score")
    if version.fallback == "none":
        raise verification.refusal(version.model.name, version.number)
