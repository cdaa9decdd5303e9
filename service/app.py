"""The application: everything is wired here, once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from registry import db
from registry.artifacts import Store
from service import telemetry
from service.builds.supervisor import Supervisor
from service.config import Settings
from service.edge import export_routes, reports, tuf_routes
from service.edge import routes as edge_routes
from service.edge.tuf_chore import SigningChore
from service.online.hotpath import HotPath
from service.publish import alias_routes, artifacts, key_routes, routes
from service.runtime.pool import Load, Pool
from service.runtime.snapshot import Snapshot
from service.web import failures, health, openapi_routes
from service.web.auth import Guard
from service.web.deps import Services, check_guarded
from service.web.docs import docs_routes
from service.web.limits import Limits

if TYPE_CHECKING:
    from service.runtime.loading import Loaded

PREDICT_THREADS = 4
CHORES_S = 5.0
MB = 1 << 20

log = telemetry.logger(__name__)


def create_app(settings: Settings) -> ASGIApp:
    """The ASGI application, from the outside in: guard, limits, predictions, FastAPI with all the rest.

    Raises `TriviumError` when the database needs `trivium migrate`.
    """
    services = _services(settings)
    app = FastAPI(
        title="Trivium",
        version=version("trivium"),
        description="One registry, three roads: online predictions, batch scoring, edge delivery.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    publish = (artifacts, routes, alias_routes, key_routes)
    edge = (export_routes, edge_routes, reports, tuf_routes)
    for room in (*publish, *edge, openapi_routes, health):
        app.router.routes.extend(room.router.routes)  # one flat list, which `check_guarded` reads to the end
    app.router.routes.extend([*docs_routes(), *health.health_routes()])
    failures.install(app)
    check_guarded(app)
    inside = HotPath(app, services.snapshot, services.pool, services.executor, settings.predict_deadline_s)
    limited = Limits(inside, settings.max_body_mb * MB, settings.max_artifact_mb * MB)
    return Guard(limited, services.snapshot)


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
    def load(version_id: int) -> Loaded:
        # numpy and ONNX Runtime double the time to start: they come with the first model, in its thread
        from service.runtime.loading import Loader

        return Loader(sessions, store, supervisor.spawn_isolated, settings.predict_deadline_s)(version_id)

    return load


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
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
            await asyncio.to_thread(health.note_gauges, services)
        except (SQLAlchemyError, sqlite3.Error, OSError) as error:  # the database may come back
            log.warning("chores.failed", error=str(error))


def _shut_down(services: Services) -> None:
    services.snapshot.stop()
    services.supervisor.stop(services.settings.shutdown_grace_s)
    services.executor.shutdown(wait=True)
    services.engine.dispose()
