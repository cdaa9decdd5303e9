"""Content-addressed blob storage on local disk: put, open, delete, list.

A blob is named by the sha256 of its bytes. It is complete at its final path or absent: it is written to a
temporary file, hashed while it is written, fsynced and renamed; then the directory is fsynced.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from registry.errors import Damaged, DigestMismatch, NotFound, TooLarge, invalid_field

CHUNK_BYTES = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")


class Blob(NamedTuple):
    sha256: str
    bytes: int
    created: bool  # False: the blob existed already


class StoredBlob(NamedTuple):
    sha256: str
    bytes: int
    age_s: float  # since it was last put


def check_sha256(value: str, field: str = "sha256") -> str:
    """Return `value`. Raises `Invalid` with `field` if it is not a sha256."""
    if SHA256.fullmatch(value) is None:
        expected = "64 lower-case hex digits"
        raise invalid_field(field, "not a sha256", expected, detail=f"{field} must be {expected}")
    return value


class BlobWriter:
    """Writes one blob: `write` chunks, then `commit`. Without a commit, nothing is stored."""

    def __init__(self, store: Store, max_bytes: int | None = None) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._path = store.incoming / secrets.token_hex(16)
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self.bytes = 0

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(OSError):  # on a full disk, flushing the buffer fails too
                self._file.close()
        finally:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Raises `TooLarge` if the blob exceeds its maximum size."""
        self.bytes += len(chunk)
        if self._max_bytes is not None and self.bytes > self._max_bytes:
            raise TooLarge(f"the artifact is larger than {self._max_bytes} bytes")
        self._hash.update(chunk)
        self._file.write(chunk)

    def commit(self, expected: str | None = None) -> Blob:
        """Move the blob to its final path. Raises `DigestMismatch` if its sha256 is not `expected`.

        A stored blob whose bytes differ is damaged, and is replaced.
        """
        digest = self._hash.hexdigest()
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        final = self._store._place(digest)
        self._file.flush()
        if self._store.touch(digest) and _has_bytes_of(final, self._path):
            fsync_directory(final.parent)  # another writer may have renamed it without this fsync yet
            return Blob(digest, self.bytes, created=False)
        os.fsync(self._file.fileno())
        self._store._require_directory(final.parent)
        self._path.rename(final)
        fsync_directory(final.parent)
        return Blob(digest, self.bytes, created=True)


class Store:
    """The blobs below one directory, in 256 subdirectories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self._durable_directories: set[Path] = set()
        self._verified: dict[str, tuple[int, int]] = {}  # inode and size of blobs whose digest was right
        create_directory(root)
        self.incoming.mkdir(exist_ok=True, mode=0o700)

    def writer(self, max_bytes: int | None = None) -> BlobWriter:
        return BlobWriter(self, max_bytes)

    def put(self, chunks: Iterable[bytes], expected: str | None = None) -> Blob:
        """Store the bytes. Raises `DigestMismatch` if their sha256 is not `expected`."""
        with self.writer() as blob:
            for chunk in chunks:
                blob.write(chunk)
            return blob.commit(expected)

    def put_file(self, path: Path) -> Blob:
        with path.open("rb") as file:
            return self.put(iter(lambda: file.read(CHUNK_BYTES), b""))

    def path(self, sha256: str, size: int | None = None) -> Path:
        """Return the path of the blob. Raises `NotFound`, `Damaged` if it does not have `size` bytes."""
        place = self._place(sha256)
        if not place.is_file():
            raise NotFound("artifact", sha256, "upload it with PUT /v1/artifacts/{sha256}")
        if size is not None and (actual := place.stat().st_size) != size:
            raise Damaged(sha256, actual)
        return place

    def verified_path(self, sha256: str) -> Path:
        """Return the path of the blob. Raises `NotFound`, `Damaged` if its bytes have another sha256.

        Reads the whole blob when this process uses it for the first time, and when its file was replaced or
        changed its size.
        """
        place = self.path(sha256)
        with place.open("rb") as file:
            status = os.fstat(file.fileno())
            identity = (status.st_ino, status.st_size)
            if self._verified.get(sha256) != identity:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise Damaged(sha256, status.st_size)
                self._verified[sha256] = identity
        return place

    def open(self, sha256: str) -> BinaryIO:
        """Raises `NotFound`."""
        return self.path(sha256).open("rb")

    def delete(self, sha256: str) -> None:
        """Delete the blob if it exists."""
        self._place(sha256).unlink(missing_ok=True)

    def delete_if_older(self, sha256: str, older_than_s: float) -> bool:
        """Delete the blob if it was last put more than `older_than_s` seconds ago. Return True if so.

        The blob is moved aside before its age is read: a concurrent `put` either updates its age before the
        move, or does not see it and writes the bytes again.
        """
        place, aside = self._place(sha256), self.incoming / secrets.token_hex(16)
        try:
            place.rename(aside)
        except FileNotFoundError:
            return False
        if _age_s(aside) <= older_than_s:
            aside.rename(place)
            return False
        aside.unlink()
        return True

    def touch(self, sha256: str) -> bool:
        """Reset the age of the blob. Return False if it does not exist."""
        try:
            os.utime(self._place(sha256))
        except FileNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[StoredBlob]:
        """Yield every blob, in no particular order."""
        moment = time.time()
        for place in self.root.glob("[0-9a-f][0-9a-f]/*"):
            if SHA256.fullmatch(place.name) is None:  # not a blob: a file of a backup tool or file manager
                continue
            try:
                status = place.stat()
            except FileNotFoundError:  # deleted by another process meanwhile
                continue
            yield StoredBlob(place.name, status.st_size, moment - status.st_mtime)

    def sweep(self, older_than_s: float) -> int:
        """Delete files of interrupted uploads, and return their number."""
        deleted = 0
        for file in self.incoming.iterdir():
            try:
                if _age_s(file) > older_than_s:
                    file.unlink()
                    deleted += 1
            except FileNotFoundError:  # an upload that ended meanwhile
                continue
        return deleted

    def _place(self, sha256: str) -> Path:
        check_sha256(sha256)
        return self.root / sha256[:2] / sha256

    def _require_directory(self, directory: Path) -> None:
        """Create a directory of blobs if it does not exist, and make it survive a power failure."""
        directory.mkdir(exist_ok=True)
        if directory not in self._durable_directories:  # its creator may not have done this fsync yet
            fsync_directory(self.root)
            self._durable_directories.add(directory)


def _has_bytes_of(path: Path, other: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # deleted by garbage collection meanwhile
        return filecmp.cmp(path, other, shallow=False)
    return False


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def fsync_directory(path: Path) -> None:
    """Make renames into the directory `path` survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def create_directory(path: Path, mode: int = 0o777) -> None:
    """Create the directory `path` and its missing parents, and make them survive a power failure."""
    if path.is_dir():
        return
    create_directory(path.parent)
    path.mkdir(mode, exist_ok=True)
    fsync_directory(path.parent)


def write_durably(path: Path, content: bytes, partial: Path, mode: int = 0o666) -> None:
    """Write the whole file or nothing. It survives a power failure.

    `partial` is a path in the same directory for the unfinished file; an existing one is replaced. `mode` are
    the permissions of the file, set before it has content.
    """
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    fsync_directory(path.parent)
