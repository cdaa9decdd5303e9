"""The library versions that a runtime's answers depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from registry.vocabulary import AnsweringRuntime

ANSWERING: dict[AnsweringRuntime, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "numpy", "trivium"),
    "tflite": ("ai-edge-litert", "numpy", "trivium"),
    "isolated": ("scikit-learn", "scipy", "pandas", "numpy", "trivium"),
    "forest": ("llvmlite", "numba", "numpy", "trivium"),
}
"""Distributions by runtime; another release of one may answer differently."""


def versions_for(runtimes: Iterable[AnsweringRuntime]) -> dict[str, str]:
    """Return the installed versions that the answers of `runtimes` depend on."""
    names = sorted({name for runtime in runtimes for name in ANSWERING[runtime]})
    return {name: installed for name in names if (installed := installed_version(name)) is not None}


def changed(recorded: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return the recorded and the installed version of each library that is not the recorded one."""
    return {
        name: (before, installed_version(name))
        for name, before in recorded.items()
        if installed_version(name) != before
    }


@cache
def installed_version(name: str) -> str | None:
    """Return a distribution's version from its metadata, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
