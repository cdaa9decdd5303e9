"""What the Open Inference Protocol reports about models, for REST and gRPC."""

from __future__ import annotations

import re
from functools import partial
from importlib.metadata import version as version_of
from typing import Any, NamedTuple, cast

from anyio.to_thread import run_sync

from registry import db, versions
from registry.errors import NotFound
from registry.signature import Signature
from registry.vocabulary import READY, Runtime
from service.runtime.snapshot import SnapshotVersion
from service.web.services import Services

SERVER_NAME = "trivium"
SERVER_VERSION = version_of("trivium")
EXTENSIONS = ["binary_tensor_data"]
"""The protocol's extensions that the server supports."""

PLATFORMS: dict[Runtime, str] = {
    "onnx": "onnxruntime_onnx",
    "tflite": "litert_tflite",
    "isolated": "scikit-learn_joblib",
}
"""The protocol's `platform`, `<project>_<format>`, by the version's runtime."""

_NUMBER = re.compile(r"[1-9][0-9]{0,9}")
_MAX_NUMBER = 2**31 - 1
"""Largest version number: the column has 32 bits."""


class ModelDescription(NamedTuple):
    """`versions` are those that answer. Inputs and outputs are dictionaries as in the protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


async def resolve_version(services: Services, name: str, version: str | None) -> SnapshotVersion:
    """Return the version that answers; None: that of `champion`.

    Raises `NotFound`, `NotReady`, `Unavailable`.
    """
    number = None
    if version is not None:
        number = int(version) if _NUMBER.fullmatch(version) else 0
        if not 1 <= number <= _MAX_NUMBER:
            raise NotFound("version", f"{name}:{version}", "a version is an integer from 1")
    return await services.snapshot.find(partial(services.snapshot.resolve, name, number=number))


async def describe_model(services: Services, name: str, version: str | None) -> ModelDescription:
    """Describe a version; None: `champion`. Raises as `resolve_version`."""
    from service.runtime.codec.tensors import describe_inputs, describe_outputs  # numpy

    resolved = await resolve_version(services, name, version)
    signature, runtime = await run_sync(_read_signature, services, resolved.id)
    numbers = [v.number for v in services.snapshot.state.models[name].versions.values() if v.state == READY]
    return ModelDescription(
        name,
        [str(number) for number in sorted(numbers)],
        PLATFORMS[runtime],
        describe_inputs(signature),
        describe_outputs(signature),
    )


def _read_signature(services: Services, version_id: int) -> tuple[Signature, Runtime]:
    with db.reading(services.sessions) as session:
        row = versions.get_by_id(session, version_id)
        return versions.signature_of(row), cast(Runtime, row.runtime)
