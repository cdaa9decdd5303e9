"""The server and the data directory that the environment selects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import BadParameter

if TYPE_CHECKING:
    from service.client import Client
    from service.config import Settings

DEFAULT_URL = "http://127.0.0.1:8080"


def connect(timeout_s: float = 60.0, **options: float) -> Client:
    """Return a client for `TRIVIUM_URL`, with the key of `TRIVIUM_API_KEY` or of the data directory."""
    from service.client import Client

    return Client(os.environ.get("TRIVIUM_URL") or DEFAULT_URL, find_key(), timeout_s, **options)


def find_key() -> str | None:
    """Return the API key, or None: the server then answers 401."""
    if key := os.environ.get("TRIVIUM_API_KEY"):
        return key
    file = Path(os.environ.get("TRIVIUM_HOME") or ".trivium") / "admin.key"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise BadParameter(f"no permission to read {file}; set TRIVIUM_API_KEY") from error


def read_settings(**overrides: Any) -> Settings:
    """Return the settings of the environment; `overrides` that are not None take precedence."""
    from service.config import Settings

    return Settings(**{key: value for key, value in overrides.items() if value is not None})
