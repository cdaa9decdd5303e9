"""Keep a library from importing another that it takes only because it is installed."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class _Unseen:
    """To the import system: `name` is not installed, for this thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextmanager
def without(name: str) -> Iterator[None]:
    """In this block the top-level module `name` cannot be imported by this thread; if it is there already,
    nothing changes."""
    unseen = _Unseen(name)
    sys.meta_path.insert(0, unseen)
    try:
        yield
    finally:
        sys.meta_path.remove(unseen)


def arrow_without_pandas() -> None:
    """pyarrow imports pandas, if it is installed, for the first array that it makes: half a second and 50 MB
    of a process that has no use for it. Its first array is made here, and it does not ask again."""
    import pyarrow

    with without("pandas"):
        pyarrow.scalar(0)


@functools.cache
def numba_without_scipy() -> None:
    """numba imports scipy, if it is installed, for linear algebra in what it compiles: of that we have none,
    and it is a quarter of the time. Never where models are loaded: theirs may have some."""
    with without("scipy"):
        import numba.np.arraymath  # noqa: F401
