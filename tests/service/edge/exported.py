"""Exports that are ready, with bytes of the test's choice, made by the registry's own functions."""

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
    """A .tflite file as the store has it."""

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
    """Bytes of which no two parts are alike."""
    return np.random.default_rng(seed).bytes(count)


def some_file(version: int, count: int = 20_000) -> bytes:
    """Bytes that shrink, another for each version."""
    return noise(count // 2, version) + bytes(count - count // 2)


def add_export(services: Services, content: bytes, **more: Any) -> File:
    """As `write_export`; the application knows it at once."""
    file = write_export(services.sessions, services.store, content, **more)
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
    """The exporter's part is done in the transaction that asks for it: no supervisor ever sees the task."""
    blob = store.put([content])
    zstd = pa.compress(content, codec="zstd", asbytes=True) if compressed else None
    done = FinishedExport(
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
        exports.finish(session, row.id, done)
        number = row.id
    return File(content, zstd, number)
