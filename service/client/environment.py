"""Which versions are installed beside the client: most often those that made what it publishes."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def environment() -> dict[str, str]:
    """The versions of Python and, as far as they are installed, scikit-learn and numpy. Imports neither."""
    found = {"python": platform.python_version()}
    for library in ("scikit-learn", "numpy"):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
