"""Objects in a store (s3://, gs://, az://) as input files, by obstore (extra `object-store`).

Credentials, region and endpoint come from the environment, as the store's own tools take them. Every read
names the object's ETag, so that a store never answers with the bytes of another version.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from registry.errors import Changed, Missing, Unavailable
from service.formats.dataset import File, check_kind, refuse

ANSWER_S = 30
"""A store that accepts and never answers is given up after about this, one try of the client's own patience:
it is waited for in a server's thread, of which there are 40, or in a worker's lane."""

try:
    import obstore
    from obstore.exceptions import BaseError, PreconditionError
    from obstore.store import from_url
except ImportError as error:
    raise refuse(
        "reading from an object store needs the extra: pip install 'trivium[object-store]'"
    ) from error


def listed(location: str, suffixes: Sequence[str]) -> list[File]:
    """The object at `location`, or those with one of `suffixes` right below it, by name. Raises what
    `places.listed` does, `Unavailable` when the store does not answer."""
    store, path = _store(location), _path(location)
    try:
        if path and not path.endswith("/"):
            try:
                return [_file(location, obstore.head(store, path))]
            except FileNotFoundError:
                path += "/"
        found = obstore.list_with_delimiter(store, path or None)
    except BaseError as error:
        raise _unavailable(location, error) from error
    base = location.rstrip("/")
    below = [p.rstrip("/").rpartition("/")[2] for p in found["common_prefixes"]]
    if nested := [name for name in below if not name.startswith((".", "_"))]:
        raise refuse(f"the input has a directory in it, {nested[0]!r}; name one without")
    files = [_file(f"{base}/{o['path'].rpartition('/')[2]}", o) for o in found["objects"]]
    files = [f for f in files if not f.name.startswith((".", "_"))]
    if not files:
        raise Missing(f"there is nothing at {location}", "input")
    for file in files:
        check_kind(file.name, location, suffixes)
    return sorted(files, key=lambda f: f.name)


def _file(location: str, meta: Any) -> File:
    if not meta["e_tag"]:
        raise refuse(f"the store of {location} has no ETags; a changed object would not be noticed")
    return File(location, location.rpartition("/")[2], meta["size"], meta["e_tag"])


class Source:
    """An object that is read in ranges."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._store, self._path = _store(file.location), _path(file.location)

    def check(self) -> None:
        """Raises `Changed` when the object is not the one that was planned."""
        try:
            meta = obstore.head(self._store, self._path)
        except FileNotFoundError as error:
            raise Changed(self._file.name, "it is gone") from error
        except BaseError as error:
            raise _unavailable(self._file.location, error) from error
        if meta["e_tag"] != self._file.fingerprint:
            raise Changed(self._file.name, "it was written to")

    def read_at(self, start: int, size: int) -> bytes:
        stop = min(start + size, self._file.bytes)
        if stop <= start:
            return b""
        wanted: Any = {"range": (start, stop), "if_match": self._file.fingerprint}
        try:
            return bytes(obstore.get(self._store, self._path, options=wanted).bytes())
        except (PreconditionError, FileNotFoundError) as error:
            raise Changed(self._file.name, "it was written to, or is gone") from error
        except BaseError as error:
            raise _unavailable(self._file.location, error) from error

    def close(self) -> None:
        pass


def _store(location: str) -> Any:
    parsed = urlsplit(location)
    return _store_of(f"{parsed.scheme}://{parsed.netloc}")


@functools.lru_cache(maxsize=16)
def _store_of(root: str) -> Any:
    return from_url(root, retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=ANSWER_S)})


def _path(location: str) -> str:
    return urlsplit(location).path.lstrip("/")


def _unavailable(location: str, error: Exception) -> Unavailable:
    why = str(error).partition("\n")[0][:300]
    return Unavailable(f"the object store does not give {location}: {why}")
