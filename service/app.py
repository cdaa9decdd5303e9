"""Builds the application: all objects are created and connected here, once per process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVarTuple, Unpack

from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from registry import db, verification
from registry.artifacts import Store
from registry.errors import Conflict, NotFound
from registry.vocabulary import READY
from service import telemetry
from service.builds.forkserver import ForkServer
from service.builds.supervisor import Supervisor
from service.config import Settings
from service.edge.tuf_signing import TufSigning
from service.online.canary import Canaries
from service.online.hotpath import HotPath
from service.online.lane import Lane
from service.online.predictor import Predictor
from service.online.shadow import Shadows
from service.online.traffic_split import SplitCalls
from service.prediction_log.recorder import Recorder
from service.process_group import ProcessGroup
from service.runtime import libraries
from service.runtime.pool import Load, Pool
from service.runtime.snapshot import Snapshot
from service.web import health
from service.web.auth import Guard, KeyVerifier, check_public
from service.web.body_limits import BodyLimits
from service.web.docs_page import docs_routes
from service.web.lazy_app import LazyApp
from service.web.services import Services

if TYPE_CHECKING:
    from fastapi import FastAPI

    from service.online.grpc_server import GrpcServer
    from service.runtime.loading import LoadedModel

Args = TypeVarTuple("Args")

PREDICT_THREADS = 2
"""Threads that decode and encode. They hold Python's lock: more of them take turns from the event loop."""
MAINTENANCE_S = 5.0
"""Interval of `_maintain`."""
LEAD_S = 1.0
"""How long no process leads after the leader died."""
MB = 1 << 20

log = telemetry.logger(__name__)


class App(NamedTuple):
    """The application: `asgi` is what a server runs. It may answer requests with `lane` instead.

    `grpc` listens while the application runs, if it has a port.
    """

    asgi: ASGIApp
    grpc: GrpcServer | None
    lane: Lane
    services: Services
    management: LazyApp[FastAPI]


def create_app(settings: Settings, forks: ForkServer | None = None, group: ProcessGroup | None = None) -> App:
    """Build the layers, from the inside out.

    `forks` is the supervisor's fork server. `group` are the web processes of the server, by default only this
    one.

    FastAPI with the management routes (`service/management.py`, loaded after the server has started); the
    public probes and docs pages; predictions; limits of request bodies; access control.
    """
    services = _create_services(settings, forks, group or ProcessGroup.of_one())
    shadows = Shadows(services.snapshot, services.pool, services.sessions)
    canaries = Canaries(services.sessions, services.snapshot.refresh, services.executor)
    management = LazyApp(lambda: _create_management(services))
    public_routes = [*health.health_routes(services), *docs_routes()]
    check_public(public_routes)
    predictor = Predictor(
        services.snapshot,
        services.pool,
        services.executor,
        settings.predict_deadline_s,
        services.recorder,
        SplitCalls(canaries, shadows),
    )
    grpc = None if settings.grpc_port is None else _create_grpc(services, predictor)
    router = _PublicRouter(
        public_routes,
        redirect_slashes=False,
        default=management,
        lifespan=lambda _: _lifespan(services, shadows, grpc),
    )
    predictions = HotPath(router, predictor)
    limited = BodyLimits(predictions, settings.max_body_mb * MB, settings.max_artifact_mb * MB)
    lane = Lane(KeyVerifier(services.snapshot), predictor, services.snapshot)
    return App(Guard(limited, services.snapshot), grpc, lane, services, management)


class _PublicRouter(Router):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # makes Starlette raise a 405 instead of sending it; `Guard` formats it
        await super().__call__(scope, receive, send)


def _create_management(services: Services) -> FastAPI:
    from service.management import create_management  # imports FastAPI; runs in the thread of `LazyApp`

    return create_management(services)


def _create_grpc(services: Services, predictor: Predictor) -> GrpcServer:
    from service.online.grpc_server import GrpcServer  # imports grpc, which only an extra installs

    return GrpcServer(services, predictor)


def _create_services(settings: Settings, forks: ForkServer | None, group: ProcessGroup) -> Services:
    engine = db.connect(settings.url)
    sessions = db.sessions(engine)
    store = Store(settings.blobs)
    snapshot = Snapshot(engine)
    supervisor = Supervisor(settings, sessions, store, snapshot.refresh, forks)
    executor = ThreadPoolExecutor(PREDICT_THREADS, thread_name_prefix="predict")
    recorder = Recorder(settings.predictions_directory)
    pool = Pool(_model_loader(settings, sessions, store, supervisor), settings.model_memory_mb * MB)
    return Services(settings, engine, sessions, store, snapshot, pool, supervisor, recorder, executor, group)


def _model_loader(settings: Settings, sessions: db.Sessions, store: Store, supervisor: Supervisor) -> Load:
    def load(version_id: int) -> LoadedModel:
        # numpy and ONNX Runtime would double the start's time: they are imported with the first model
        from service.runtime.isolated_runtime import Isolation
        from service.runtime.loading import ModelLoader

        isolation = Isolation(
            lambda: supervisor.forks.fork("isolated"), settings.build_memory_mb, settings.predict_deadline_s
        )
        return ModelLoader(sessions, store, isolation)(version_id)

    return load


@asynccontextmanager
async def _lifespan(services: Services, shadows: Shadows, grpc: GrpcServer | None) -> AsyncIterator[None]:
    """Run the background tasks while the server runs."""
    pool_event, signing_event = _change_event(services), _change_event(services)
    services.snapshot.on_change.append(services.supervisor.wake)  # another process may have published
    await asyncio.to_thread(services.snapshot.start)
    telemetry.WEB_PROCESSES.set(1)
    tasks: list[asyncio.Task[None]] = [
        asyncio.create_task(_keep_pool_current(services, pool_event)),
        asyncio.create_task(_update_gauges(services)),
        asyncio.create_task(_use_compiled_kernel(services)),
        asyncio.create_task(telemetry.flush_periodically()),
    ]
    tasks.append(asyncio.create_task(_lead(services, signing_event, tasks)))
    if grpc is not None:
        await grpc.start()
    try:
        yield
    finally:
        if grpc is not None:
            await grpc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(shadows.stop)
        await services.pool.close()
        await asyncio.to_thread(_shut_down, services)


def _change_event(services: Services) -> asyncio.Event:
    """Return an event that is set now, and whenever the registry changes."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def set_event() -> None:
        loop.call_soon_threadsafe(event.set)

    services.snapshot.on_change.append(set_event)
    event.set()
    return event


async def _keep_pool_current(services: Services, changed: asyncio.Event) -> None:
    """When the registry changes, load the versions in use, and unload those that are no longer ready."""
    while True:
        await changed.wait()
        changed.clear()
        state = services.snapshot.state
        versions = [v for m in state.models.values() for v in m.versions.values()]
        services.pool.keep_only({v.id: v.fallback for v in versions if v.state == READY})
        used = [*services.snapshot.champions(), *services.snapshot.split_versions()]
        await services.pool.warm([v.id for v in used if v.fallback != "none"])


async def _lead(services: Services, signing_event: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Once this process leads its group, start what a server does once: builds, signatures, maintenance.

    The tasks are appended to `tasks`.
    """
    while not services.group.try_to_lead():  # noqa: ASYNC110 - the kernel releases the lock
        await asyncio.sleep(LEAD_S)
    if services.group.size > 1:
        log.info("leading", pid=os.getpid())
    services.supervisor.start()
    tasks += [
        asyncio.create_task(TufSigning(services).run(signing_event)),
        asyncio.create_task(_checkpoint(services)),
        asyncio.create_task(_verify_outdated(services)),
        asyncio.create_task(_report_builder(services)),
    ]


async def _report_builder(services: Services) -> None:
    """Let the other processes know when no builds can be made: each of them reports whether it is ready."""
    while True:
        services.group.builder_problem = services.supervisor.forks.problem()
        await asyncio.sleep(LEAD_S)


async def _verify_outdated(services: Services) -> None:
    """Check the versions in use that were measured with other library versions than the installed ones."""
    try:
        count = await asyncio.to_thread(_request_checks, services)
    except (SQLAlchemyError, sqlite3.Error) as error:  # the next start, or the next load, requests them
        log.warning("verification.not_requested", error=str(error))
        return
    if count:
        log.info("verification.requested", versions=count)
        services.supervisor.wake()


def _request_checks(services: Services) -> int:
    """Request the checks and return their number. One transaction each: others write meanwhile."""
    with db.reading(services.sessions) as session:
        outdated = verification.outdated(session, lambda recorded: bool(libraries.changed(recorded)))
    for version_id in outdated:
        with contextlib.suppress(NotFound, Conflict), services.sessions.begin() as session:
            verification.request(session, version_id)
    return len(outdated)


async def _checkpoint(services: Services) -> None:
    """Periodically checkpoint SQLite's log."""
    while True:
        await _maintain(db.checkpoint, services.engine, services.settings.home)


async def _update_gauges(services: Services) -> None:
    """Periodically set the gauges that other web processes report."""
    while True:
        await _maintain(health.update_gauges, services)


async def _use_compiled_kernel(services: Services) -> None:
    """Let tables of nodes answer once the template has compiled the kernel, once per machine."""
    while True:
        await _maintain(services.pool.use_compiled_kernel)


async def _maintain(function: Callable[[Unpack[Args]], None], *args: *Args) -> None:
    """Call the function after the interval. Errors are logged: it is called again after the next one."""
    await asyncio.sleep(MAINTENANCE_S)
    try:
        await asyncio.to_thread(function, *args)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        log.warning("maintenance.failed", error=str(error))


def _shut_down(services: Services) -> None:
    services.snapshot.stop()
    services.supervisor.stop(services.settings.shutdown_grace_s)
    services.executor.shutdown(wait=True)
    services.recorder.close()
    services.engine.dispose()
    services.group.leave()
