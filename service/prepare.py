"""Preparation of the data directory and the database, by `trivium serve` and `trivium worker`."""

from __future__ import annotations

import os
from pathlib import Path

from registry import db, keys
from registry.artifacts import create_directory
from service import telemetry
from service.config import Settings, unknown_variables

log = telemetry.logger(__name__)


def prepare(settings: Settings) -> None:
    """Migrate SQLite (PostgreSQL must be current) and create the first admin key.

    Several processes may call it at the same time. Raises `TriviumError` when the database needs
    `trivium migrate`.
    """
    for name in unknown_variables(os.environ):
        log.warning("setting.unknown", variable=name, settings="docs/settings.md")
    for root in settings.roots:
        if "://" not in root and not Path(root).is_dir():
            log.warning("batch_root.missing", root=root, setting="TRIVIUM_BATCH_ROOTS")
    create_directory(settings.home, 0o700)  # before the database, which would create it without an fsync
    engine = db.connect(settings.url)
    try:
        _set_numba_cache(settings)
        if engine.dialect.name == "sqlite":
            db.migrate(engine, settings.home)
        db.require_current(engine)
        with db.locked(settings.home / "start.lock"), db.sessions(engine).begin() as session:
            if keys.ensure_admin_key(session, settings.admin_key_file):
                log.info("admin_key.created", file=str(settings.admin_key_file))
    finally:
        engine.dispose()


def _set_numba_cache(settings: Settings) -> None:
    """Let numba cache compiled code in `home` if the directory of the source is read-only.

    Sets an environment variable, for this process and the processes that it starts.
    """
    if not os.access(Path(__file__).parent / "runtime", os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(settings.home.absolute() / "compiled"))
