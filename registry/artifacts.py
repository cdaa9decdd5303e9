"""Content-addressed blobs: four verbs over local disk.

A blob is named by the sha256 of its bytes. It appears at its final path whole or not at all: written
to a temporary file beside it, hashed on the way, fsynced, renamed, and the directory fsynced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from registry.errors import DigestMismatch, NotFound, TooLarge, invalid_field

CHUNK = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")


class Blob(NamedTuple):
    sha256: str
    bytes: int
    created: bool  # False: it was already there


class Found(NamedTuple):
    sha256: str
    bytes: int
    age_s: float  # since it was last put


def check_sha256(value: str, field: str = "sha256") -> str:
    """`value`, or `Invalid` naming `field`."""
    if SHA256.fullmatch(value) is None:
        raise invalid_field(
            field,
            "not a sha256",
            "64 lower-case hex digits",
            detail=f"{field} must be 64 lower-case hex digits",
        )
    return value


class Writing:
    """A blob on its way in: `write` chunks, then `commit`. Leaving without a commit leaves nothing."""

    def __init__(self, store: Store, most_bytes: int | None = None) -> None:
        self._store = store
        self._most = most_bytes
        self._path = store.incoming / secrets.token_hex(16)
        self._file = self._path.open("xb")
        self._hash = hashlib.sha256()
        self.bytes = 0

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with contextlib.suppress(OSError):  # on a full disk the rest does not fit either
                self._file.close()
        finally:
            self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Raises `TooLarge` beyond the bound."""
        self.bytes += len(chunk)
        if self._most is not None and self.bytes > self._most:
            raise TooLarge(f"the artifact is larger than {self._most} bytes")
        self._hash.update(chunk)
        self._file.write(chunk)

    def commit(self, expected: str | None = None) -> Blob:
        """Put the bytes at their place. Raises `DigestMismatch` when they are not `expected`."""
        digest = self._hash.hexdigest()
        if expected is not None and digest != expected:
            raise DigestMismatch(expected, digest)
        final = self._store._place(digest)
        if self._store.touch(digest):
            fsync_directory(final.parent)  # whoever put it a moment ago may not have come so far
            return Blob(digest, self.bytes, created=False)
        self._file.flush()
        os.fsync(self._file.fileno())
        if not final.parent.exists():
            final.parent.mkdir(exist_ok=True)
            fsync_directory(final.parent.parent)
        self._path.rename(final)
        fsync_directory(final.parent)
        return Blob(digest, self.bytes, created=True)


class Store:
    """The blobs under one directory, spread over 256 subdirectories."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    def writing(self, most_bytes: int | None = None) -> Writing:
        return Writing(self, most_bytes)

    def put(self, chunks: Iterable[bytes], expected: str | None = None) -> Blob:
        """Store the bytes. Raises `DigestMismatch` when their sha256 is not `expected`."""
        with self.writing() as blob:
            for chunk in chunks:
                blob.write(chunk)
            return blob.commit(expected)

    def put_file(self, path: Path) -> Blob:
        with path.open("rb") as file:
            return self.put(iter(lambda: file.read(CHUNK), b""))

    def path(self, sha256: str) -> Path:
        """Where the blob is. Raises `NotFound`."""
        place = self._place(sha256)
        if not place.is_file():
            raise NotFound("artifact", sha256, "upload it with PUT /v1/artifacts/{sha256}")
        return place

    def open(self, sha256: str) -> BinaryIO:
        """Raises `NotFound`."""
        return self.path(sha256).open("rb")

    def delete(self, sha256: str) -> None:
        """Remove the blob; one that is not there is fine."""
        self._place(sha256).unlink(missing_ok=True)

    def expire(self, sha256: str, older_than_s: float) -> bool:
        """Delete the blob, unless it was put again by now: then it stays. True when it is gone.

        It is moved aside before its age is read, so that a `put` either makes it young in time, or misses it
        and writes the bytes anew.
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
        """Start the blob's grace period anew. False when there is no such blob."""
        try:
            os.utime(self._place(sha256))
        except FileNotFoundError:
            return False
        return True

    def __iter__(self) -> Iterator[Found]:
        """Every blob, in no particular order."""
        moment = time.time()
        for place in self.root.glob("[0-9a-f][0-9a-f]/*"):
            if SHA256.fullmatch(place.name) is None:  # no blob: somebody's backup tool, a file manager
                continue
            try:
                found = place.stat()
            except FileNotFoundError:  # collected by another process meanwhile
                continue
            yield Found(place.name, found.st_size, moment - found.st_mtime)

    def sweep(self, older_than_s: float) -> int:
        """Remove what interrupted uploads left behind; the number of files removed."""
        swept = 0
        for file in self.incoming.iterdir():
            try:
                if _age_s(file) > older_than_s:
                    file.unlink()
                    swept += 1
            except FileNotFoundError:  # an upload that has just ended
                continue
        return swept

    def _place(self, sha256: str) -> Path:
        check_sha256(sha256)
        return self.root / sha256[:2] / sha256


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def fsync_directory(path: Path) -> None:
    """Make what was renamed into `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
