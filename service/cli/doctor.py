"""`trivium doctor`: what this installation is made of, and what is wrong with it. Changes nothing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from typer import Exit, echo, style

from service.cli.error_messages import one_line
from service.cli.shared import Json, connect, emit, read_settings

if TYPE_CHECKING:
    from service.config import Settings

OK, WARNING, WRONG = "ok", "warning", "wrong"
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
    "scikit-learn",
    "skl2onnx",
    "joblib",
)
GIB = 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at. `warning`: it works, and somebody should know; `wrong`: it does not work."""

    check: str
    status: str
    detail: str


def doctor(json: Json = False) -> None:
    """Say versions, disk, database and server, and what is wrong.

    Exit code 1 when something is wrong; warnings alone leave it 0.
    """
    settings = read_settings()
    found = [*_versions(), *_data_directory(settings), *_database(settings), _server(settings)]
    wrong = [finding for finding in found if finding.status == WRONG]
    emit(json, {"ok": not wrong, "checks": found}, lambda: _show(found))
    if wrong:
        raise Exit(1)


def _show(found: list[Finding]) -> None:
    colours = {OK: "green", WARNING: "yellow", WRONG: "red"}
    for finding in found:
        echo(f"{style(finding.status.ljust(8), colours[finding.status])} {finding.check}: {finding.detail}")


def _versions() -> Iterator[Finding]:
    # Read from the packages' metadata: importing them would take seconds, and fail where they are broken.
    from importlib.metadata import PackageNotFoundError, version
    from platform import machine, python_version, system

    yield Finding("trivium", OK, f"{version('trivium')} on Python {python_version()}, {system()} {machine()}")
    there, missing = [], []
    for library in LIBRARIES:
        try:
            there.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            missing.append(library)
    if missing:
        yield Finding("libraries", WRONG, f"not installed: {', '.join(missing)}; run scripts/setup")
    yield Finding("libraries", OK, ", ".join(there))


def _data_directory(settings: Settings) -> Iterator[Finding]:
    home = settings.home.absolute()
    there = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(there).free
    status = WRONG if free < GIB // 10 else WARNING if free < GIB else OK
    yield Finding("disk", status, f"{free / GIB:.1f} GiB free at {there}")
    if not home.exists():
        able = os.access(there, os.W_OK)
        then = "the first start makes it" if able else f"{there} is not writable"
        yield Finding("data directory", OK if able else WRONG, f"{home} is not there yet; {then}")
        return
    if not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("data directory", WRONG, f"{home} is no directory that you can read and write")
        return
    open_to_others = home.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    hint = f"{home} is writable by others; run chmod go-w {home}"
    yield Finding("data directory", WRONG if open_to_others else OK, hint if open_to_others else str(home))
    yield _admin_key(settings.admin_key_file)


def _admin_key(file: Path) -> Finding:
    if not file.exists():
        how = "another machine may hold it" if os.environ.get("TRIVIUM_API_KEY") else "set TRIVIUM_API_KEY"
        return Finding("admin key", WARNING, f"there is no {file}; {how}")
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        return Finding("admin key", WRONG, f"{file} has mode {mode:04o}; run chmod 600 {file}")
    return Finding("admin key", OK, f"{file}, readable by its owner alone")


def _database(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError

    from migrations import HEAD
    from registry import db

    url = make_url(settings.url)
    sqlite = url.drivername.startswith("sqlite")
    if sqlite:
        yield _sqlite_version()
        if not (url.database and Path(url.database).exists()):
            yield Finding("database", OK, f"{url.database} is not there yet; the first start makes it")
            return
    shown = url.render_as_string(hide_password=True)
    try:
        engine = db.connect(settings.url)
        revision = db.schema_revision(engine)
        damage = _damage(engine) if sqlite else None
        engine.dispose()
    except DBAPIError as error:
        yield Finding("database", WRONG, f"{shown} does not answer: {one_line(error.orig)}")
        return
    if damage:
        yield Finding("database", WRONG, f"{shown} is damaged: {damage}; restore a copy")
    elif revision == HEAD:
        yield Finding("database", OK, f"{shown}, at revision {revision}")
    else:
        way_out = "the next start migrates it" if sqlite else "run trivium migrate"
        at = f"is at revision {revision}" if revision else "is empty"
        yield Finding("database", WARNING if sqlite else WRONG, f"{shown} {at}, not {HEAD}; {way_out}")


def _damage(engine: Any) -> str | None:
    with engine.connect() as connection:
        said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    return None if said == "ok" else str(said)


def _sqlite_version() -> Finding:
    import sqlite3

    from registry.db import WAL_RESET_FIXED

    if sqlite3.sqlite_version_info >= WAL_RESET_FIXED:
        return Finding("sqlite", OK, sqlite3.sqlite_version)
    fixed = ".".join(map(str, WAL_RESET_FIXED))
    return Finding(
        "sqlite",
        WARNING,
        f"{sqlite3.sqlite_version} has the WAL-reset bug (fixed in {fixed}): two connections that write or "
        "checkpoint at the instant the log is reset can corrupt it. Trivium lets one process checkpoint at a "
        "time; let no other program write to the database",
    )


def _server(settings: Settings) -> Finding:
    from service.client import ServerRefused, Unreachable

    with connect(timeout_s=5.0) as client:
        try:
            checks = client.readiness()
        except Unreachable:
            return Finding("server", WARNING, f"none answers at {client.url}; start one with trivium serve")
        except ServerRefused as error:
            return Finding("server", WRONG, f"{client.url} is not ready: {error}")
        failing = "; ".join(f"{check}: {found}" for check, found in checks.items() if found != "ok")
        if failing:
            return Finding("server", WRONG, f"{client.url} is not ready: {failing}")
        return Finding("server", OK, f"ready at {client.url}")
