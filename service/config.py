"""The settings, read from the environment with the prefix `TRIVIUM_`."""

from __future__ import annotations

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
    build_memory_mb: int = Field(default=8192, ge=256, description="most memory a build may use")
    build_concurrency: int = Field(default=1, ge=1, description="builds at once, per server process")

    shutdown_grace_s: float = Field(default=30.0, ge=0, description="how long shutdown waits for requests")

    @cached_property
    def url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'registry.db'}"

    @property
    def blobs(self) -> Path:
        return self.home / "blobs"

    @property
    def admin_key_file(self) -> Path:
        return self.home / "admin.key"
