"""Input files: on the local disk, or in an object store (extra `object-store`).

Lists the files of a location, opens a file, reads ranges of it, and checks that it did not change. The
caller decides which locations are allowed. Symbolic links inside a directory are never followed.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from registry.errors import Changed, Missing
from registry.names import is_hidden_file
from service.formats.dataset import InputFile, Keys, check_suffix, invalid_input
from service.formats.key_columns import parse_keys, reject_table_log
from service.runtime.codec.columns import escape_surrogates, show

_BLOB_PATH = re.compile(r"/([0-9a-f]{2})/\1[0-9a-f]{62}$")  # of an artifact, which is named by its digest

_ACCESS_DENIED = {errno.EACCES, errno.EPERM}
_NOT_FOUND = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}


def list_files(location: str, suffixes: Sequence[str], name: str | None = None) -> list[InputFile]:
    """Return the file at `location`, or all files of the directory at `location`, sorted by path.

    Directories in it must be named by columns (`key_columns`). Files whose names start with `.` or `_` are
    ignored. Raises `Missing` if there is no file, and `Invalid` if there is another directory or a file
    without one of `suffixes`, so that no data is lost silently.

    `name` replaces the name of a single file in messages.
    """
    if _is_remote(location):
        objects: list[InputFile] = _object_store().list_objects(location, suffixes)
        return objects
    path = Path(location)
    try:
        if not path.is_dir():
            return [_local_file(path, name or path.name)]
        files = list(_walk(path, (), path.name, suffixes))
    except OSError as error:
        raise invalid_input(f"the input {path.name!r} cannot be read: {error.strerror}") from error
    if not files:
        message = f"the directory {path.name!r} contains no files that end with {', '.join(suffixes)}"
        raise Missing(message, "input")
    return files


def _walk(
    directory: Path, parents: tuple[str, ...], root: str, suffixes: Sequence[str]
) -> Iterator[InputFile]:
    """Yield the files below `directory`, sorted by name. `parents`: its path within the input, `root`."""
    keys = parse_keys(parents)
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        reject_table_log(entry.name, root)
        if is_hidden_file(entry.name):
            continue
        if escape_surrogates(entry.name) != entry.name:
            kind = "directory" if entry.is_dir() else "file"
            raise invalid_input(
                f"the input contains a {kind} whose name is not valid UTF-8, {show(entry.name)}; rename it"
            )
        if entry.is_dir():
            if entry.is_symlink():
                raise invalid_input(f"the input contains {entry.name!r}, a link to a directory; copy it")
            yield from _walk(Path(entry.path), (*parents, entry.name), root, suffixes)
        else:
            check_suffix(entry.name, root, suffixes)
            yield _local_file(Path(entry.path), "/".join((*parents, entry.name)), keys)


def _is_remote(location: str) -> bool:
    return "://" in location


def _object_store() -> Any:
    # imported on demand: the extra `object-store` is optional
    from service.formats import object_store

    return object_store


def _local_file(path: Path, name: str, keys: Keys = ()) -> InputFile:
    status = path.stat(follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise invalid_input(f"the input {name!r} is not a regular file")
    return InputFile(str(path), name, status.st_size, _fingerprint(path, status), keys)


def _fingerprint(path: Path, status: os.stat_result) -> str:
    if _BLOB_PATH.search(path.as_posix()):
        return str(status.st_size)  # a blob never changes, but uploading it again updates its mtime
    return f"{status.st_size}-{status.st_mtime_ns}"


class _LocalFile:
    """A local file open for reading ranges."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        # O_NONBLOCK: if a pipe replaced the file, opening it would block forever
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._handle = os.open(file.location, flags)
        except OSError as error:
            if error.errno in _NOT_FOUND:
                raise Changed(file.name, "it is gone") from error
            if error.errno in _ACCESS_DENIED:
                raise invalid_input(f"{file.name!r} cannot be read: {error.strerror}", "input.uri") from error
            raise

    def check_unchanged(self) -> None:
        if _fingerprint(Path(self._file.location), os.fstat(self._handle)) != self._file.fingerprint:
            raise Changed(self._file.name, "it was written to")

    def read_at(self, start: int, size: int) -> bytes:
        return os.pread(self._handle, size, start)

    def arrow_file(self) -> Any:
        """Open the same file for pyarrow. The path may refer to another file by now, the handle cannot."""
        return pa.OSFile(f"/dev/fd/{self._handle}")

    def close(self) -> None:
        os.close(self._handle)


class OpenedFile:
    """An input file open for reading at several positions.

    Raises `Changed` if the file is not the planned one. Call `check_unchanged` again after the last read,
    because a file may change while it is read.
    """

    def __init__(self, file: InputFile) -> None:
        self.file = file
        self.remote = _is_remote(file.location)
        self._source = _object_store().StoredObject(file) if self.remote else _LocalFile(file)
        try:
            self.check_unchanged()
        except Exception:
            self._source.close()
            raise

    def __enter__(self) -> OpenedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    def check_unchanged(self) -> None:
        self._source.check_unchanged()

    def read_at(self, start: int, size: int) -> bytes:
        """Read `size` bytes from `start` on, fewer only at the end of the file. Thread-safe."""
        data: bytes = self._source.read_at(start, size)
        return data

    def arrow_file(self) -> Any:
        """Return the file for pyarrow's readers.

        For local files pyarrow reads without Python code, so that lanes do not wait for the GIL.
        """
        return pa.PythonFile(FileStream(self), mode="r") if self.remote else self._source.arrow_file()


class FileStream(io.RawIOBase):
    """A stream over an opened file. Closing the stream does not close the file."""

    def __init__(self, opened: OpenedFile, position: int = 0) -> None:
        self._opened = opened
        self._position = position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._opened.file.bytes}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        size = self._opened.file.bytes if size is None or size < 0 else size
        data = self._opened.read_at(self._position, size)
        self._position += len(data)
        return data
