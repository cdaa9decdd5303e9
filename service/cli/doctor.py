"""`trivium doctor`: check versions, data directory, database and server. Changes nothing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from typer import Exit, echo, style

from service.cli.connection import connect, read_settings
from service.cli.exit_codes import FAILURE, one_line
from service.cli.options import Json
from service.cli.output import print_record

if TYPE_CHECKING:
    from service.config import Settings

OK, WARNING, WRONG = "ok", "warning", "wrong"
COLOURS = {OK: "green", WARNING: "yellow", WRONG: "red"}
LIBRARIES = (
    "fastapi",
    "uvicorn",
    "sqlalchemy",
    "alembic",
    "numpy",
    "pandas",
    "pyarrow",
    "onnxruntime",
    "onnx",
    "ai-edge-litert",
    "numba",
    "scikit-learn",
    "skl2onnx",
    "joblib",
)
GIB = 1 << 30


class CheckResult(msgspec.Struct, frozen=True):
    """The result of one check. `warning`: it works but needs attention; `wrong`: it does not work."""

    check: str
    status: str
    detail: str


def doctor(json: Json = False) -> None:
    """Check the installation and the server.

    The exit code is 1 when something is wrong; warnings leave it 0.
    """
    settings = read_settings()
    results = [
        *_check_versions(),
        *_check_variables(),
        *_check_data_directory(settings),
        *_check_database(settings),
        *_check_answers(settings),
        _check_server(settings),
    ]
    ok = all(result.status != WRONG for result in results)
    print_record(json, {"ok": ok, "checks": results}, lambda: _print_results(results))
    if not ok:
        raise Exit(FAILURE)


def _print_results(results: list[CheckResult]) -> None:
    for result in results:
        echo(f"{style(result.status.ljust(8), COLOURS[result.status])} {result.check}: {result.detail}")


def _check_versions() -> Iterator[CheckResult]:
    # Versions come from the packages' metadata: imports would take seconds, and broken packages would fail.
    from importlib.metadata import PackageNotFoundError, version
    from platform import machine, python_version, system

    platform = f"Python {python_version()}, {system()} {machine()}"
    yield CheckResult("trivium", OK, f"{version('trivium')} on {platform}")
    installed, missing = [], []
    for library in LIBRARIES:
        try:
            installed.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            missing.append(library)
    if missing:
        yield CheckResult("libraries", WRONG, f"not installed: {', '.join(missing)}; run scripts/setup")
    yield CheckResult("libraries", OK, ", ".join(installed))


def _check_variables() -> Iterator[CheckResult]:
    from service.config import unknown_variables

    if unknown := unknown_variables(os.environ):
        note = "no setting has this name, so it has no effect; docs/settings.md lists the settings"
        yield CheckResult("settings", WARNING, f"{', '.join(unknown)}: {note}")


def _check_data_directory(settings: Settings) -> Iterator[CheckResult]:
    home = settings.home.absolute()
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    status = WRONG if free < GIB // 10 else WARNING if free < GIB else OK
    yield CheckResult("disk", status, f"{free / GIB:.1f} GiB free at {existing}")
    if not home.exists():
        writable = os.access(existing, os.W_OK)
        note = "the first start creates it" if writable else f"{existing} is not writable"
        yield CheckResult("data directory", OK if writable else WRONG, f"{home} does not exist; {note}")
        return
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        yield CheckResult("data directory", WRONG, f"{home} is not a readable and writable directory")
        return
    if home.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        yield CheckResult(
            "data directory", WRONG, f"{home} is writable by other users; run chmod go-w {home}"
        )
    else:
        yield CheckResult("data directory", OK, str(home))
    yield _check_admin_key(settings.admin_key_file)


def _check_admin_key(file: Path) -> CheckResult:
    if not file.exists():
        has_key = os.environ.get("TRIVIUM_API_KEY")
        note = "it may be on another machine" if has_key else "set TRIVIUM_API_KEY"
        return CheckResult("admin key", WARNING, f"{file} does not exist; {note}")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return CheckResult("admin key", WRONG, f"{file} has mode {mode:04o}; run chmod 600 {file}")
    return CheckResult("admin key", OK, f"{file}, readable only by its owner")


def _check_database(settings: Settings) -> Iterator[CheckResult]:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    from migrations import HEAD
    from registry import db

    url = make_url(settings.url)
    is_sqlite = url.drivername.startswith("sqlite")
    if is_sqlite:
        yield _check_sqlite_version()
        if not (url.database and Path(url.database).exists()):
            yield CheckResult("database", OK, f"{url.database} does not exist; the first start creates it")
            return
    address = url.render_as_string(hide_password=True)
    try:
        engine = db.connect(settings.url)
        revision = db.schema_revision(engine)
        damage = _find_damage(engine) if is_sqlite else None
        engine.dispose()
    except DBAPIError as error:
        yield CheckResult("database", WRONG, f"{address} does not answer: {one_line(error.orig)}")
        return
    if damage:
        yield CheckResult("database", WRONG, f"{address} is damaged: {damage}; restore a backup")
    elif revision == HEAD:
        yield CheckResult("database", OK, f"{address}, at revision {revision}")
    else:
        remedy = "the next start upgrades it" if is_sqlite else "run trivium migrate"
        current = f"is at revision {revision}" if revision else "is empty"
        status = WARNING if is_sqlite else WRONG
        yield CheckResult("database", status, f"{address} {current}, expected {HEAD}; {remedy}")


def _check_answers(settings: Settings) -> Iterator[CheckResult]:
    """Name the versions and exports that no longer give the answers measured at their build."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    from migrations import HEAD
    from registry import db, verification

    url = make_url(settings.url)
    if url.drivername.startswith("sqlite") and not (url.database and Path(url.database).exists()):
        return
    try:
        engine = db.connect(settings.url)
        if db.schema_revision(engine) != HEAD:
            return
        with db.reading(db.sessions(engine)) as session:
            differing = [
                f"{v.model.name}:{v.number} ({(v.verification or {}).get('reason')})"
                for v in verification.differing(session)
            ]
            exports = [
                f"export {e.id} of {e.version.model.name}:{e.version.number}"
                for e in verification.withdrawn_exports(session)
            ]
        engine.dispose()
    except DBAPIError:  # `_check_database` reports it
        return
    remedy = "publish again, promote another version, or trivium verify MODEL --accept"
    if differing:
        yield CheckResult("answers", WRONG, f"{'; '.join(differing)}: other answers than measured; {remedy}")
    if exports:
        yield CheckResult("exports", WARNING, f"withdrawn from devices: {', '.join(exports)}; export again")
    if not differing and not exports:
        yield CheckResult("answers", OK, "no version is known to answer differently than it was measured")


def _find_damage(engine: Any) -> str | None:
    with engine.connect() as connection:
        result = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    return None if result == "ok" else str(result)


def _check_sqlite_version() -> CheckResult:
    import sqlite3

    from registry.db import WAL_RESET_FIXED

    if sqlite3.sqlite_version_info >= WAL_RESET_FIXED:
        return CheckResult("sqlite", OK, sqlite3.sqlite_version)
    fixed = ".".join(map(str, WAL_RESET_FIXED))
    return CheckResult(
        "sqlite",
        WARNING,
        f"{sqlite3.sqlite_version} has the WAL-reset bug (fixed in {fixed}): two connections that write or "
        "checkpoint while the log is reset can corrupt the database. Trivium lets one process checkpoint at "
        "a time; do not let other programs write to the database",
    )


def _check_server(settings: Settings) -> CheckResult:
    from service.client import ServerRefused, Unreachable

    with connect(timeout_s=5.0, first_patience_s=0.0) as client:
        try:
            checks = client.readiness()
        except Unreachable:
            hint = "start a server with trivium serve"
            return CheckResult("server", WARNING, f"no server answers at {client.url}; {hint}")
        except ServerRefused as error:
            return CheckResult("server", WRONG, f"{client.url} is not ready: {error}")
        failures = "; ".join(f"{check}: {state}" for check, state in checks.items() if state != "ok")
        if failures:
            return CheckResult("server", WRONG, f"{client.url} is not ready: {failures}")
        return CheckResult("server", OK, f"ready at {client.url}")
