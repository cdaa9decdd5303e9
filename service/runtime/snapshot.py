"""The registry as of now, in memory: aliases, versions and keys, so that a prediction asks no database.

A watcher thread looks every 100 ms whether the database moved (`PRAGMA data_version` on a connection of
its own for SQLite, the revision itself on PostgreSQL) and reloads the models and keys that changed. The
process that makes a change calls `refresh` before it answers, and so reads its own writes. What is not
found is looked for once more in the database (`find`): who was told by a record that a version or export
is ready can use it at once, at any server.

The state is replaced, never altered: readers need no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from anyio.to_thread import run_sync
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from registry import db, keys
from registry import revision as changes
from registry.aliases import CHAMPION, alias_not_found
from registry.errors import NotFound, NotReady, Unavailable
from registry.keys import Key
from registry.models import model_not_found
from registry.tables import AliasRow, ExportRow, ModelRow, VersionRow
from registry.versions import version_not_found
from service import telemetry

POLL_S = 0.1
STALE_S = 10.0
"""A snapshot older than this makes the server unready: the database does not answer."""

T = TypeVar("T")
log = telemetry.logger(__name__)


class SnapshotVersion(msgspec.Struct, frozen=True):
    id: int
    number: int
    state: str


class SnapshotExport(msgspec.Struct, frozen=True):
    """A .tflite file that is ready."""

    id: int
    version: int
    quantize: str
    sha256: str
    bytes: int
    zstd: str | None  # the blob of the same file, compressed
    min_runtime: str | None
    created_at: datetime


class SnapshotRollout(msgspec.Struct, frozen=True):
    """Of the alias's devices `percent` get its version, the others `previous`."""

    percent: int
    previous: int | None


class SnapshotModel(msgspec.Struct, frozen=True):
    name: str
    versions: dict[int, SnapshotVersion] = {}
    aliases: dict[str, int] = {}
    exports: dict[int, list[SnapshotExport]] = {}  # by version number, newest first
    rollouts: dict[str, SnapshotRollout] = {}  # by alias, where not every device gets its version


class SnapshotState(msgspec.Struct, frozen=True):
    revision: int
    models: dict[str, SnapshotModel]
    keys: dict[str, Key]
    registry_id: str = ""


EMPTY = SnapshotState(revision=-1, models={}, keys={})


class Snapshot:
    def __init__(self, engine: Engine) -> None:
        self.state = EMPTY
        self.on_change: list[Callable[[], None]] = []  # called in the watcher's or refresher's thread
        self._engine = engine
        self._sessions = db.sessions(engine)
        self._loading = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="snapshot", daemon=True)
        self._looked = time.monotonic()
        self._refreshed_from = 0.0  # when the last look began that `state` is from

    @property
    def age_s(self) -> float:
        """Seconds since the database was last looked at with success."""
        return time.monotonic() - self._looked

    def resolve(self, name: str, alias: str | None = None, number: int | None = None) -> SnapshotVersion:
        """The version that answers for `name`, by number or by alias (`champion` when neither is given).

        Raises `NotFound`, `NotReady`.
        """
        model = self.state.models.get(name)
        if model is None:
            raise model_not_found(name)
        if number is None:
            alias = alias or CHAMPION
            number = model.aliases.get(alias)
            if number is None:
                raise alias_not_found(name, alias, model.aliases)
        version = model.versions.get(number)
        if version is None:
            raise version_not_found(name, number, max(model.versions, default=None))
        if version.state != "ready":
            raise NotReady(
                f"{name}:{number} is {version.state}; GET /v1/models/{name}/versions/{number} says more"
            )
        return version

    def champions(self) -> list[SnapshotVersion]:
        """The version behind every `champion`."""
        return [
            m.versions[number]
            for m in self.state.models.values()
            if (number := m.aliases.get(CHAMPION)) is not None and number in m.versions
        ]

    async def find(self, found: Callable[[], T]) -> T:
        """What `found` returns; when it raises `NotFound` or `NotReady`, what it does after another look at
        the database. Raises what `found` raises, and `Unavailable` when the database does not answer.
        """
        try:
            return found()
        except (NotFound, NotReady):
            try:
                await run_sync(self.refresh)
            except SQLAlchemyError as error:
                raise Unavailable("the registry's database does not answer; try again") from error
        return found()

    def refresh(self) -> None:
        """Bring the snapshot up to the revision that the database has now. Blocks; call it off the event
        loop. However many call it together, at most two looks follow: the one under way may be too early.
        """
        asked = time.monotonic()
        with self._loading:
            if self._refreshed_from > asked:
                return
            began, before = time.monotonic(), self.state.revision
            with db.reading(self._sessions) as session:
                self.state = _reload(session, self.state)
            self._refreshed_from, self._looked = began, time.monotonic()
            moved = self.state.revision != before
        if moved:
            for listener in self.on_change:
                listener()

    def start(self) -> None:
        """Load everything once, then keep watching."""
        self.refresh()
        self._watcher.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch_connection()
            except Exception as error:  # the database may come back: keep trying, let `age_s` tell
                log.warning("snapshot.lost", error=str(error))
                self._stopping.wait(1.0)

    def _watch_connection(self) -> None:
        """Look every `POLL_S` on one connection: SQLite's data_version speaks of commits by others."""
        sqlite = self._engine.dialect.name == "sqlite"
        probe = "PRAGMA data_version" if sqlite else "SELECT value FROM revision"
        raw = self._engine.raw_connection()
        try:
            cursor = raw.cursor()
            seen = None
            while not self._stopping.wait(POLL_S):
                cursor.execute(probe)
                value = cursor.fetchone()
                raw.rollback()  # on PostgreSQL the next look needs a new transaction
                if value != seen:
                    self.refresh()
                    seen = value
                self._looked = time.monotonic()
        finally:
            raw.close()


def _reload(session: Session, old: SnapshotState) -> SnapshotState:
    found = changes.changes_since(session, old.revision) if old.revision >= 0 else None
    if found is None:
        revision = changes.current(session)
        return SnapshotState(
            revision, _models(session), keys.active_keys(session), changes.registry_id(session)
        )
    if found.revision == old.revision:
        return old
    models, live = old.models, old.keys
    if found.models:
        fresh = _models(session, found.models)
        models = {n: m for n, m in old.models.items() if n not in found.models} | fresh
    if found.keys:
        live = {i: k for i, k in live.items() if i not in found.keys} | keys.active_keys(session, found.keys)
    return SnapshotState(found.revision, models, live, old.registry_id)


def _models(session: Session, names: Collection[str] | None = None) -> dict[str, SnapshotModel]:
    """The models called `names`, or all. Only columns that resolving needs: signatures stay behind."""
    picked = select(ModelRow.id, ModelRow.name)
    if names is not None:
        picked = picked.where(ModelRow.name.in_(names))
    found = {row.id: SnapshotModel(row.name) for row in session.execute(picked)}
    versions = select(VersionRow.model_id, VersionRow.id, VersionRow.number, VersionRow.state)
    aliases = select(AliasRow.model_id, AliasRow.name, VersionRow.number).join(
        VersionRow, VersionRow.id == AliasRow.version_id
    )
    if names is not None:
        versions = versions.where(VersionRow.model_id.in_(found))
        aliases = aliases.where(AliasRow.model_id.in_(found))
    for model_id, id_, number, state in session.execute(versions):
        if model_id in found:
            found[model_id].versions[number] = SnapshotVersion(id_, number, state)
    for model_id, alias, number in session.execute(aliases):
        if model_id in found:
            found[model_id].aliases[alias] = number
    _add_edge(session, found, everything=names is None)
    return {m.name: m for m in found.values()}


def _add_edge(session: Session, found: dict[int, SnapshotModel], everything: bool) -> None:
    exports = (
        select(
            VersionRow.model_id,
            ExportRow.id,
            VersionRow.number,
            ExportRow.quantize,
            ExportRow.blob,
            ExportRow.bytes,
            ExportRow.zstd,
            ExportRow.min_runtime,
            ExportRow.created_at,
        )
        .join(VersionRow, VersionRow.id == ExportRow.version_id)
        .where(ExportRow.state == "ready")
        .order_by(ExportRow.id.desc())
    )
    rollouts = select(AliasRow.model_id, AliasRow.name, AliasRow.edge_percent, AliasRow.edge_previous).where(
        AliasRow.edge_percent < 100
    )
    if not everything:
        exports = exports.where(VersionRow.model_id.in_(found))
        rollouts = rollouts.where(AliasRow.model_id.in_(found))
    for row in session.execute(exports):
        if row.model_id in found:
            columns: tuple[Any, ...] = tuple(row)[1:]
            export = SnapshotExport(*columns)
            found[row.model_id].exports.setdefault(export.version, []).append(export)
    for model_id, alias, percent, previous in session.execute(rollouts):
        if model_id in found:
            found[model_id].rollouts[alias] = SnapshotRollout(percent or 0, previous)
