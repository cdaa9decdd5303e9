"""Input files in object stores (s3://, gs://, az://), read with obstore (extra `object-store`).

Credentials, region and endpoint come from the environment variables of the store's own tools. Every read
names the object's ETag, so that a store never returns bytes of another version of the object.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from registry.errors import Changed, Missing, Unavailable
from service.formats.dataset import InputFile, check_suffix, invalid_input

RETRY_TIMEOUT_S = 30
"""Time limit for the retries of a request. A request waits in one of the server's 40 threads or in a worker's
lane, so it must not wait forever for a store that accepts connections and never responds."""

try:
    import obstore
    from obstore.exceptions import BaseError, PreconditionError
    from obstore.store import from_url
except ImportError as error:
    raise invalid_input(
        "reading from an object store needs the package obstore; the operator installs it with: "
        "uv pip install --python .venv/bin/python --constraint requirements-dev.txt obstore"
    ) from error


def list_objects(location: str, suffixes: Sequence[str]) -> list[InputFile]:
    """Return the object at `location`, or the objects directly below it, sorted by name.

    Raises the same errors as `sources.list_files`, and `Unavailable` if the store does not respond.
    """
    store, path = _store(location), _path(location)
    try:
        if path and not path.endswith("/"):
            try:
                return [_input_file(location, obstore.head(store, path))]
            except FileNotFoundError:
                path += "/"
        listing = obstore.list_with_delimiter(store, path or None)
    except BaseError as error:
        raise _unavailable(location, error) from error
    base = location.rstrip("/")
    directories = [prefix.rstrip("/").rpartition("/")[2] for prefix in listing["common_prefixes"]]
    if nested := [name for name in directories if not name.startswith((".", "_"))]:
        raise invalid_input(
            f"the input contains a directory, {nested[0]!r}; choose an input without directories"
        )
    files = [_input_file(f"{base}/{o['path'].rpartition('/')[2]}", o) for o in listing["objects"]]
    files = [file for file in files if not file.name.startswith((".", "_"))]
    if not files:
        raise Missing(f"no object exists at {location}", "input")
    for file in files:
        check_suffix(file.name, location, suffixes)
    return sorted(files, key=lambda file: file.name)


def _input_file(location: str, meta: Any) -> InputFile:
    if not meta["e_tag"]:
        raise invalid_input(
            f"the store of {location} returns no ETags, so a changed object would not be noticed"
        )
    return InputFile(location, location.rpartition("/")[2], meta["size"], meta["e_tag"])


class StoredObject:
    """An object that is read in ranges."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._store, self._path = _store(file.location), _path(file.location)

    def check_unchanged(self) -> None:
        """Raise `Changed` if the object is not the planned version."""
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
        options: Any = {"range": (start, stop), "if_match": self._file.fingerprint}
        try:
            return bytes(obstore.get(self._store, self._path, options=options).bytes())
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
    return from_url(
        root, retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)}
    )


def _path(location: str) -> str:
    return urlsplit(location).path.lstrip("/")


def _unavailable(location: str, error: Exception) -> Unavailable:
    reason = str(error).partition("\n")[0][:300]
    return Unavailable(f"the object store cannot provide {location}: {reason}")
