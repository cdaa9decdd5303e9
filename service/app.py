"""The application: everything is wired here, once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from registry import db
from registry.artifacts import Store
from service import telemetry
from service.builds.supervisor import Supervisor
from service.config import Settings
from service.edge.tuf_signing import SigningChore
from service.online.hotpath import HotPath
from service.runtime.pool import Load, Pool
from service.runtime.snapshot import Snapshot
from service.web import health
from service.web.auth import Guard, check_public
from service.web.body_limits import BodyLimits
from service.web.docs_page import docs_routes
from service.web.lazy_app import Late
from service.web.services import Services

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.runtime.loading import LoadedModel

PREDICT_THREADS = 4
CHORES_S = 5.0
MB = 1 << 20

log = telemetry.logger(__name__)


class App(NamedTuple):
    """What `create_app` makes: a server runs `asgi`."""

    asgi: ASGIApp
    services: Services
    management: Late[FastAPI]


def create_app(settings: Settings) -> App:
    """From the outside in: guard, limits, predictions, probes and docs pages, and all the rest in FastAPI,
    which comes late: see `service/management.py`, where its routes are.
    """
    services = _services(settings)
    management = Late(lambda: _management(services))
    front = [*health.health_routes(services), *docs_routes()]
    check_public(front)
    rest = _Front(front, redirect_slashes=False, default=management, lifespan=lambda _: _lifespan(services))
    inside = HotPath(rest, services.snapshot, services.pool, services.executor, settings.predict_deadline_s)
    limited = BodyLimits(inside, settings.max_body_mb * MB, settings.max_artifact_mb * MB)
    return App(Guard(limited, services.snapshot), services, management)


class _Front(Router):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # inside an application Starlette raises a 405, for `Guard` to answer
        await super().__call__(scope, receive, send)


def _management(services: Services) -> FastAPI:
    from service.management import management  # FastAPI and the routes: in a thread, see `Late`

    return management(services)


def _services(settings: Settings) -> Services:
    engine = db.connect(settings.url)
    sessions = db.sessions(engine)
    store = Store(settings.blobs)
    snapshot = Snapshot(engine)
    supervisor = Supervisor(settings, sessions, store, on_change=snapshot.refresh)
    executor = ThreadPoolExecutor(PREDICT_THREADS, thread_name_prefix="predict")
    pool = Pool(_loader(settings, sessions, store, supervisor), settings.model_memory_mb * MB)
    return Services(settings, engine, sessions, store, snapshot, pool, supervisor, executor)


def _loader(settings: Settings, sessions: db.Sessions, store: Store, supervisor: Supervisor) -> Load:
    def load(version_id: int) -> LoadedModel:
        # numpy and ONNX Runtime double the time to start: they come with the first model, in its thread
        from service.runtime.isolated_runtime import Isolation
        from service.runtime.loading import ModelLoader

        isolation = Isolation(supervisor.fork_isolated, settings.build_memory_mb, settings.predict_deadline_s)
        return ModelLoader(sessions, store, isolation)(version_id)

    return load


@asynccontextmanager
async def _lifespan(services: Services) -> AsyncIterator[None]:
    to_follow, to_sign = _moved(services), _moved(services)
    await asyncio.to_thread(services.snapshot.start)
    services.supervisor.start()
    chores = [
        asyncio.create_task(_follow(services, to_follow)),
        asyncio.create_task(SigningChore(services).run(to_sign)),
        asyncio.create_task(_look_after(services)),
    ]
    try:
        yield
    finally:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await services.pool.close()
        await asyncio.to_thread(_shut_down, services)


def _moved(services: Services) -> asyncio.Event:
    """Set now, and again whenever the registry moves."""
    loop, moved = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(moved.set)

    services.snapshot.on_change.append(tell)
    moved.set()
    return moved


async def _follow(services: Services, moved: asyncio.Event) -> None:
    """When the registry moves: load the champions, drop what is no longer there."""
    while True:
        await moved.wait()
        moved.clear()
        state = services.snapshot.state
        services.pool.keep(
            {v.id for m in state.models.values() for v in m.versions.values() if v.state == "ready"}
        )
        await services.pool.warm([v.id for v in services.snapshot.champions()])


async def _look_after(services: Services) -> None:
    """Now and then: move the database's log into its file, and tell the other web processes' scrapes."""
    while True:
        await asyncio.sleep(CHORES_S)
        try:
            await asyncio.to_thread(db.checkpoint, services.engine, services.settings.home)
            await asyncio.to_thread(health.update_gauges, services)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:  # the database may come back
            log.warning("chores.failed", error=str(error))


def _shut_down(services: Services) -> None:
    services.snapshot.stop()
    services.supervisor.stop(services.settings.shutdown_grace_s)
    services.executor.shutdown(wait=True)
    services.engine.dispose()
