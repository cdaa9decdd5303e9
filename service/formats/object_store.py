"""Input files in object stores (s3://, gs://, az://), read with obstore (extra `object-store`).

Credentials, region and endpoint come from the environment variables of the store's own tools. Every read
names the object's ETag, so that a store never returns bytes of another version of the object.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from registry.errors import Changed, Missing, Unavailable
from registry.names import is_hidden_file
from service.formats.dataset import InputFile, Keys, check_suffix, invalid_input
from service.formats.key_columns import parse_keys, reject_table_log

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
    """Return the object at `location`, or the objects below it, sorted by path.

    Raises the same errors as `sources.list_files`, and `Unavailable` if the store does not respond.
    """
    store, path = _store(location), _path(location)
    try:
        if path and not path.endswith("/"):
            try:
                return [_input_file(location, location.rpartition("/")[2], (), obstore.head(store, path))]
            except FileNotFoundError:
                path += "/"
        files = list(_list_below(store, path, location.rstrip("/"), suffixes))
    except BaseError as error:
        raise _unavailable(location, error) from error
    if not files:
        raise Missing(f"no object exists at {location}", "input")
    return sorted(files, key=lambda file: file.name.split("/"))


def _list_below(store: Any, prefix: str, base: str, suffixes: Sequence[str]) -> Iterator[InputFile]:
    for chunk in obstore.list(store, prefix or None):
        for meta in chunk:
            name = meta["path"].removeprefix(prefix)
            *directories, file_name = name.split("/")
            reject_table_log(name.partition("/")[0], base)
            if any(map(is_hidden_file, (*directories, file_name))) or _is_directory_marker(meta, prefix):
                continue
            keys = parse_keys(directories)
            check_suffix(file_name, base, suffixes)
            yield _input_file(f"{base}/{name}", name, keys, meta)


def _is_directory_marker(meta: Any, prefix: str) -> bool:
    """Whether an object without bytes stands for a directory, as consoles of object stores create it."""
    path: str = meta["path"]
    return meta["size"] == 0 and (path.endswith("/") or f"{path}/" == prefix)


def _input_file(location: str, name: str, keys: Keys, meta: Any) -> InputFile:
    if not meta["e_tag"]:
        raise invalid_input(
            f"the store of {location} returns no ETags, so a changed object would not be noticed"
        )
    return InputFile(location, name, meta["size"], meta["e_tag"], keys)


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
    """Return the object's key. Unlike a URL, an object-store URI has no query, no fragment and no escapes."""
    return location.partition("://")[2].partition("/")[2]


def _unavailable(location: str, error: Exception) -> Unavailable:
    reason = str(error).partition("\n")[0][:300]
    return Unavailable(f"the object store cannot provide {location}: {reason}")
