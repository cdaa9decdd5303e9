"""What routes ask for, named once: the caller, a session, the services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.routing import APIRoute
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException

from registry import db
from registry.artifacts import Store
from registry.keys import Key, Scope
from service.builds.supervisor import Supervisor
from service.config import Settings
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot
from service.web.auth import Call, forbid


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that lives as long as the process; made in `create_app`."""

    settings: Settings
    engine: Engine
    sessions: db.Sessions
    store: Store
    snapshot: Snapshot
    pool: Pool
    supervisor: Supervisor
    executor: Executor  # predictions and loads that leave the event loop


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


def caller(request: Request) -> Key:
    """The key of this request. `Guard` has let nobody in without one."""
    call: Call = request.scope["call"]
    if call.key is None:
        raise HTTPException(401, "an API key is needed")
    return call.key


ServicesDep = Annotated[Services, Depends(services)]
CallerDep = Annotated[Key, Depends(caller)]


@contextmanager
def writing(services: Services) -> Iterator[Session]:
    """A transaction; when it is committed this process knows what changed."""
    with services.sessions.begin() as session:
        yield session
    services.snapshot.refresh()  # whoever is answered reads his own writes
    services.supervisor.wake()


def _write(services: ServicesDep) -> Iterator[Session]:
    with writing(services) as session:
        yield session


def _read(services: ServicesDep) -> Iterator[Session]:
    with db.reading(services.sessions) as session:
        yield session


WriteDep = Annotated[Session, Depends(_write, scope="function")]  # commits before the answer is sent
ReadDep = Annotated[Session, Depends(_read, scope="function")]


class Requires:
    """A route's guard: the scope its caller must have ("any" = any valid key). A route with a `{name}` in its
    path is about that model, and the key must reach it."""

    def __init__(self, scope: Scope | str) -> None:
        self.scope = scope

    def __call__(self, request: Request, caller: CallerDep) -> None:
        reason = forbid(caller, self.scope, request.path_params.get("name"))
        if reason is not None:
            raise HTTPException(403, reason)


def guarded(scope: Scope | str) -> Any:
    """For `dependencies=[...]` of a route."""
    return Depends(Requires(scope))


def scope_of(route: APIRoute) -> str | None:
    """The scope a route asks for, or None when it forgot."""
    for dependency in route.dependencies:
        found: Callable[..., Any] | None = dependency.dependency
        if isinstance(found, Requires):
            return found.scope
    return None


def check_guarded(app: FastAPI) -> None:
    """Raises `RuntimeError` when a route says no scope: it would answer anybody with a key."""
    open_routes = [r.path for r in app.routes if isinstance(r, APIRoute) and scope_of(r) is None]
    if open_routes:
        raise RuntimeError(f"these routes name no scope: {', '.join(open_routes)}")
