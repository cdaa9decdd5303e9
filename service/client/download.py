"""Downloads of large files: streamed, resumed after a broken connection, verified by sha256.

Only one block is in memory, and no byte is downloaded twice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from registry.artifacts import fsync_directory
from service.client.client_errors import ServerRefused, Unreachable, WrongBytes, is_temporary
from service.client.http import Client

MAX_SILENCE_S = 60.0
"""A download fails when no byte has arrived for this long."""
PAUSES_S = (0.1, 2.0)
"""First and longest pause before a reconnect."""
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):")


class RemoteFile(NamedTuple):
    """A file on the server: its URL, digest, size in bytes and ETag."""

    url: str
    sha256: str
    bytes: int
    etag: str


def head(client: Client, url: str) -> RemoteFile:
    """Return the file at `url`. Raises as `Client.send`, and `OSError` when the response lacks a digest."""
    try:
        headers = client.send("HEAD", url, headers={"Accept-Encoding": "identity"}).headers
    except ServerRefused:
        client.send("GET", url)  # raises with the reason, which a response to HEAD cannot contain
        raise
    digest = _DIGEST.search(headers.get("Repr-Digest", ""))
    if digest is None or "ETag" not in headers:
        raise OSError(f"the response for {url} has no sha-256 digest, so the download cannot be verified")
    try:
        sha256 = base64.b64decode(digest[1], validate=True).hex()
    except binascii.Error as error:
        raise OSError(f"the response for {url} has an invalid sha-256 digest: {digest[1]}") from error
    return RemoteFile(url, sha256, int(headers["Content-Length"]), headers["ETag"])


def blocks(client: Client, remote: RemoteFile, start: int = 0) -> Iterator[bytes]:
    """Yield the file's bytes from offset `start`, over as many connections as needed. They are not verified.

    Raises `Unreachable` when nothing came for `MAX_SILENCE_S`, `ServerRefused` (412) when the file was
    replaced, and `WrongBytes` when the server does not support ranges.
    """
    deadline, (pause, max_pause) = time.monotonic() + MAX_SILENCE_S, PAUSES_S
    while start < remote.bytes:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-", "If-Match": remote.etag}
        try:
            with client.stream(remote.url, headers=headers) as response:
                if start and response.status_code != 206:
                    raise WrongBytes(remote.url, remote.sha256)
                for block in response.iter_bytes():
                    start += len(block)
                    yield block
                    deadline, pause = time.monotonic() + MAX_SILENCE_S, PAUSES_S[0]
            if start < remote.bytes:
                raise Unreachable(remote.url, "the response ended early")
        except (ServerRefused, Unreachable) as error:
            if not is_temporary(error) or time.monotonic() > deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, max_pause)


def verified_blocks(client: Client, remote: RemoteFile) -> Iterator[bytes]:
    """Yield the file's bytes. Raises as `blocks`, and `WrongBytes` after the last block."""
    digest = hashlib.sha256()
    for block in blocks(client, remote):
        digest.update(block)
        yield block
    if digest.hexdigest() != remote.sha256:
        raise WrongBytes(remote.url, remote.sha256)


def save(
    client: Client,
    url: str,
    file: Path,
    progress: Callable[[int, int], None] = lambda received, total: None,
) -> RemoteFile:
    """Download `url` to `file`, which appears only when it is complete and verified.

    Until then it is `file.<digest>.part`, and a later call continues it. `progress` gets the bytes received
    and the total. Raises as `head` and `blocks`, `WrongBytes` when the digest differs, and `OSError` of the
    disk.
    """
    remote = head(client, url)
    part = file.with_name(f"{file.name}.{remote.sha256[:8]}.part")
    with part.open("a+b") as out:
        out.seek(0)
        digest = hashlib.file_digest(out, "sha256")  # of the bytes of an earlier call
        received = out.tell()
        for block in blocks(client, remote, received):
            out.write(block)
            digest.update(block)
            received += len(block)
            progress(received, remote.bytes)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != remote.sha256:
        part.unlink()
        raise WrongBytes(file, remote.sha256)
    part.replace(file)
    fsync_directory(file.parent)
    return remote
