"""Creates exports with arbitrary bytes, with the functions of the registry."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from registry import exports, queue
from registry.artifacts import Store
from registry.db import Sessions
from registry.exports import FinishedExport, NewExport
from registry.vocabulary import EXPORT_TASK
from service.web.services import Services


class File(NamedTuple):
    """A stored .tflite file."""

    content: bytes
    zstd: bytes | None
    export: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'

    @property
    def zstd_etag(self) -> str:
        return f'"{self.sha256}-zstd"'


def noise(count: int, seed: int = 0) -> bytes:
    """Random bytes, which cannot be compressed."""
    return np.random.default_rng(seed).bytes(count)


def some_file(version: int, count: int = 20_000) -> bytes:
    """Bytes that can be compressed to half, different for each version."""
    return noise(count // 2, version) + bytes(count - count // 2)


def add_export(services: Services, content: bytes, **options: Any) -> File:
    """Write an export like `write_export`, and refresh the application's snapshot."""
    file = write_export(services.sessions, services.store, content, **options)
    services.snapshot.refresh()
    return file


def write_export(
    sessions: Sessions,
    store: Store,
    content: bytes,
    *,
    model: str = "flag",
    version: int = 1,
    quantize: exports.Quantize = "none",
    min_runtime: str | None = "2.1.0",
    compressed: bool = True,
    state: str = "ready",
) -> File:
    """Create and finish an export in one transaction, so that no supervisor claims its task."""
    blob = store.put([content])
    zstd = pa.compress(content, codec="zstd", asbytes=True) if compressed else None
    result = FinishedExport(
        state=state,
        report={"agreement": 1.0},
        blob=blob.sha256,
        bytes=blob.bytes,
        zstd=None if zstd is None else store.put([zstd]).sha256,
        min_runtime=min_runtime,
    )
    with sessions.begin() as session:
        row = exports.create(session, store, model, version, NewExport(quantize=quantize), by="test")
        queue.cancel(session, EXPORT_TASK, str(row.id))
        exports.finish(session, row.id, result)
        export_id = row.id
    return File(content, zstd, export_id)
