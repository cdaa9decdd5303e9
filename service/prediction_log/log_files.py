"""Layout of prediction logs on disk.

    predictions/MODEL.ID/VERSION/FIRST-LAST.LEVEL.WRITER.parquet

FIRST and LAST are the times of a file's first and last row; its rows are in the order of time. LEVEL is 0 for
the files of recorders; merging files of one level gives a file of the next. The model's id is part of its
directory, because a name can be used again after a deletion. A file is complete at its path or absent. Each
process writes files of its own, so writers need no lock.

A merged file replaces its sources in three steps: a journal that names the sources is written, the merged
file gets its name, the sources are deleted. From the second step on, `list_files` ignores the sources, so a
row is listed once whenever a process dies. The exclusive lock of the model keeps these steps and a listing
apart.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from registry.artifacts import create_directory, fsync_directory, write_durably

_TIME = "%Y%m%dT%H%M%S%fZ"
_NAME = re.compile(r"(\d{8}T\d{12}Z)-(\d{8}T\d{12}Z)\.(\d+)\.[0-9a-f]+-[0-9a-f]+\.parquet")
_PARTIAL, _JOURNAL = ".partial", ".replaces"
_LOCK, _MAINTENANCE_LOCK = ".lock", ".maintenance.lock"


class LogFile(NamedTuple):
    """One file: its path, the times of its first and last row, and how often its rows were merged."""

    path: Path
    first: datetime
    last: datetime
    level: int


def model_directory(root: Path, name: str, model_id: int) -> Path:
    return root / f"{name}.{model_id}"


def model_id_of(directory: Path) -> int | None:
    """Return the id of the model of a directory in `root`, None for a directory that is not a log."""
    _, _, model_id = directory.name.rpartition(".")
    return int(model_id) if model_id.isdecimal() else None


def version_directories(directory: Path) -> dict[int, Path]:
    """Return the directories of the versions of a model's log, by version number."""
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return {}
    return {int(name): directory / name for name in sorted(names) if name.isdecimal()}


def file_path(directory: Path, first: datetime, last: datetime, level: int, writer: str) -> Path:
    """Return the path of a new file. `writer`: `<hex>-<hex>`, unique for each file."""
    times = "-".join(moment.astimezone(UTC).strftime(_TIME) for moment in (first, last))
    return directory / f"{times}.{level}.{writer}.parquet"


def list_files(directory: Path) -> list[LogFile]:
    """Return the files of a version in the order of their first rows. The caller holds the model's lock."""
    try:
        names = {path.name for path in directory.iterdir()}
    except FileNotFoundError:
        return []
    for journal in [name for name in names if name.endswith(_JOURNAL)]:
        if journal[1 : -len(_JOURNAL)] in names:  # its file replaces the sources
            names -= set(_read_journal(directory / journal))
    files = [_log_file(directory / name) for name in names]
    return sorted(file for file in files if file is not None)


def _log_file(path: Path) -> LogFile | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    first, last = (datetime.strptime(text, _TIME).replace(tzinfo=UTC) for text in match.group(1, 2))
    return LogFile(path, first, last, int(match[3]))


@contextmanager
def locked(directory: Path, *, shared: bool) -> Iterator[None]:
    """Hold the lock of a model's log: shared to list files, exclusive to replace them.

    Raises `FileNotFoundError` if the log does not exist.
    """
    with (directory / _LOCK).open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


@contextmanager
def maintaining(directory: Path) -> Iterator[bool]:
    """Yield whether this process may maintain a model's log now; no other process does meanwhile."""
    with (directory / _MAINTENANCE_LOCK).open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that appears at `path`, synced to disk, when the block ends without an exception."""
    create_directory(path.parent, 0o700)
    with _partial_file(path, lambda partial: partial.rename(path)) as file:
        yield file
    fsync_directory(path.parent)


@contextmanager
def replacing(path: Path, sources: Sequence[Path]) -> Iterator[BinaryIO]:
    """As `new_file`, but the file also replaces `sources`, which are in the same directory."""
    journal = path.with_name(f".{path.name}{_JOURNAL}")

    def replace(partial: Path) -> None:
        with locked(path.parent.parent, shared=False):
            names = msgspec.json.encode([source.name for source in sources])
            write_durably(journal, names, path.with_name(f".{path.name}.journal{_PARTIAL}"))
            partial.rename(path)
            fsync_directory(path.parent)
            _finish(journal)

    with _partial_file(path, replace) as file:
        yield file


@contextmanager
def _partial_file(path: Path, publish: Callable[[Path], object]) -> Iterator[BinaryIO]:
    """Yield a file beside `path`, and pass its path to `publish` once it is synced; delete it on an error."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def finish_replacements(directory: Path) -> None:
    """Complete or undo the replacements that a killed process left in the directory of a version."""
    with locked(directory.parent, shared=False):
        for journal in directory.glob(f".*{_JOURNAL}"):
            _finish(journal)


def _finish(journal: Path) -> None:
    """Delete the sources of a merged file that has its name, then the journal."""
    directory = journal.parent
    if (directory / journal.name[1 : -len(_JOURNAL)]).exists():
        for source in _read_journal(journal):
            (directory / source).unlink(missing_ok=True)
        fsync_directory(directory)  # the journal must not disappear before the sources
    journal.unlink()


def _read_journal(journal: Path) -> list[str]:
    return msgspec.json.decode(journal.read_bytes(), type=list[str])


def delete_partial_files(directory: Path, older_than_s: float) -> None:
    """Delete unfinished files that killed processes left in the directory of a version."""
    for partial in directory.glob(f".*{_PARTIAL}"):
        try:
            if time.time() - partial.stat().st_mtime > older_than_s:
                partial.unlink()
        except FileNotFoundError:  # finished meanwhile
            continue


def delete_log(directory: Path) -> None:
    """Delete the log of a model. Files that a recorder writes meanwhile may stay: call it again."""
    shutil.rmtree(directory, ignore_errors=True)
