"""Settings, read from environment variables with the prefix `TRIVIUM_`."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "TRIVIUM_"
CLIENT_VARIABLES = {"TRIVIUM_URL", "TRIVIUM_API_KEY"}
"""Read by the command line and other clients, not by `Settings`."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    home: Path = Field(default=Path(".trivium"), description="data directory: database, blobs, admin.key")
    database_url: str | None = Field(default=None, description="postgresql+psycopg://...; unset: SQLite")
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    grpc_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port of the Open Inference Protocol over gRPC; unset: it is not served",
    )
    trusted_proxies: str = Field(
        default="",
        description="addresses or networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto "
        "are used, separated by commas",
    )

    max_body_mb: int = Field(
        default=64, ge=1, description="largest request body; artifacts have their own limit"
    )
    max_artifact_mb: int = Field(default=4096, ge=1, description="largest uploaded artifact")

    model_memory_mb: int = Field(
        default=4096,
        ge=1,
        description="memory for loaded models, per web process; the least recently used are evicted",
    )
    predict_deadline_s: float = Field(
        default=30.0,
        gt=0,
        description="time limit of a predict request, and of one call of an isolated model; "
        "X-Request-Timeout sets a shorter one for a request",
    )

    build_timeout_s: float = Field(
        default=600.0, gt=0, description="time limit of a build, of an export, and of one step of a training"
    )
    build_memory_mb: int = Field(
        default=8192,
        ge=512,
        description="memory limit of a build, of an export, of one step of a training, and of an isolated "
        "model",
    )
    build_concurrency: int = Field(default=1, ge=1, description="concurrent builds per server")

    batch_roots: str = Field(
        default="",
        description="locations that jobs may read: directories and object-store URIs, separated by :",
    )
    batch_lanes: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="concurrent partitions per worker"
    )
    batch_lanes_per_model: int | None = Field(
        default=None,
        ge=1,
        description="concurrent partitions of one model over all workers; unset: unlimited",
    )

    shutdown_grace_s: float = Field(
        default=30.0, ge=0, description="how long a shutdown waits for running requests"
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        """Reject entries that uvicorn accepts but never matches."""
        for entry in value.split(",") if value.strip() else ():
            try:
                ipaddress.ip_network(entry.strip())
            except ValueError as error:
                raise ValueError(f"{error}; expected addresses or networks such as 10.0.0.0/8") from error
        return value

    @property
    def proxies(self) -> list[str]:
        """The entries of `trusted_proxies`."""
        return [entry.strip() for entry in self.trusted_proxies.split(",") if entry.strip()]

    @cached_property
    def url(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'registry.db'}"

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """The entries of `batch_roots`."""
        return tuple(r for r in re.split(r":(?!//)", self.batch_roots) if r)

    @property
    def jobs_directory(self) -> Path:
        return self.home / "jobs"

    def job_directory(self, job_id: int) -> Path:
        """Absolute path of the directory of a job's parts, which exists until they are assembled."""
        return self.jobs_directory.absolute() / str(job_id)

    @property
    def predictions_directory(self) -> Path:
        return self.home / "predictions"

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def admin_key_file(self) -> Path:
        return self.home / "admin.key"


def unknown_variables(environment: Iterable[str]) -> list[str]:
    """Return the names with our prefix that nothing reads: a misspelt setting has no effect."""
    known = CLIENT_VARIABLES | {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
