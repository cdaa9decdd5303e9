"""What every process that works on the registry needs first: `trivium serve` and `trivium worker` alike."""

from __future__ import annotations

import os
from pathlib import Path

from registry import db, keys
from service import telemetry
from service.config import Settings

log = telemetry.logger(__name__)


def prepare(settings: Settings) -> None:
    """Migrate SQLite (PostgreSQL must be current), make the first admin key. Safe to do at the same time.

    Raises `TriviumError` when the database needs `trivium migrate`.
    """
    for root in settings.roots:
        if "://" not in root and not Path(root).is_dir():
            log.warning("batch_root.missing", root=root, setting="TRIVIUM_BATCH_ROOTS")
    engine = db.connect(settings.url)
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _keep_compiled_code(settings)
        if engine.dialect.name == "sqlite":
            db.migrate(engine, settings.home)
        db.require_current(engine)
        with db.locked(settings.home / "start.lock"), db.sessions(engine).begin() as session:
            if keys.ensure_admin_key(session, settings.admin_key_file):
                log.info("admin_key.created", file=str(settings.admin_key_file))
    finally:
        engine.dispose()


def _keep_compiled_code(settings: Settings) -> None:
    """What numba compiles lies beside the source, as Python's own does; where that is read-only, in `home`.

    The environment says so, for this process and those that it starts.
    """
    if not os.access(Path(__file__).parent / "runtime", os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(settings.home.absolute() / "compiled"))
