"""Files on their way to the server and back, with a progress bar when they are large and somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from typer import BadParameter

if TYPE_CHECKING:
    from service.client import Client

LARGE = 8 << 20  # bytes from which a transfer shows a progress bar


def upload(client: Client, file: Path) -> str:
    """Upload `file`; its sha256."""
    size = file.stat().st_size
    with _bar(f"uploading {file.name}") as show:
        return client.upload(file, lambda sent: show(sent, size))


def fetch(client: Client, url: str, file: Path) -> int:
    """What the server has at `url`, as `file`, whole and checked; its size in bytes."""
    from service.client import download

    with _bar(f"fetching {file.name}") as show:
        return download.save(client, url, file, show).bytes


def require_directory(out: Path) -> None:
    """Raises `BadParameter` when there is no directory for it: that is better known before than after."""
    if not out.absolute().parent.is_dir():
        raise BadParameter(f"--out {out}: there is no directory {out.parent}")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """What to call with the bytes that have gone and those in all."""
    if not sys.stderr.isatty():
        yield lambda gone, size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, visible=False)
        yield lambda gone, size: bar.update(task, completed=gone, total=size, visible=size >= LARGE)
