"""FastAPI dependencies of the routes: the caller, a session, the services, and the required scope."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn, get_origin

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from registry import db
from registry.errors import FieldError, Invalid, invalid_field
from registry.keys import Key
from service.runtime.codec.json import repeated_key
from service.web.auth import PUBLIC, RequiredScope, denial_reason
from service.web.request_context import RequestContext
from service.web.services import Services


# `services`, `caller` and `ScopeGuard` are async although they await nothing: FastAPI would run a plain
# function in a thread.
async def services(request: Request) -> Services:
    value: Services = request.app.state.services
    return value


async def caller(request: Request) -> Key:
    """Return the request's key. `Guard` rejects requests without one before they reach a route."""
    context: RequestContext = request.scope["context"]
    if context.key is None:
        raise HTTPException(401, "an API key is required")
    return context.key


ServicesDep = Annotated[Services, Depends(services)]
CallerDep = Annotated[Key, Depends(caller)]


def _write_session(services: ServicesDep) -> Iterator[Session]:
    """Run a transaction. After the commit, refresh the snapshot and wake the build supervisor."""
    with services.sessions.begin() as session:
        yield session
    services.snapshot.refresh()  # a client reads its own writes
    services.supervisor.wake()


write_transaction = contextmanager(_write_session)
"""The transaction of `WriteDep`, for routes that end it before they respond."""


def _read_session(services: ServicesDep) -> Iterator[Session]:
    with db.reading(services.sessions) as session:
        yield session


# scope="function": the session is committed or closed before the response is sent
WriteDep = Annotated[Session, Depends(_write_session, scope="function")]
ReadDep = Annotated[Session, Depends(_read_session, scope="function")]


class ScopeGuard:
    """A route's access check: the caller's key needs one of `scopes`.

    For a route with `{name}` in its path, the key must also have access to that model. Query parameters are
    rejected on routes that define none; `check_guarded` ensures that all others use a query model that
    rejects unknown parameters. A parameter that is repeated is rejected unless it is a list, and so is a JSON
    body with a repeated key: readers disagree on which value counts (RFC 8259, section 4).
    """

    def __init__(self, *scopes: RequiredScope) -> None:
        self.scopes = scopes
        self.has_query = False
        self.lists: frozenset[str] = frozenset()
        self.has_body = False

    async def __call__(self, request: Request, caller: CallerDep) -> None:
        reason = denial_reason(caller, *self.scopes, model=request.path_params.get("name"))
        if reason is not None:
            raise HTTPException(403, reason)
        if request.scope["query_string"]:
            self._check_query(request)
        if self.has_body:
            _reject_repeated_keys(await request.body())  # FastAPI has read and decoded it already

    def _check_query(self, request: Request) -> None:
        counts = Counter(name for name, _ in request.query_params.multi_items())
        if not self.has_query:
            _reject_parameters("unknown query parameter", sorted(counts))
        repeated = sorted(name for name, count in counts.items() if count > 1 and name not in self.lists)
        if repeated:
            _reject_parameters("repeated query parameter", repeated)


def _reject_repeated_keys(body: bytes) -> None:
    def reject(pairs: list[tuple[str, Any]]) -> None:
        if (key := repeated_key(pairs)) is not None:
            raise invalid_field(key, "repeated key", "each key once", detail=f"the key {key!r} is repeated")

    with suppress(ValueError, RecursionError):  # FastAPI reports a body that is not JSON
        json.loads(body, object_pairs_hook=reject)


def _reject_parameters(fault: str, names: list[str]) -> NoReturn:
    raise Invalid(f"{fault} {', '.join(map(repr, names))}", [FieldError(fault, field=name) for name in names])


def require_scope(*scopes: RequiredScope) -> Any:
    """Build the entry of a route's `dependencies` that checks access."""
    return Depends(ScopeGuard(*scopes))


def guard_of(route: BaseRoute) -> ScopeGuard | None:
    """Return a route's guard, or None when it has none."""
    for dependency in route.dependencies if isinstance(route, APIRoute) else ():
        function: Callable[..., Any] | None = dependency.dependency
        if isinstance(function, ScopeGuard):
            return function
    return None


def check_guarded(app: FastAPI) -> None:
    """Raise `RuntimeError` when a route has no guard, is public, or accepts unknown query parameters.

    Public routes are not part of the FastAPI application (see `service/app.py`).
    """
    for route in app.router.routes:
        path = getattr(route, "path_format", repr(route))
        guard = guard_of(route)
        if guard is None or PUBLIC.fullmatch(path) is not None:
            raise RuntimeError(f"{path}: a FastAPI route must require a scope, and must not be public")
        if isinstance(route, APIRoute):
            guard.has_query, guard.lists = _check_query_models(route)
            guard.has_body = route.body_field is not None


def _check_query_models(route: APIRoute) -> tuple[bool, frozenset[str]]:
    """Return whether the route has query parameters, and the names of those that are lists."""
    parameters, lists = _query_parameters(route.dependant), set()
    for parameter in parameters:
        model = parameter.field_info.annotation
        config = model.model_config if isinstance(model, type) and issubclass(model, BaseModel) else {}
        if config.get("extra") != "forbid":
            raise RuntimeError(
                f"{route.path}: {parameter.name} must belong to a query model that forbids extra fields"
            )
        lists |= {name for name, field in model.model_fields.items() if get_origin(field.annotation) is list}
    return bool(parameters), frozenset(lists)


def _query_parameters(dependant: Dependant) -> list[Any]:
    nested = [parameter for d in dependant.dependencies for parameter in _query_parameters(d)]
    return [*dependant.query_params, *nested]
