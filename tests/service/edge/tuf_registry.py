"""A registry whose versions have exports, and its signed documents."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata

from registry import aliases, db, exports, queue, tuf_documents, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.signature import Signature
from registry.vocabulary import BUILD_TASK, EXPORT_TASK
from service.edge.tuf_keys import RoleKeys
from service.edge.tuf_repository import TufRepository

NAME = "m/champion/none.tflite"
NO_FEATURES = Signature("regression", (), ())


class Registry:
    """A registry whose versions have exports, written with the functions of the product."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.engine = db.connect(f"sqlite:///{home / 'registry.db'}")
        self.sessions = db.sessions(self.engine)
        self.store = Store(home / "blobs")
        self.keys = RoleKeys(home / "tuf")

    def export(self, content: bytes, *, promote: bool = True, percent: int | None = None) -> int:
        """Publish a version with an export of these bytes, and return its number.

        Their tasks are cancelled: a server on the registry would build the version, and reject it.
        """
        blob = self.store.put([content])
        with self.sessions.begin() as session:
            new = versions.NewVersion("m", blob.sha256, "onnx")
            version = versions.publish(session, self.store, new, by="test")
            queue.cancel(session, BUILD_TASK, str(version.id))
            result = BuildResult(state="ready", report={}, runtime="onnx", signature=NO_FEATURES)
            versions.finish_build(session, version.id, result)
            row = exports.create(session, self.store, "m", version.number, exports.NewExport(), by="test")
            queue.cancel(session, EXPORT_TASK, str(row.id))
            finished = exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.1.0")
            exports.finish(session, row.id, finished)
            if promote:
                aliases.promote(session, "m", "champion", version.number, by="test", edge_percent=percent)
            return version.number

    def sign(self, now: datetime | None = None) -> bool:
        with self.sessions.begin() as session:
            return TufRepository(session, self.keys).refresh(now)

    def newest(self, role: str) -> dict[str, object]:
        with db.reading(self.sessions) as session:
            signed: dict[str, object] = json.loads(tuf_documents.newest(session, role) or "{}")["signed"]
            return signed

    def first_root(self) -> bytes:
        with db.reading(self.sessions) as session:
            return tuf_documents.get(session, "root", 1).encode()

    def document(self, role: str) -> Metadata[Any]:
        """Return the newest document with its signatures."""
        with db.reading(self.sessions) as session:
            return Metadata.from_bytes((tuf_documents.newest(session, role) or "").encode())

    def versions(self) -> dict[str, int]:
        """Return the version of each role's newest document."""
        return {role: self.document(role).signed.version for role in tuf_documents.ROLES}
