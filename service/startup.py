"""Techniques that keep the start of a process short and its memory small.

Figures and reasons are in docs/adr/0021-how-a-start-stays-short.md. There are three techniques:

1. `hidden` keeps a library from importing another one that it only uses when it is installed.
2. `pause_collector` and `resume_collector` switch the garbage collector off while a server starts.
3. Heavy libraries are imported inside the function that needs them first, not on the way to `/readyz`:

   | library               | imported                                   | by                           |
   |-----------------------|--------------------------------------------|------------------------------|
   | FastAPI and the routes| in a thread, once the server answers       | `service/app.py`             |
   | numpy                 | in a thread, with the first model          | `service/app.py`             |
   | ONNX Runtime          | in a thread, with the first graph          | `runtime/loading.py`         |
   | python-tuf            | in a thread, with the first signed export  | `service/edge/tuf_signing.py`|
   | pyarrow               | with the first Arrow body, large CSV body  | `runtime/codec`, `submit`    |
   |                       | or batch job                               |                              |
   | llvmlite              | in a thread, with the first tree ensemble  | `runtime/loading.py`         |
   | numba                 | in a thread of the worker                  | `service/worker/process.py`  |
   | grpc, protobuf        | with the application, if it has a port     | `service/app.py`             |
   | Alembic               | with the first migration                   | `registry/db.py`             |

   Modules on the way to readiness import the types of such modules under `TYPE_CHECKING` only.

This module imports the standard library alone: everything else may import it.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class _Hider:
    """An import finder for which one module is not installed, in the thread that created it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """In this block, imports of the top-level module `name` by this thread raise `ModuleNotFoundError`.

    A module that is already imported stays available.
    """
    hider = _Hider(name)
    sys.meta_path.insert(0, hider)
    try:
        yield
    finally:
        sys.meta_path.remove(hider)


def import_pyarrow() -> None:
    """Import pyarrow without pandas.

    pyarrow imports pandas, if it is installed, when it creates its first array. It creates it here.
    """
    import pyarrow

    with hidden("pandas"):
        pyarrow.scalar(0)


@functools.cache
def import_numba() -> None:
    """Import numba without scipy, which it needs only to compile linear algebra.

    Do not call it in a process that loads models: their code may need scipy in numba.
    """
    with hidden("scipy"):
        import numba.np.arraymath  # noqa: F401


def import_llvmlite() -> None:
    """Import llvmlite without holding the GIL while its library is loaded and linked, which takes 20 ms.

    llvmlite loads it again, which then only returns it.
    """
    import ctypes
    import importlib.util
    from pathlib import Path

    package = importlib.util.find_spec("llvmlite")
    for folder in (package.submodule_search_locations or []) if package else []:
        for library in Path(folder).glob("binding/libllvmlite.*"):
            ctypes.CDLL(None).dlopen(str(library).encode(), os.RTLD_NOW)


def pause_collector() -> None:
    """Switch the garbage collector off until `resume_collector`: the objects of a start are not garbage."""
    gc.disable()


def resume_collector() -> None:
    """Switch the garbage collector on, and exclude all objects that exist now from collection."""
    gc.freeze()
    gc.enable()
