"""Location of a job's input: an uploaded artifact, or a path or URI inside the operator's batch roots."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from registry.artifacts import Store
from registry.errors import Invalid, Missing, invalid_field
from registry.media_types import COMPRESSION_SUFFIXES, TYPE_BY_SUFFIX
from registry.names import is_hidden_file
from service.config import Settings

UPLOAD = "upload"
"""Name of an uploaded file in messages if the job has none."""
REMOTE_SCHEMES = ("s3", "gs", "az")


class InputLocation(NamedTuple):
    location: str  # an absolute path, or the URI of an object store
    media_type: str
    name: str | None = None  # of an uploaded file, for messages


def locate_input(settings: Settings, store: Store, input_spec: dict[str, Any]) -> InputLocation:
    """Return the location and the media type of a job's `input`.

    Raises `Invalid` naming the field, and `NotFound` if the artifact's file is missing.
    """
    if input_spec.get("artifact"):
        path = store.path(input_spec["artifact"]).absolute()
        return InputLocation(str(path), input_spec["media_type"], input_spec.get("file_name") or UPLOAD)
    uri = input_spec["uri"]
    location = resolve_in_roots(settings.roots, uri)
    if "://" not in location and not os.path.exists(location):  # noqa: PTH110 - Path.exists raises for NUL
        raise _missing(f"no file or directory exists at {uri}")
    try:
        media_type = input_spec.get("media_type") or media_type_by_name(location)
        is_empty = media_type is None and Path(location).is_dir() and not any(Path(location).iterdir())
    except OSError as error:
        raise invalid_field(
            "input.uri", f"{uri} cannot be read: {error.strerror}", "a readable place"
        ) from error
    if is_empty:
        raise _missing(f"the directory {uri} is empty")
    if media_type is None:
        suffixes = ", ".join(TYPE_BY_SUFFIX)
        message = f"the name of {uri} does not show its media type ({suffixes}): set media_type"
        raise invalid_field("input.media_type", message, suffixes)
    return InputLocation(location, media_type)


def resolve_in_roots(roots: tuple[str, ...], uri: str) -> str:
    """Return the absolute path or object-store URI that `uri` denotes. The file need not exist.

    Raises `Invalid` if it lies outside every root.
    """
    try:
        parsed = urllib.parse.urlsplit(uri)
    except ValueError as error:
        raise invalid_field("input.uri", f"{uri} is not a valid URI: {error}", "a path or a URI") from error
    if parsed.scheme in REMOTE_SCHEMES:
        remote_roots = [r for r in roots if r.partition("://")[0] in REMOTE_SCHEMES]
        if ".." not in urllib.parse.unquote(parsed.path).split("/") and any(
            uri == r or uri.startswith(r.rstrip("/") + "/") for r in remote_roots
        ):
            return uri
        raise _outside(uri, roots)
    if parsed.scheme not in ("", "file") or (
        parsed.scheme == "file" and parsed.netloc not in ("", "localhost")
    ):
        message = f"{uri}: input cannot be read from {parsed.scheme}://{parsed.netloc}"
        raise invalid_field("input.uri", message, "a path, file:///..., s3://, gs:// or az://")
    try:
        path = Path(urllib.parse.unquote(parsed.path, errors="strict") if parsed.scheme else uri)
    except UnicodeDecodeError as error:
        raise invalid_field(
            "input.uri", f"the path of {uri} is not valid UTF-8; rename the file", "UTF-8"
        ) from error
    if not path.is_absolute():
        expected = "an absolute path inside a batch root"
        raise invalid_field("input.uri", f"{uri} is not an absolute path", expected)
    real_path = _follow_links(path, uri)
    if not any(real_path.is_relative_to(Path(r).resolve()) for r in roots if "://" not in r):
        raise _outside(uri, roots)
    return str(real_path)


def media_type_by_name(location: str) -> str | None:
    """Return the media type that a file's suffix denotes; for a directory, that of its first file by name."""
    path = Path(location)
    if "://" not in location and path.is_dir():
        return next(filter(None, map(media_type_by_name, _file_names(path))), None)
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSION_SUFFIXES:
        suffixes.pop()
    return TYPE_BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def _file_names(directory: Path) -> Iterator[str]:
    """Yield the names of the files in a directory, and in directories that are named `column=value`."""
    for _, directories, files in os.walk(directory, onerror=_raise):
        directories[:] = sorted(d for d in directories if "=" in d and not is_hidden_file(d))
        yield from sorted(name for name in files if not is_hidden_file(name))


def _raise(error: OSError) -> None:
    raise error


def _follow_links(path: Path, uri: str) -> Path:
    """Resolve symbolic links: a link inside a root may point outside it."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a cycle of links, or a NUL in the path
        raise invalid_field("input.uri", f"{uri!r} cannot be resolved: {error}", "a path") from error


def _outside(uri: str, roots: tuple[str, ...]) -> Invalid:
    configured = ", ".join(roots) or "none are configured"
    message = (
        f"{uri} is outside the batch roots ({configured}); "
        "the operator configures them in TRIVIUM_BATCH_ROOTS; or upload the file as an artifact"
    )
    return invalid_field("input.uri", message, "a place in a batch root")


def _missing(message: str) -> Missing:
    return Missing(message, "input.uri", "a file or a directory of files")
