"""numba's cache of compiled code: its place, its use, and damaged entries."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import event

from service import prepare
from service.builds import forkserver
from service.config import Settings

KERNEL = """
from numba import types

from service.runtime.numba_cache import compiled, inlined


@inlined
def square(value):
    return value * value


@compiled(types.void(types.float32[::1]), types.void(types.float64[::1]))
def square_all(values):
    for i in range(len(values)):
        values[i] = square(values[i])
"""


class Compilations(event.Listener):
    """Counts the functions that numba compiles, instead of loading them from its cache."""

    def __init__(self) -> None:
        self.count = 0

    def on_start(self, event: Any) -> None:
        self.count += 1

    def on_end(self, event: Any) -> None:
        pass


def import_again(source: Path) -> tuple[ModuleType, bool]:
    """Import the file as a new module, like another process. Return whether that compiled a function."""
    specification = importlib.util.spec_from_file_location(f"another_{source.stem}", source)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    before = numba.config.CACHE_DIR
    with event.install_listener("numba:compile", compilations := Compilations()):
        specification.loader.exec_module(module)
    assert before == numba.config.CACHE_DIR, "the setting of numba must be restored"
    return module, compilations.count > 0


def files_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_compiled_code_is_reused_and_a_damaged_cache_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache := tmp_path / "cache"))
    source = tmp_path / "kernel.py"
    source.write_text(KERNEL)

    def import_kernel() -> bool:
        module, is_compiled = import_again(source)
        assert len(module.square_all.signatures) == 2
        for dtype in (np.float32, np.float64):
            module.square_all(values := np.array([2.0, 3.0], dtype))
            assert values.tolist() == [4.0, 9.0]
        return is_compiled

    assert import_kernel()
    files = files_in(cache)
    assert files
    assert not import_kernel()
    assert files_in(cache) == files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert import_kernel()
    assert files_in(cache) == [], "a damaged cache is deleted"
    assert import_kernel()
    assert [f.name for f in files_in(cache)] == [f.name for f in files]


def test_compiled_code_goes_into_the_data_directory_if_the_source_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # restored afterwards
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    settings = Settings(home=tmp_path)
    prepare.prepare(settings)
    assert "NUMBA_CACHE_DIR" not in forkserver.environment()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)  # root can write everywhere
        prepare.prepare(settings)
    assert forkserver.environment()["NUMBA_CACHE_DIR"] == str(tmp_path / "compiled")
