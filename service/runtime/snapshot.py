"""Snapshot of the registry in memory: aliases, versions, exports and keys. Predictions use no database.

A watcher thread checks every 100 ms whether the database changed (`PRAGMA data_version` on a connection of
its own for SQLite, the revision itself on PostgreSQL) and reloads the models and keys that changed. The
process that makes a change calls `refresh` before it answers, so it reads its own writes. `find` refreshes
the snapshot once before it reports that something does not exist: a caller that has read in a record that a
version or export is ready can use it at once, at any server.

The state is replaced, never modified: readers need no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from anyio.to_thread import run_sync
from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from registry import db, keys, revision, verification
from registry.aliases import CHAMPION, alias_not_found
from registry.errors import NotFound, NotReady, Unavailable
from registry.keys import Key
from registry.models import model_not_found
from registry.tables import (
    AliasRow,
    AliasTrafficRow,
    ExportRow,
    ModelRow,
    PredictionLogRow,
    VersionRow,
)
from registry.versions import version_not_found
from registry.vocabulary import READY
from service import telemetry

POLL_S = 0.1
STALE_S = 10.0
"""A snapshot older than this makes the server unready: the database does not answer."""
RECONNECT_S = 1.0

T = TypeVar("T")
log = telemetry.logger(__name__)


class SnapshotVersion(msgspec.Struct, frozen=True):
    id: int
    number: int
    state: str
    fallback: str | None = None  # see `registry/verification.py`


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
    """`percent` of the alias's devices get its version, the others `previous`."""

    percent: int
    previous: int | None


class SnapshotLog(msgspec.Struct, frozen=True):
    """`sample` is the share of the model's calls that are recorded; it is more than 0."""

    model_id: int
    sample: float


class SnapshotTraffic(msgspec.Struct, frozen=True):
    """How the calls of an alias are answered; see `registry/traffic.py`. `shadow` is a version number."""

    model: str
    alias: str
    own: int  # the version of the alias
    limits: list[int]  # of the segments
    numbers: list[int]  # the version of each segment
    sticky_header: bytes | None  # in lower case
    error_rate: float | None
    p99_ms: float | None
    put_id: int  # the fence of withdrawals
    shadow: int | None
    shadow_id: int | None


class SnapshotModel(msgspec.Struct, frozen=True):
    name: str
    log: SnapshotLog | None = None  # None: no call is recorded
    versions: dict[int, SnapshotVersion] = {}
    aliases: dict[str, int] = {}
    exports: dict[int, list[SnapshotExport]] = {}  # by version number, newest first
    rollouts: dict[str, SnapshotRollout] = {}  # by alias, where not every device gets its version
    traffic: dict[str, SnapshotTraffic] = {}  # by alias, where other versions answer too


class SnapshotState(msgspec.Struct, frozen=True):
    revision: int
    models: dict[str, SnapshotModel]
    keys: dict[str, Key]
    registry_id: str = ""
    traffic: dict[tuple[str, str], SnapshotTraffic] = {}
    """That of all models, by model and alias: it is empty unless there is any."""


EMPTY = SnapshotState(revision=-1, models={}, keys={})


class Snapshot:
    def __init__(self, engine: Engine) -> None:
        self.state = EMPTY
        self.on_change: list[Callable[[], None]] = []  # called in the thread of the watcher or of `refresh`
        self._engine = engine
        self._sessions = db.sessions(engine)
        self._loading = threading.Lock()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="snapshot", daemon=True)
        self._checked_at = time.monotonic()
        self._state_read_at = 0.0  # when the transaction began that `state` was read in

    @property
    def age_s(self) -> float:
        """Seconds since the last successful check of the database."""
        return time.monotonic() - self._checked_at

    def resolve(self, name: str, alias: str | None = None, number: int | None = None) -> SnapshotVersion:
        """Return the version that answers for `name`, by number or by alias (default: `champion`).

        Raises `NotFound`, `NotReady`, `Unavailable` for a version that answers differently after an upgrade.
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
        if version.state != READY:
            url = f"/v1/models/{name}/versions/{number}"
            raise NotReady(f"{name}:{number} is {version.state}; GET {url} returns its report")
        if version.fallback == "none":
            raise verification.refusal(name, number)
        return version

    def champions(self) -> list[SnapshotVersion]:
        """Return the version of each alias `champion`."""
        return [
            m.versions[number]
            for m in self.state.models.values()
            if (number := m.aliases.get(CHAMPION)) is not None and number in m.versions
        ]

    def split_versions(self) -> list[SnapshotVersion]:
        """Return the versions that answer a share of an alias's calls."""
        state = self.state
        return [
            state.models[name].versions[number]
            for (name, _), traffic in state.traffic.items()
            for number in set(traffic.numbers)
            if number in state.models[name].versions
        ]

    async def find(self, resolve: Callable[[], T]) -> T:
        """Return what `resolve` returns. If it raises an error, refresh and call it again.

        Raises what `resolve` raises, and `Unavailable` when the database does not answer.
        """
        try:
            return resolve()
        except (NotFound, NotReady, Unavailable):
            try:
                await run_sync(self.refresh)
            except SQLAlchemyError as error:
                raise Unavailable("the registry's database does not answer; try again") from error
        return resolve()

    def refresh(self) -> None:
        """Bring the snapshot up to the database's current revision. Blocks; call it off the event loop.

        Concurrent calls read the database at most twice: a read that is in progress may have begun before
        the caller's change.
        """
        called_at = time.monotonic()
        with self._loading:
            if self._state_read_at > called_at:
                return
            read_at, before = time.monotonic(), self.state.revision
            with db.reading(self._sessions) as session:
                self.state = _reload(session, self.state)
            self._state_read_at, self._checked_at = read_at, time.monotonic()
            changed = self.state.revision != before
        if changed:
            for listener in self.on_change:
                listener()

    def start(self) -> None:
        """Load everything once, then watch for changes."""
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
            except Exception as error:  # the database may recover; `age_s` grows meanwhile
                log.warning("snapshot.lost", error=str(error))
                self._stopping.wait(RECONNECT_S)

    def _watch_connection(self) -> None:
        """Check every `POLL_S` on one connection: its data_version counts the commits of others (SQLite)."""
        sqlite = self._engine.dialect.name == "sqlite"
        probe = "PRAGMA data_version" if sqlite else "SELECT value FROM revision"
        raw = self._engine.raw_connection()
        try:
            cursor = raw.cursor()
            previous = None
            while not self._stopping.wait(POLL_S):
                cursor.execute(probe)
                value = cursor.fetchone()
                raw.rollback()  # on PostgreSQL the next check needs a new transaction
                if value != previous:
                    self.refresh()
                    previous = value
                self._checked_at = time.monotonic()
        finally:
            raw.close()


def _reload(session: Session, old: SnapshotState) -> SnapshotState:
    changes = revision.changes_since(session, old.revision) if old.revision >= 0 else None
    if changes is None:
        current = revision.current(session)
        registry_id = revision.registry_id(session)
        models = _read_models(session)
        return SnapshotState(
            current, models, keys.active_keys(session), registry_id, _traffic_of(models.values())
        )
    if changes.revision == old.revision:
        return old
    models, active_keys, traffic = old.models, old.keys, old.traffic
    if changes.models:
        unchanged = {n: m for n, m in old.models.items() if n not in changes.models}
        changed = _read_models(session, changes.models)
        models = unchanged | changed
        unchanged_traffic = {key: t for key, t in old.traffic.items() if key[0] not in changes.models}
        traffic = unchanged_traffic | _traffic_of(changed.values())
    if changes.keys:
        unchanged_keys = {i: k for i, k in old.keys.items() if i not in changes.keys}
        active_keys = unchanged_keys | keys.active_keys(session, changes.keys)
    return SnapshotState(changes.revision, models, active_keys, old.registry_id, traffic)


def _traffic_of(models: Iterable[SnapshotModel]) -> dict[tuple[str, str], SnapshotTraffic]:
    return {(model.name, alias): traffic for model in models for alias, traffic in model.traffic.items()}


def _read_models(session: Session, names: Collection[str] | None = None) -> dict[str, SnapshotModel]:
    """Read the models called `names`, or all. Reads only the columns that resolving needs, no signatures."""
    selected = select(ModelRow.id, ModelRow.name, PredictionLogRow.sample).outerjoin(PredictionLogRow)
    if names is not None:
        selected = selected.where(ModelRow.name.in_(names))
    models = {
        model_id: SnapshotModel(name, SnapshotLog(model_id, sample) if sample else None)
        for model_id, name, sample in session.execute(selected)
    }
    versions = select(
        VersionRow.model_id, VersionRow.id, VersionRow.number, VersionRow.state, VersionRow.fallback
    )
    aliases = select(AliasRow.model_id, AliasRow.name, VersionRow.number).join(
        VersionRow, VersionRow.id == AliasRow.version_id
    )
    if names is not None:
        versions = versions.where(VersionRow.model_id.in_(models))
        aliases = aliases.where(AliasRow.model_id.in_(models))
    for model_id, id_, number, state, fallback in session.execute(versions):
        if model_id in models:
            models[model_id].versions[number] = SnapshotVersion(id_, number, state, fallback)
    for model_id, alias, number in session.execute(aliases):
        if model_id in models:
            models[model_id].aliases[alias] = number
    _add_exports(session, models, all_models=names is None)
    _add_rollouts(session, models, all_models=names is None)
    _add_traffic(session, models, all_models=names is None)
    return {m.name: m for m in models.values()}


def _add_exports(session: Session, models: dict[int, SnapshotModel], all_models: bool) -> None:
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
        .where(ExportRow.state == READY)
        .order_by(ExportRow.id.desc())
    )
    if not all_models:
        exports = exports.where(VersionRow.model_id.in_(models))
    for row in session.execute(exports):
        if row.model_id in models:
            columns: tuple[Any, ...] = tuple(row)[1:]
            export = SnapshotExport(*columns)
            models[row.model_id].exports.setdefault(export.version, []).append(export)


def _add_rollouts(session: Session, models: dict[int, SnapshotModel], all_models: bool) -> None:
    rollouts = select(AliasRow.model_id, AliasRow.name, AliasRow.edge_percent, AliasRow.edge_previous).where(
        AliasRow.edge_percent < 100
    )
    if not all_models:
        rollouts = rollouts.where(AliasRow.model_id.in_(models))
    for model_id, alias, percent, previous in session.execute(rollouts):
        if model_id in models:
            models[model_id].rollouts[alias] = SnapshotRollout(percent or 0, previous)


def _add_traffic(session: Session, models: dict[int, SnapshotModel], all_models: bool) -> None:
    """Add the traffic of aliases. An alias as the shadow is the version that it points at now."""
    query = select(AliasTrafficRow)
    if not all_models:
        query = query.where(AliasTrafficRow.model_id.in_(models))
    for row in session.scalars(query):
        if (model := models.get(row.model_id)) is None or row.alias not in model.aliases:
            continue
        shadow = row.shadow_version
        if row.shadow_alias is not None:
            shadow = model.aliases.get(row.shadow_alias)
        model.traffic[row.alias] = SnapshotTraffic(
            model.name,
            row.alias,
            model.aliases[row.alias],
            [limit for limit, _ in row.segments],
            [number for _, number in row.segments],
            None if row.sticky_header is None else row.sticky_header.lower().encode(),
            row.error_rate,
            row.p99_ms,
            row.put_id,
            shadow,
            row.shadow_id,
        )
