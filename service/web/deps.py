"""What routes ask for, named once: the caller, a session, the services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from registry import db
from registry.errors import FieldError, Invalid
from registry.keys import Key, Scope
from service.web.auth import PUBLIC, Call, forbid
from service.web.services import Services


# These three wait for nothing, and are async so that FastAPI calls them right here: a `def` costs a thread.
async def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


async def caller(request: Request) -> Key:
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
    """A route's guard: the scopes of which its caller must have one ("any" = any valid key). A route with
    a `{name}` in its path is about that model, and the key must reach it.

    It also refuses query parameters on routes that take none; those that do have a model for them, which
    forbids what it does not know (`check_guarded`).
    """

    def __init__(self, *scopes: Scope | str) -> None:
        self.scopes = scopes
        self.takes_query = False

    async def __call__(self, request: Request, caller: CallerDep) -> None:
        reason = forbid(caller, *self.scopes, model=request.path_params.get("name"))
        if reason is not None:
            raise HTTPException(403, reason)
        if request.scope["query_string"] and not self.takes_query:
            unknown = sorted(request.query_params.keys())
            faults = [FieldError("unknown query parameter", field=field) for field in unknown]
            raise Invalid(f"unknown query parameter {', '.join(map(repr, unknown))}", faults)


def guarded(*scopes: Scope | str) -> Any:
    """For `dependencies=[...]` of a route."""
    return Depends(Requires(*scopes))


def guard_of(route: BaseRoute) -> Requires | None:
    """What a route asks of its callers, or None when it forgot."""
    for dependency in route.dependencies if isinstance(route, APIRoute) else ():
        found: Callable[..., Any] | None = dependency.dependency
        if isinstance(found, Requires):
            return found
    return None


def check_guarded(app: FastAPI) -> None:
    """Raises `RuntimeError` when a route says no scope: it would answer anybody with a key. What needs no
    key (`PUBLIC`) is none of these routes: it stands before them."""
    for route in app.router.routes:
        path = getattr(route, "path_format", repr(route))
        requires = guard_of(route)
        if requires is None or PUBLIC.fullmatch(path) is not None:
            raise RuntimeError(f"{path}: a route names its scope or is public, and never both")
        if isinstance(route, APIRoute):
            requires.takes_query = _takes_query(route)


def _takes_query(route: APIRoute) -> bool:
    parameters = _query(route.dependant)
    for parameter in parameters:
        model = parameter.field_info.annotation
        config = model.model_config if isinstance(model, type) and issubclass(model, BaseModel) else {}
        if config.get("extra") != "forbid":
            raise RuntimeError(
                f"{route.path}: {parameter.name} must come in a query model that forbids others"
            )
    return bool(parameters)


def _query(dependant: Dependant) -> list[Any]:
    return [*dependant.query_params, *(p for d in dependant.dependencies for p in _query(d))]
