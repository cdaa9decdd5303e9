"""Admission of training jobs: everything that can be checked without opening the estimator.

The estimator is opened in a child process when the job is planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from registry import versions
from registry.artifacts import Store
from registry.errors import FieldError, Invalid
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.signature import DType
from registry.tables import VersionRow
from registry.vocabulary import TRAIN
from service.config import Settings
from service.submit.admission import (
    HeadReport,
    JobAdmission,
    JobSpec,
    check_location,
    one_of_columns,
    prefixed_fields,
    require_artifact,
    require_engine,
    warn_if_missing,
)
from service.submit.input_locations import locate_input
from service.submit.score_admission import require_copied_columns


class TrainAdmission(JobAdmission):
    model_path = ("publish", "name")
    required_scope = "publish"
    errors_hint = "a training counts the rows without a target and does not list them"
    has_eta = False  # all rows are read long before the last stage

    def output_hint(self, job: JobRow) -> str:
        published = "" if job.version is None else f", {job.model}:{job.version}"
        return f"a training publishes a version{published}"

    def check(self, session: Session, settings: Settings, store: Store, spec: JobSpec) -> None:
        versions.lock_blobs(session, shared=True)
        require_artifact(store, spec, "estimator")
        check_location(settings, store, spec)
        if (then := spec["then"]) is not None:
            with prefixed_fields("then", then):
                check_location(settings, store, then)

    def examine(
        self, settings: Settings, store: Store, spec: JobSpec, version: VersionRow | None
    ) -> HeadReport:
        features = self._examine_input(settings, store, spec)
        self._examine_then(settings, store, spec, features)
        return HeadReport(list(features), rows=0, failed=0, warnings=[])

    def examine_scheduled_job(
        self, settings: Settings, store: Store, spec: JobSpec, version: VersionRow | None
    ) -> list[str]:
        warnings: list[str] = []
        features: Mapping[str, DType] = {}
        with warn_if_missing(warnings):
            features = self._examine_input(settings, store, spec)
        with warn_if_missing(warnings):
            self._examine_then(settings, store, spec, features)
        return warnings

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
        require_engine(spec["engine"])
        versions.lock_blobs(session, shared=True)
        require_artifact(store, spec, "estimator")
        require_artifact(store, spec, "input")
        if (then := spec["then"]) is not None:
            with prefixed_fields("then", then):
                require_artifact(store, then, "input")
        new_job = jobs.NewJob(
            kind=TRAIN,
            engine=spec["engine"],
            spec=spec,
            model=self.model_of(spec),
            max_attempts=spec["max_attempts"],
            schedule=schedule,
            parent_id=parent_id,
        )
        return jobs.create(session, new_job, by=by)

    def _examine_input(self, settings: Settings, store: Store, spec: JobSpec) -> dict[str, DType]:
        """Return the dtype of each feature.

        Raises `Invalid` if the input cannot be read, if the target or a named column is missing, or if a
        column has a type that is not a feature.
        """
        from service.formats import column_types, reading  # imports pyarrow: loaded with the first job

        require_engine(spec["engine"])
        place = locate_input(settings, store, spec["input"])
        dataset = reading.open_dataset(
            place.location,
            place.media_type,
            uniform=True,
            dtypes=column_dtypes(spec),
            name=place.name,
        )
        target = spec["target"]
        if target not in dataset.columns:
            reading.check_separator(dataset)
            raise Invalid(
                missing_target(target, dataset.columns),
                [FieldError("no such column", field="target", expected="a column's name")],
            )
        _check_column_fields(spec, dataset.columns)
        names = [c for c in dataset.columns if c not in spec["exclude"]]
        dtypes = column_types.feature_dtypes(dataset, names)
        return {name: dtype for name, dtype in dtypes.items() if name != target}

    def _examine_then(
        self, settings: Settings, store: Store, spec: JobSpec, features: Mapping[str, DType]
    ) -> None:
        """Examine the input of the scoring job that follows the training.

        Otherwise its faults would appear after a version was trained and an alias moved. Raises `Invalid` if
        the input cannot be read, lacks a feature, or has a feature with another type.
        """
        from service.formats import column_types, reading

        if (then := spec["then"]) is None:
            return
        with prefixed_fields("then", then):
            require_artifact(store, then, "input")
            place = locate_input(settings, store, then["input"])
            dataset = reading.open_dataset(place.location, place.media_type, name=place.name)
            require_copied_columns(then, dataset)
            column_types.require_types(dataset, features)
        errors = [
            FieldError(f"the input of then has no column {name!r}, which the model is trained on", field=name)
            for name in features
            if name not in dataset.columns
        ]
        if errors:
            raise Invalid(errors[0].message, errors)


def column_dtypes(spec: JobSpec) -> dict[str, str]:
    """Return the dtypes to read columns as. Excluded columns are read as text: they may hold anything."""
    return dict.fromkeys(spec["exclude"], "string") | dict(spec["dtypes"])


def missing_target(target: str, columns: Sequence[str]) -> str:
    """Return the message for a target that is missing in the input."""
    return f"the target {target!r} is not a column of the input; the input has {', '.join(columns)}"


def _check_column_fields(spec: JobSpec, columns: Sequence[str]) -> None:
    """Raises `Invalid` if `exclude` or `dtypes` name missing columns, or if no feature remains."""
    target, excluded = spec["target"], spec["exclude"]
    errors = [
        FieldError(
            f"{field}: the input has no column {name!r}", field=field, expected=one_of_columns(columns)
        )
        for field in ("exclude", "dtypes")
        for name in spec[field]
        if name not in columns
    ]
    if target in excluded:
        errors.append(FieldError(f"the target {target!r} cannot be excluded", field="exclude"))
    elif not set(columns) - {target, *excluded}:
        errors.append(FieldError("every column but the target is excluded", field="exclude"))
    if errors:
        raise Invalid(errors[0].message, errors)
