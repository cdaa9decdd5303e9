"""The engine `ray`: a job's partitions on a Ray cluster, as descriptors over actors that hold the model.

engine     in the worker: hands the partitions to a driver and records what comes back
driver     a process of its own, the one that Ray knows; it has neither database nor keys
actor      on the cluster's nodes: does one partition after another, as a lane would
messages   what they say to each other

Only `driver` and `actor` import Ray (extra `ray`), and no web process and no worker imports those.
"""

from __future__ import annotations

from importlib.util import find_spec

from registry.errors import FieldError, Invalid


def is_installed() -> bool:
    return find_spec("ray") is not None


def require(engine: str) -> None:
    """Raises `Invalid` when a job is to run on Ray and nobody here can do that."""
    if engine == "ray" and not is_installed():
        message = "this server has no Ray; its operator gets it with trivium[ray], and sets RAY_ADDRESS"
        raise Invalid(message, [FieldError(message, field="engine", expected="local")])
