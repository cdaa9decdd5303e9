"""The settings, read from the environment with the prefix `TRIVIUM_`."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="TRIVIUM_", extra="ignore")

    home: Path = Field(default=Path(".trivium"), description="data directory: database, blobs, admin.key")
    database_url: str | None = Field(default=None, description="postgresql+psycopg://...; unset: SQLite")
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)

    max_body_mb: int = Field(
        default=64, ge=1, description="largest request body; artifacts have their own bound"
    )
    max_artifact_mb: int = Field(default=4096, ge=1, description="largest uploaded artifact")

    model_memory_mb: int = Field(
        default=4096, ge=1, description="models in memory; the least recently used go first"
    )
    predict_deadline_s: float = Field(default=30.0, gt=0, description="longest one call of an isolated model")

    build_timeout_s: float = Field(default=600.0, gt=0, description="longest a build may take")
    build_memory_mb: int = Field(default=8192, ge=512, description="most memory a build may use")
    build_concurrency: int = Field(default=1, ge=1, description="builds at once, per server process")

    batch_roots: str = Field(
        default="",
        description="places that jobs may read from: directories and object-store URIs, with : between",
    )
    batch_lanes: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="partitions at once, per worker"
    )
    batch_lanes_per_model: int | None = Field(
        default=None, ge=1, description="partitions of one model at once, over all workers; unset: no bound"
    )

    shutdown_grace_s: float = Field(default=30.0, ge=0, description="how long shutdown waits for requests")

    @cached_property
    def url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'registry.db'}"

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """The batch roots, one by one."""
        return tuple(r for r in re.split(r":(?!//)", self.batch_roots) if r)

    @property
    def jobs(self) -> Path:
        return self.home / "jobs"

    def job_directory(self, job_id: int) -> Path:
        """Holds a job's parts until they are assembled. Absolute."""
        return self.jobs.absolute() / str(job_id)

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def admin_key_file(self) -> Path:
        return self.home / "admin.key"
