"""A large file from the server: as it comes, resumed where it broke off, and checked against its sha256.

Nothing of it is in memory but the block at hand, and no byte that arrived is asked for again.
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

from service.client.errors import ServerRefused, Unreachable, WrongBytes, is_away
from service.client.http import Client

LOST_S = 60.0
"""How long a transfer is tried again without a single byte arriving."""
_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/]+=*):")


class Remote(NamedTuple):
    """A file that the server has. Its bytes are those of this digest, or it is another file."""

    url: str
    sha256: str
    bytes: int
    etag: str


def look(client: Client, url: str) -> Remote:
    """What there is at `url`. Raises as `Client.send`, and `OSError` when the answer names no digest."""
    try:
        headers = client.send("HEAD", url, headers={"Accept-Encoding": "identity"}).headers
    except ServerRefused:
        client.send("GET", url)  # refused alike, with the reason: the answer to HEAD has no body
        raise
    found = _DIGEST.search(headers.get("Repr-Digest", ""))
    if found is None or "ETag" not in headers:
        raise OSError(f"the answer for {url} names no digest, so what comes cannot be checked")
    try:
        sha256 = base64.b64decode(found[1], validate=True).hex()
    except binascii.Error as error:
        raise OSError(f"the answer for {url} names a digest that is none: {found[1]}") from error
    return Remote(url, sha256, int(headers["Content-Length"]), headers["ETag"])


def blocks(client: Client, remote: Remote, start: int = 0) -> Iterator[bytes]:
    """The file's bytes from `start`, over as many connections as it takes. They are not checked here.

    Raises `Unreachable` when nothing more came for `LOST_S`, `ServerRefused` (412) when it became another
    file, and `WrongBytes` when the server does not go on in the middle.
    """
    given_up, pause = time.monotonic() + LOST_S, 0.1
    while start < remote.bytes:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-", "If-Match": remote.etag}
        try:
            with client.stream(remote.url, headers=headers) as response:
                if start and response.status_code != 206:
                    raise WrongBytes(remote.url, remote.sha256)
                for block in response.iter_bytes():
                    start += len(block)
                    yield block
                    given_up, pause = time.monotonic() + LOST_S, 0.1
            if start < remote.bytes:
                raise Unreachable(remote.url, "the answer ended early")
        except (ServerRefused, Unreachable) as error:
            if not is_away(error) or time.monotonic() > given_up:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 2.0)


def checked(client: Client, remote: Remote) -> Iterator[bytes]:
    """The file's bytes as they come. Raises as `blocks`, and `WrongBytes` behind the last one."""
    digest = hashlib.sha256()
    for block in blocks(client, remote):
        digest.update(block)
        yield block
    if digest.hexdigest() != remote.sha256:
        raise WrongBytes(remote.url, remote.sha256)


def save(
    client: Client, url: str, file: Path, progress: Callable[[int, int], None] = lambda have, of: None
) -> Remote:
    """The file at `url` as `file`: whole and checked, or not there. `progress` gets bytes had, bytes in all.

    Until then it is `file.<digest>.part`, and a later call goes on from there. Raises as `look` and `blocks`,
    `WrongBytes` when the whole does not have its digest, and `OSError` of the disk.
    """
    remote = look(client, url)
    part = file.with_name(f"{file.name}.{remote.sha256[:8]}.part")
    with part.open("a+b") as out:
        out.seek(0)
        digest = hashlib.file_digest(out, "sha256")  # of what a call before this one left
        have = out.tell()
        for block in blocks(client, remote, have):
            out.write(block)
            digest.update(block)
            have += len(block)
            progress(have, remote.bytes)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != remote.sha256:
        part.unlink()
        raise WrongBytes(file, remote.sha256)
    part.replace(file)
    return remote
