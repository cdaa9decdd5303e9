"""Decorators for functions that numba compiles when their module is imported, and caches on disk.

The cache is in NUMBA_CACHE_DIR, otherwise beside the module. Each version of the module and of numba has a
directory of its own: numba may combine a new index with old code if it is killed between writing the two
(docs/adr/0014). Functions that are compiled together must therefore be in one module. numba's own setting is
restored afterwards, because models may contain functions that numba caches elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_SETTING = threading.Lock()  # numba's cache directory is one setting for all threads


def inlined(function: Function) -> Function:
    """Compile a function that only compiled functions of its module call."""
    kernel: Function = numba.njit(function, nogil=True, forceinline=True)
    return kernel


def compiled(*signatures: Any) -> Callable[[Function], Function]:
    """Compile a function for `signatures` at once, or load it from the cache. It runs without the GIL."""

    def compile_function(function: Function) -> Function:
        directory = cache_directory(Path(function.__code__.co_filename))
        kernel: Function
        with _SETTING:
            before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(directory)
            try:
                kernel = numba.njit(list(signatures), cache=True, nogil=True)(function)
            except Exception:  # the cache is damaged, the disk is full, or no directory is writable
                shutil.rmtree(directory, ignore_errors=True)
                kernel = numba.njit(list(signatures), nogil=True)(function)
            finally:
                numba.config.CACHE_DIR = before
        return kernel

    return compile_function


def cache_directory(module: Path) -> Path:
    """Return the directory for the compiled functions of this version of the module."""
    digest = hashlib.sha256(numba.__version__.encode() + module.read_bytes()).hexdigest()[:16]
    return Path(os.environ.get("NUMBA_CACHE_DIR") or module.parent / "__pycache__") / digest
