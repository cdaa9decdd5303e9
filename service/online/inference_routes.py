"""Metadata and health of the Open Inference Protocol: all of `/v2` except `infer`, which is in `HotPath`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel

from service.online.model_metadata import (
    EXTENSIONS,
    SERVER_NAME,
    SERVER_VERSION,
    describe_model,
    resolve_version,
)
from service.web.deps import ServicesDep, require_scope
from service.web.health import run_checks
from service.web.problems import v2_error_responses
from service.web.services import Services

router = APIRouter(tags=["inference protocol"])

# Any text: the protocol has no 400 here, so a name or version that cannot exist is not found.
Name = Annotated[str, Path(description="the model's name")]
Version = Annotated[str, Path(description="the version's number")]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """A size of -1 is the number of rows."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str] | None = None


class ModelMetadata(BaseModel):
    """`versions` are those that answer. `inputs` has one tensor for all features if they are numbers."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


def _responses(*statuses: int) -> dict[str, Any]:
    """Return the arguments of a route that every route here has."""
    return {
        "dependencies": [require_scope("any")],
        "responses": v2_error_responses(*statuses),
        "response_model_exclude_none": True,
    }


@router.get("/v2", **_responses())
@router.get("/v2/", include_in_schema=False, **_responses())
def get_server_metadata() -> ServerMetadata:
    """Return the server's name, version and extensions."""
    return ServerMetadata(name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)


@router.get("/v2/health/live", **_responses())
def get_live() -> ServerLive:
    """Return 200: the process is alive."""
    return ServerLive(live=True)


@router.get("/v2/health/ready", **_responses())
def get_ready(services: ServicesDep, response: Response) -> ServerReady:
    """Return 200 if the server can answer, else 503; `GET /readyz` has the result of each check."""
    ready = all(result == "ok" for result in run_checks(services).values())
    response.status_code = 200 if ready else 503
    return ServerReady(ready=ready)


@router.get("/v2/models/{name}", **_responses(404, 409))
async def get_model_metadata(name: Name, services: ServicesDep) -> ModelMetadata:
    """Return the inputs and outputs of the version that the alias `champion` points to."""
    return await _metadata(services, name, None)


@router.get("/v2/models/{name}/versions/{version}", **_responses(404, 409))
async def get_version_metadata(name: Name, version: Version, services: ServicesDep) -> ModelMetadata:
    """Return the inputs and outputs of a version."""
    return await _metadata(services, name, version)


@router.get("/v2/models/{name}/ready", **_responses(404, 409))
async def get_model_ready(name: Name, services: ServicesDep) -> ModelReady:
    """Return 200 if the alias `champion` points to a version that answers."""
    await resolve_version(services, name, None)
    return ModelReady(name=name, ready=True)


@router.get("/v2/models/{name}/versions/{version}/ready", **_responses(404, 409))
async def get_version_ready(name: Name, version: Version, services: ServicesDep) -> ModelReady:
    """Return 200 if the version answers."""
    await resolve_version(services, name, version)
    return ModelReady(name=name, ready=True)


async def _metadata(services: Services, name: str, version: str | None) -> ModelMetadata:
    description = await describe_model(services, name, version)
    return ModelMetadata.model_validate(description._asdict())
