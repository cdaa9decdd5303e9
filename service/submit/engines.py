"""Engines that run a job's partitions: `local` (this worker) and `ray` (a Ray cluster, extra `ray`)."""

from __future__ import annotations

from importlib.util import find_spec

from registry.errors import invalid_field


def ray_is_installed() -> bool:
    return find_spec("ray") is not None


def require_engine(engine: str) -> None:
    """Raises `Invalid` when a job is to run on Ray and nobody here can do that."""
    if engine == "ray" and not ray_is_installed():
        message = "this server has no Ray; its operator gets it with trivium[ray], and sets RAY_ADDRESS"
        raise invalid_field("engine", message, "local")
