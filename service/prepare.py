"""What every process that works on the registry needs first: `trivium serve` and `trivium worker` alike."""

from __future__ import annotations

from registry import db, keys
from service import telemetry
from service.config import Settings

log = telemetry.logger(__name__)


def prepare(settings: Settings) -> None:
    """Migrate SQLite (PostgreSQL must be current), make the first admin key. Safe to do at the same time.

    Raises `TriviumError` when the database needs `trivium migrate`.
    """
    engine = db.connect(settings.url)
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if engine.dialect.name == "sqlite":
            db.migrate(engine, settings.home)
        db.require_current(engine)
        with db.locked(settings.home / "start.lock"), db.sessions(engine).begin() as session:
            if keys.ensure_admin(session, settings.admin_key_file):
                log.info("admin_key.created", file=str(settings.admin_key_file))
    finally:
        engine.dispose()
