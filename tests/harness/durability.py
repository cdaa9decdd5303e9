"""Record in which order this process makes files durable, and commits.

A file survives a power failure when its bytes are fsynced, and then the directory that it was renamed into.
Both have to come before anything acknowledges the file: a commit, a response, the deletion of another copy.

    with recorded() as log:
        store.put([content])
    log.saved(store.path(sha256))  # bytes fsynced, then renamed, then directory fsynced
    assert log.saved(path) < log.committed("versions")

Only calls in this process are recorded. The real functions are called.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest.mock import patch

from sqlalchemy import Engine, event

Observer: TypeAlias = "Callable[[Event], None]"
WRITE_STATEMENT = re.compile(r'\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+"?(\w+)', re.IGNORECASE)
WRITE_MODE = re.compile("[wax+]")


class Event(NamedTuple):
    kind: str
    """fsync, rename (also replace), link, unlink, mkdir, open (for writing) or commit."""
    path: Path
    """Of a rename or link, the new path. Of a commit, the empty path."""
    source: Path | None = None
    """The old path of a rename or link."""
    inode: int = 0
    """Of the file in `path`, except for unlink, mkdir and commit."""
    bytes: int = 0
    """Size of the file at that moment: bytes in a buffer are not part of it."""
    mode: int = 0
    """Permissions of the file at that moment."""
    tables: frozenset[str] = frozenset()
    """Tables that a commit changes."""

    def __str__(self) -> str:
        if self.kind == "commit":
            return f"commit {', '.join(sorted(self.tables))}"
        return f"{self.kind} {self.source or ''}{' -> ' * (self.source is not None)}{self.path}"


class DurabilityLog:
    """The recorded events. The methods return positions in `events`, so that tests can compare them.

    They raise `AssertionError` with all events when a step is missing or comes too early.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __str__(self) -> str:
        return "\n".join(f"{position:4} {event}" for position, event in enumerate(self.events))

    def steps(self, directory: Path, *kinds: str) -> list[str]:
        """Return the events of these kinds (none: all but opens) on paths in `directory`, as short texts.

        Paths are relative to `directory`, for example `fsync .` and `rename a.part -> a`.
        """
        root = _absolute(directory)
        wanted = kinds or ("fsync", "rename", "link", "unlink", "mkdir", "commit")
        return [
            str(e._replace(path=_relative(e.path, root), source=e.source and _relative(e.source, root)))
            for e in self.events
            if e.kind in wanted and (e.kind == "commit" or e.path.is_relative_to(root))
        ]

    def saved(self, path: Path) -> int:
        """Require that `path` is complete and durable, or absent, at every moment.

        Its bytes are fsynced under another name, then it is renamed or linked to `path`, then the directory
        is fsynced. Returns the position of the last step.
        """
        content, entry = self.content_synced(path), self._entry(path)
        assert content < entry, f"{path} is renamed before its bytes are fsynced\n{self}"
        return self.entry_synced(path)

    def synced(self, path: Path) -> int:
        """Require that `path` is complete and durable at the end. Returns the position of the last step."""
        return max(self.content_synced(path), self.entry_synced(path))

    def content_synced(self, path: Path) -> int:
        """Require an fsync of all bytes that `path` has now, under any name. Returns its position."""
        status = path.stat()
        return self._last(
            f"all {status.st_size} bytes of {path} are fsynced",
            lambda e: e.kind == "fsync" and e.inode == status.st_ino and e.bytes == status.st_size,
        )

    def entry_synced(self, path: Path) -> int:
        """Require an fsync of the directory of `path` after `path` appears in it. Returns its position."""
        entry = self._entry(path)
        directory = _absolute(path).parent
        description = f"{directory} is fsynced after {path} appears in it"
        return self._first(description, lambda e: e.kind == "fsync" and e.path == directory, entry)

    def unlink_synced(self, path: Path) -> int:
        """Require the deletion of `path`, then an fsync of its directory. Returns its position."""
        deleted, directory = self.position("unlink", path), _absolute(path).parent
        description = f"{directory} is fsynced after {path} is deleted"
        return self._first(description, lambda e: e.kind == "fsync" and e.path == directory, deleted)

    def committed(self, *tables: str, after: int = -1) -> int:
        """Return the position of the first commit after `after` that changes all of `tables`."""
        description = f"a commit of {' and '.join(tables)}"
        return self._first(description, lambda e: e.kind == "commit" and e.tables >= set(tables), after)

    def position(self, kind: str, path: Path, after: int = -1) -> int:
        """Return the position of the first event of this kind with this path after `after`."""
        wanted = _absolute(path)
        return self._first(f"{kind} of {path}", lambda e: e.kind == kind and e.path == wanted, after)

    def _entry(self, path: Path) -> int:
        wanted, kinds = _absolute(path), ("rename", "link", "mkdir", "open")
        description = f"{path} is renamed, linked or created"
        return self._last(description, lambda e: e.kind in kinds and e.path == wanted)

    def _first(self, description: str, matches: Callable[[Event], bool], after: int = -1) -> int:
        for position, recorded_event in enumerate(self.events):
            if position > after and matches(recorded_event):
                return position
        raise AssertionError(f"missing: {description}\n{self}")

    def _last(self, description: str, matches: Callable[[Event], bool]) -> int:
        for position in reversed(range(len(self.events))):
            if matches(self.events[position]):
                return position
        raise AssertionError(f"missing: {description}\n{self}")


@contextmanager
def recorded(before: Observer = lambda _: None) -> Iterator[DurabilityLog]:
    """Record all file events and commits of this process, in all threads.

    `before` is called with each event before the real function runs: it may look at the files, act as another
    process, or raise `OSError` as a broken disk does. What it does itself is not recorded, and neither is a
    function that raises.
    """
    log = DurabilityLog()
    with _patched(_Calls(log, before)), _recorded_commits(log, before):
        yield log


class _Calls:
    """Wrappers around the functions of `os` and `io`."""

    def __init__(self, log: DurabilityLog, before: Observer) -> None:
        self._log, self._before = log, before
        self._thread = threading.local()

    def fsync(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def fsync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            happened = _described("fsync", _descriptor_path(descriptor), os.fstat(descriptor))
            self._run(happened, lambda: real(descriptor))

        return fsync

    def move(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def move(source: Any, target: Any, **options: Any) -> None:
            old, new = _absolute(source), _absolute(target)
            try:
                happened = _described(kind, new, old.lstat(), old)
            except FileNotFoundError:  # the real function raises it
                happened = Event(kind, new, old)
            self._run(happened, lambda: real(source, target, **options))

        return move

    def change(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(path: Any, *arguments: Any, **options: Any) -> None:
            directory = options.get("dir_fd")  # of shutil.rmtree
            whole = path if directory is None else _descriptor_path(directory) / os.fsdecode(path)
            self._run(Event(kind, _absolute(whole)), lambda: real(path, *arguments, **options))

        return change

    def open_descriptor(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def open_descriptor(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
            descriptor = int(real(path, flags, *arguments, **options))
            if flags & (os.O_WRONLY | os.O_RDWR) and options.get("dir_fd") is None:
                self._add(_described("open", _absolute(path), os.fstat(descriptor)))
            return descriptor

        return open_descriptor

    def open_file(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def open_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            opened = real(file, mode, *arguments, **options)
            if WRITE_MODE.search(mode) and not isinstance(file, int):
                self._add(_described("open", _absolute(file), os.fstat(opened.fileno())))
            return opened

        return open_file

    def _run(self, happened: Event, call: Callable[[], Any]) -> None:
        if not self._is_observing():
            self._thread.observing = True
            try:
                self._before(happened)
            finally:
                self._thread.observing = False
        call()
        self._add(happened)

    def _add(self, happened: Event) -> None:
        if not self._is_observing():
            self._log.events.append(happened)

    def _is_observing(self) -> bool:
        return getattr(self._thread, "observing", False)


@contextmanager
def _patched(calls: _Calls) -> Iterator[None]:
    with (
        patch.object(os, "fsync", calls.fsync(os.fsync)),
        patch.object(os, "rename", calls.move("rename", os.rename)),
        patch.object(os, "replace", calls.move("rename", os.replace)),
        patch.object(os, "link", calls.move("link", os.link)),
        patch.object(os, "unlink", calls.change("unlink", os.unlink)),
        patch.object(os, "remove", calls.change("unlink", os.remove)),
        patch.object(os, "rmdir", calls.change("unlink", os.rmdir)),
        patch.object(os, "mkdir", calls.change("mkdir", os.mkdir)),
        patch.object(os, "open", calls.open_descriptor(os.open)),
        patch.object(io, "open", opened := calls.open_file(io.open)),  # of pathlib
        patch.object(builtins, "open", opened),
    ):
        yield


@contextmanager
def _recorded_commits(log: DurabilityLog, before: Observer) -> Iterator[None]:
    def collect(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if written := WRITE_STATEMENT.match(statement):
            connection.info.setdefault(_recorded_commits, set()).add(written[1])

    def commit(connection: Any) -> None:
        if tables := connection.info.pop(_recorded_commits, None):
            happened = Event("commit", Path(), tables=frozenset(tables))
            before(happened)
            log.events.append(happened)

    def roll_back(connection: Any) -> None:
        connection.info.pop(_recorded_commits, None)

    listeners = (("before_cursor_execute", collect), ("commit", commit), ("rollback", roll_back))
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)


def _described(kind: str, path: Path, status: os.stat_result, source: Path | None = None) -> Event:
    permissions = stat.S_IMODE(status.st_mode)
    return Event(kind, path, source, status.st_ino, status.st_size, permissions)


def _descriptor_path(descriptor: int) -> Path:
    if sys.platform == "darwin":
        import fcntl

        return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _absolute(path: Any) -> Path:
    """Return the path with its directory resolved, as the kernel reports it for a descriptor."""
    whole = Path(os.fsdecode(path))
    return Path(os.path.realpath(whole.parent)) / whole.name


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
