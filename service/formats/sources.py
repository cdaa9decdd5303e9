"""Where input files are: local paths, and objects in a store (extra `object-store`).

Four verbs: list the files of a location, open one, read its size, tell whether it changed. Which
locations are allowed is not decided here; a link inside a directory is never followed.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from registry.errors import Changed, Missing
from service.formats.dataset import File, check_kind, refuse
from service.runtime.codec.columns import clean, show

_BLOB = re.compile(r"/([0-9a-f]{2})/\1[0-9a-f]{62}$")  # of an artifact: its name is its bytes' digest

_CLOSED = {errno.EACCES, errno.EPERM}
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}


def listed(location: str, suffixes: Sequence[str]) -> list[File]:
    """The file at `location`, or the files with one of `suffixes` in the directory there, by name.

    Hidden files and those that begin with `_` are no part of the data. Raises `Missing` when there is none,
    `Invalid` when something else is there, a directory or a file of another kind: what is in it would be
    lost.
    """
    if _is_remote(location):
        found: list[File] = _objects().listed(location, suffixes)
        return found
    path = Path(location)
    try:
        if not path.is_dir():
            return [_file(path)]
        entries = sorted(e for e in path.iterdir() if not e.name.startswith((".", "_")))
    except OSError as error:
        raise refuse(f"the input {path.name!r} cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            raise refuse(f"the input has a directory in it, {entry.name!r}; name one without")
    if not entries:
        ends = ", ".join(suffixes)
        raise Missing(f"there are no files in {path.name!r} whose names end with {ends}", "input")
    for entry in entries:
        if clean(entry.name) != entry.name:
            raise refuse(f"the input has a file whose name is no UTF-8, {show(entry.name)}; rename it")
        check_kind(entry.name, path.name, suffixes)
    return [_file(e) for e in entries]


def _is_remote(location: str) -> bool:
    return "://" in location


def _objects() -> Any:
    # the extra `object-store`
    from service.formats import object_store

    return object_store


def _file(path: Path) -> File:
    state = path.stat(follow_symlinks=False)
    if not stat.S_ISREG(state.st_mode):
        raise refuse(f"the input {path.name!r} is no regular file")
    return File(str(path), path.name, state.st_size, _fingerprint(path, state))


def _fingerprint(path: Path, state: os.stat_result) -> str:
    if _BLOB.search(path.as_posix()):
        return str(state.st_size)  # its bytes never change, but each upload of them renews its date
    return f"{state.st_size}-{state.st_mtime_ns}"


class _Path:
    """A local file that is read in ranges."""

    def __init__(self, file: File) -> None:
        self._file = file
        # O_NONBLOCK: a pipe that took the file's place would block for ever
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._handle = os.open(file.location, flags)
        except OSError as error:
            if error.errno in _GONE:
                raise Changed(file.name, "it is gone") from error
            if error.errno in _CLOSED:
                raise refuse(f"{file.name!r} cannot be read: {error.strerror}", "input.uri") from error
            raise

    def check(self) -> None:
        if _fingerprint(Path(self._file.location), os.fstat(self._handle)) != self._file.fingerprint:
            raise Changed(self._file.name, "it was written to")

    def read_at(self, start: int, size: int) -> bytes:
        return os.pread(self._handle, size, start)

    def native(self) -> Any:
        """The same file, opened once more: whatever its path has become."""
        return pa.OSFile(f"/dev/fd/{self._handle}")

    def close(self) -> None:
        os.close(self._handle)


class Opened:
    """A file open for reading from several places; raises `Changed` when it is not the one that was
    planned. `check` again after the last byte: a file may change under its reader."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.remote = _is_remote(file.location)
        self._source = _objects().Source(file) if self.remote else _Path(file)
        try:
            self.check()
        except Exception:
            self._source.close()
            raise

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def check(self) -> None:
        self._source.check()

    def read_at(self, start: int, size: int) -> bytes:
        """At most `size` bytes from `start` on, fewer at the end only; safe to call from several threads."""
        data: bytes = self._source.read_at(start, size)
        return data

    def for_arrow(self) -> Any:
        """The whole file as pyarrow reads it. A local one without Python, for which its lanes would
        wait in turn."""
        return pa.PythonFile(Stream(self), mode="r") if self.remote else self._source.native()


class Stream(io.RawIOBase):
    """An opened file from a place on, as Python and pyarrow read files; closing it leaves the file open."""

    def __init__(self, opened: Opened, position: int = 0) -> None:
        self._opened = opened
        self._position = position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._opened.file.bytes}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        size = self._opened.file.bytes if size is None or size < 0 else size
        data = self._opened.read_at(self._position, size)
        self._position += len(data)
        return data
