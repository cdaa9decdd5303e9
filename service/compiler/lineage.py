"""The library versions that made an upload, the sources of those versions, and the versions that build it."""

from __future__ import annotations

import platform
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.exceptions import InconsistentVersionWarning

LIBRARIES = ("scikit-learn", "numpy", "python")
BLOCK_BYTES = 1 << 20  # a file is searched in blocks of this size
NUMPY_2_MODULE, NUMPY_1_MODULE = b"numpy._core.", b"numpy.core."
"""The name of numpy's module in pickles of arrays and numbers; version 2 renamed it."""
NUMPY_BOUNDS = (">=2", "<2")

Versions = dict[str, str | None]
"""By library; None where the version is unknown."""


def builder_versions() -> dict[str, str]:
    """The versions in this environment."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "joblib": joblib.__version__,
    }


def recorded_versions(file: Path, model: Any, caught: list[warnings.WarningMessage]) -> Versions:
    """The versions that a pickle records; `model` is its content, `caught` are its warnings at loading.

    scikit-learn's version is recorded in its estimators, which warn when it is not the installed one. Of
    numpy's version an uncompressed file shows ">=2" or "<2" at most. Python's version is not recorded.
    """
    recorded: Versions = {"scikit-learn": None, "numpy": _numpy_bound(file), "python": None}
    for warning in caught:
        if isinstance(warning.message, InconsistentVersionWarning):
            return recorded | {"scikit-learn": str(warning.message.original_sklearn_version)}
    if type(model).__module__.startswith("sklearn."):
        return recorded | {"scikit-learn": sklearn.__version__}
    return recorded


def merge_versions(recorded: Versions, stated: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`made_by` of the version record, `{library: {"version", "said_by"} or None}`, and warnings.

    Exact versions in the file (`recorded`) come first. The publisher's versions, `stated["made_by"]`, come
    next; where they contradict the file, they are dropped with a warning. The environment that the version
    was published from, `stated["published_from"]`, counts only if its scikit-learn is the file's. The file's
    bound on numpy's version comes last.
    """
    sources = {"publisher": {name: entry["version"] for name, entry in stated.get("made_by", {}).items()}}
    environment = stated.get("published_from", {})
    if recorded["scikit-learn"] is not None and environment.get("scikit-learn") == recorded["scikit-learn"]:
        sources["environment"] = environment
    made_by: dict[str, Any] = {}
    contradictions = []
    for library in LIBRARIES:
        in_file = recorded[library]
        exact, bound = (None, in_file) if in_file in NUMPY_BOUNDS else (in_file, None)
        versions = [("file", exact)]
        for source, claims in sources.items():
            claimed = claims.get(library)
            if claimed is None or _agree(claimed, in_file):
                versions.append((source, claimed))
            elif source == "publisher":
                contradictions.append(
                    f"the publisher states {library} {claimed}, but the file records {in_file}"
                )
        versions.append(("file", bound))
        made_by[library] = next(
            ({"version": version, "said_by": source} for source, version in versions if version is not None),
            None,
        )
    return made_by, contradictions


def version_warning(made_by: dict[str, Any]) -> str | None:
    """A warning when the model was made by another scikit-learn than the installed one."""
    version = (made_by["scikit-learn"] or {}).get("version")
    if version is None or version == sklearn.__version__:
        return None
    return (
        f"made by scikit-learn {version}, built and measured with {sklearn.__version__}: "
        "its answers may differ from those in the environment where it was trained"
    )


def _agree(version: str, recorded: str | None) -> bool:
    if recorded in NUMPY_BOUNDS:
        return (int(version.partition(".")[0]) >= 2) == (recorded == ">=2")
    return recorded is None or version == recorded


def _numpy_bound(file: Path) -> str | None:
    version_1 = False
    with file.open("rb") as opened:
        end = b""  # of the block before: a name may start in it
        while block := opened.read(BLOCK_BYTES):
            searched = end + block
            if NUMPY_2_MODULE in searched:
                return ">=2"
            version_1 = version_1 or NUMPY_1_MODULE in searched
            end = searched[-len(NUMPY_2_MODULE) :]
    return "<2" if version_1 else None
