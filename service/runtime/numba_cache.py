"""Functions that numba compiles when their module is imported, and keeps for the next process.

Kept where NUMBA_CACHE_DIR says, else beside the module, in a place of its own for every release of the module
and of numba: numba may pair a new index with old code when it is killed between writing the two
(docs/adr/0014). So all that is compiled together has to be in one module. numba's own setting is as before
afterwards: models may bring functions that it keeps elsewhere.
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

_SETTING = threading.Lock()  # numba's, which is one for all threads


def inner(function: Function) -> Function:
    """To be called by compiled functions of its module."""
    made: Function = numba.njit(function, nogil=True, forceinline=True)
    return made


def outer(*signatures: Any) -> Callable[[Function], Function]:
    """Compiled at once for `signatures`, or read from where it was kept. It holds no GIL while it runs."""

    def compiled(function: Function) -> Function:
        kept = place(Path(function.__code__.co_filename))
        made: Function
        with _SETTING:
            before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(kept)
            try:
                made = numba.njit(list(signatures), cache=True, nogil=True)(function)
            except Exception:  # what was kept is damaged, the disk is full, or nothing can be kept anywhere
                shutil.rmtree(kept, ignore_errors=True)
                made = numba.njit(list(signatures), nogil=True)(function)
            finally:
                numba.config.CACHE_DIR = before
        return made

    return compiled


def place(module: Path) -> Path:
    """Where what is compiled of this module is kept."""
    digest = hashlib.sha256(numba.__version__.encode() + module.read_bytes()).hexdigest()[:16]
    return Path(os.environ.get("NUMBA_CACHE_DIR") or module.parent / "__pycache__") / digest
