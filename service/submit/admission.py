"""Admission of jobs: the interface that every job kind implements, and checks that the kinds share.

A job is admitted in three steps. `resolve_version` reads the version that an alias points to, `examine` reads
the first rows of the input outside of any transaction, and `accept` enqueues the job in the caller's
transaction. A schedule is checked by `check` when it is created; its input may be missing until a run starts.
Whatever is rejected here is rejected before anything is enqueued. Planning repeats the checks, because the
input may change in between.

`service/submit/job_kinds.py` is the table of the kinds. HTTP routes and the scheduler of the worker both
admit jobs, so this package imports no web framework.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple

import msgspec
from sqlalchemy.orm import Session

from registry import versions
from registry.artifacts import Store
from registry.errors import FieldError, Invalid, Missing, Unavailable, invalid_field
from registry.jobs.tables import JobRow
from registry.tables import VersionRow
from registry.vocabulary import LOCAL, RAY, Scope
from service.config import Settings
from service.submit.input_locations import resolve_in_roots

JobSpec = dict[str, Any]
"""The validated body of `POST /v1/jobs`, with every default filled in. An alias is not resolved."""


class HeadReport(NamedTuple):
    """Result of reading the first rows of a job's input."""

    columns: list[str]
    rows: int
    failed: int
    warnings: list[str]


class JobAdmission(ABC):
    """Admission of one job kind, and facts about the kind for its records."""

    required_scope: ClassVar[Scope | None] = None
    """Scope that a key needs besides `batch` to start such a job."""
    output_stage: ClassVar[str | None] = None
    """Stage whose partitions write parts of the output file. None for a kind without one."""
    errors_hint: ClassVar[str | None] = None
    """Explains why the kind writes no errors file. None for a kind that writes one."""
    has_eta: ClassVar[bool] = True
    """False if the remaining time cannot be estimated from rows and partitions."""

    @property
    @abstractmethod
    def model_path(self) -> tuple[str, ...]:
        """Keys that lead to the model's name in a spec. A key limited to some models may use only these."""

    def model_of(self, spec: JobSpec) -> str:
        """Return the model that the job scores with or publishes. Raises `KeyError` if the spec has none."""
        model: Any = spec
        for key in self.model_path:
            model = model[key]
        assert isinstance(model, str), self.model_path
        return model

    def output_hint(self, job: JobRow) -> str:
        """Describe the result of `job`, for kinds without an output file."""
        return f"a {job.kind} job has no output file"

    def resolve_version(self, session: Session, spec: JobSpec) -> VersionRow | None:
        """Return the version that the job runs with, None for kinds without one.

        Raises `NotFound` and `NotReady`.
        """
        return None

    @abstractmethod
    def check(self, session: Session, settings: Settings, store: Store, spec: JobSpec) -> None:
        """Check whether a schedule could start this job now, except for the content of its input.

        Raises `NotFound`, `NotReady` and `Invalid`.
        """

    @abstractmethod
    def examine(
        self, settings: Settings, store: Store, spec: JobSpec, version: VersionRow | None
    ) -> HeadReport:
        """Read the first rows of the input in the same way as the job. `version`: from `resolve_version`.

        Raises `Invalid` if columns are missing or if no row can be used.
        """

    def examine_scheduled_job(
        self, settings: Settings, store: Store, spec: JobSpec, version: VersionRow | None
    ) -> list[str]:
        """Examine the input of a schedule's job, which may not exist yet.

        Returns a warning for each input that is missing or unavailable; raises `Invalid` as `examine` does.
        """
        warnings: list[str] = []
        with warn_if_missing(warnings):
            self.examine(settings, store, spec, version)
        return warnings

    @abstractmethod
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
        """Enqueue the job in the caller's transaction. `version`: from `resolve_version`.

        Raises `Invalid` if an artifact was not uploaded, `NotFound` and `NotReady` if the version was deleted
        or archived in the meantime.
        """


def ray_is_installed() -> bool:
    return find_spec("ray") is not None


def require_engine(engine: str) -> None:
    """Raises `Invalid` if a job requires Ray and Ray is not installed here."""
    if engine == RAY and not ray_is_installed():
        message = (
            "Ray is not installed on this server; the operator installs it with "
            "uv pip install --python .venv/bin/python --constraint requirements-dev.txt 'ray[data]' "
            "and sets RAY_ADDRESS"
        )
        raise invalid_field("engine", message, LOCAL)


def require_artifact(store: Store, spec: JobSpec, field: str) -> None:
    """Raises `Invalid` if `field` of the spec names an artifact that was not uploaded."""
    if (sha256 := spec.get(field, {}).get("artifact")) is not None:
        versions.require_blob(store, sha256, f"{field}.artifact")


def check_location(settings: Settings, store: Store, spec: JobSpec) -> None:
    """Check that the input was uploaded, or that its path lies in a batch root. The file may be missing.

    Raises `Invalid`.
    """
    require_artifact(store, spec, "input")
    if (uri := spec["input"].get("uri")) is not None:
        resolve_in_roots(settings.roots, uri)


@contextmanager
def warn_if_missing(warnings: list[str]) -> Iterator[None]:
    """Turn the error of an input that is missing or unavailable into a warning."""
    try:
        yield
    except (Missing, Unavailable) as error:
        warnings.append(f"{error}; each run checks again")


@contextmanager
def prefixed_fields(prefix: str, spec: JobSpec) -> Iterator[None]:
    """Prefix the fields of `spec` in errors with their place in a larger body: `then.input.uri`.

    Columns of the input keep their names, unless a column is named as a field of the spec.
    """
    try:
        yield
    except Invalid as error:
        error.errors = tuple(
            msgspec.structs.replace(e, field=f"{prefix}.{e.field}") if _top_field(e) in spec else e
            for e in error.errors
        )
        raise


def _top_field(error: FieldError) -> str:
    return (error.field or "").partition(".")[0]


def one_of_columns(columns: Sequence[str]) -> str:
    """Return the expectation for a field that must name a column."""
    return "one of " + ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
