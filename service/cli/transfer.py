"""Uploads and downloads, with a progress bar on a terminal when the file is large."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from typer import BadParameter

if TYPE_CHECKING:
    from service.client import Client

LARGE_BYTES = 8 << 20
"""Transfers of at least this size show a progress bar."""


def upload_file(client: Client, file: Path) -> str:
    """Upload `file` as an artifact and return its sha256."""
    size = file.stat().st_size
    with _progress_bar(f"uploading {file.name}") as update:
        return client.upload(file, lambda bytes_sent: update(bytes_sent, size))


def download_file(client: Client, url: str, file: Path) -> int:
    """Download `url` to `file`, verify its digest, and return its size in bytes."""
    from service.client import download

    with _progress_bar(f"downloading {file.name}") as update:
        return download.save(client, url, file, update).bytes


def require_parent_directory(out: Path) -> None:
    """Raise `BadParameter` when the directory of `--out` does not exist, before any work is done."""
    if not out.absolute().parent.is_dir():
        raise BadParameter(f"--out {out}: the directory {out.parent} does not exist")


@contextmanager
def _progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes the bytes transferred and the total."""
    if not sys.stderr.isatty():
        yield lambda transferred, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, visible=False)
        yield lambda transferred, total: bar.update(
            task, completed=transferred, total=total, visible=total >= LARGE_BYTES
        )
