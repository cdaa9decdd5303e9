"""Where a job's input may be: an uploaded artifact, or a place inside the roots that the operator allowed."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path
from typing import Any, NamedTuple

from registry.artifacts import Store
from registry.errors import Invalid, Missing, invalid_field
from service.config import Settings
from service.formats.media_types import BY_SUFFIX, COMPRESSED

REMOTE = ("s3", "gs", "az")


class Found(NamedTuple):
    location: str  # an absolute path, or the URI of an object store
    media_type: str


def find(settings: Settings, store: Store, given: dict[str, Any]) -> Found:
    """Where a job's `input` is. Raises `Invalid` naming the field, `NotFound` for a lost artifact."""
    if given.get("artifact"):
        return Found(str(store.path(given["artifact"]).absolute()), given["media_type"])
    uri = given["uri"]
    location = inside(settings.roots, uri)
    if "://" not in location and not os.path.exists(location):  # noqa: PTH110, a Path's raises for odd names
        raise _missing(f"there is nothing at {uri}")
    try:
        media_type = given.get("media_type") or by_name(location)
        empty = media_type is None and Path(location).is_dir() and not any(Path(location).iterdir())
    except OSError as error:
        raise _refuse(f"{uri} cannot be read: {error.strerror}", "input.uri", "a readable place") from error
    if media_type is None:
        if empty:
            raise _missing(f"the directory {uri} is empty")
        known = ", ".join(BY_SUFFIX)
        raise _refuse(f"{uri} does not say what is in it by its name ({known})", "input.media_type", known)
    return Found(location, media_type)


def inside(roots: tuple[str, ...], uri: str) -> str:
    """The place that `uri` means, whether there is something or not. Raises `Invalid` when no root has it."""
    try:
        parsed = urllib.parse.urlsplit(uri)
    except ValueError as error:
        raise _refuse(f"{uri} is no URI: {error}", "input.uri", "a path or a URI") from error
    if parsed.scheme in REMOTE:
        allowed = [r for r in roots if r.partition("://")[0] in REMOTE]
        if ".." not in urllib.parse.unquote(parsed.path).split("/") and any(
            uri == r or uri.startswith(r.rstrip("/") + "/") for r in allowed
        ):
            return uri
        raise _outside(uri, roots)
    if parsed.scheme not in ("", "file") or (
        parsed.scheme == "file" and parsed.netloc not in ("", "localhost")
    ):
        message = f"{uri}: there is no reading from {parsed.scheme}://{parsed.netloc}"
        raise _refuse(message, "input.uri", "a path, file:///..., s3://, gs:// or az://")
    path = Path(urllib.parse.unquote(parsed.path) if parsed.scheme else uri)
    if not path.is_absolute():
        raise _refuse(f"{uri} is no absolute path", "input.uri", "an absolute path inside a batch root")
    real = _real(path, uri)
    if not any(real.is_relative_to(Path(r).resolve()) for r in roots if "://" not in r):
        raise _outside(uri, roots)
    return str(real)


def _real(path: Path, uri: str) -> Path:
    """Where it leads: a link may go out of a root."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL in it
        raise _refuse(f"{uri!r} leads nowhere: {error}", "input.uri", "a path") from error


def _outside(uri: str, roots: tuple[str, ...]) -> Invalid:
    how = "the operator allows places with TRIVIUM_BATCH_ROOTS; or upload the file as an artifact"
    known = f"the batch roots are {', '.join(roots)}" if roots else "there are no batch roots"
    return _refuse(f"{uri} is in no batch root ({known}); {how}", "input.uri", "a place in a batch root")


def by_name(location: str) -> str | None:
    """A file's media type by its suffix; a directory's is that of its first file in name order."""
    path = Path(location)
    if "://" not in location and path.is_dir():
        names = sorted(p.name for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "_")))
        kinds = [kind for name in names if (kind := by_name(name)) is not None]
        return kinds[0] if kinds else None
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def _missing(message: str) -> Missing:
    return Missing(message, "input.uri", "a file or a directory of files")


def _refuse(message: str, field: str, expected: str) -> Invalid:
    return invalid_field(field, message, expected)
