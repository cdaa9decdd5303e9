"""The library versions that made an upload, the sources of those versions, and the versions that build it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn

from service.compiler import pickle_file
from service.compiler.pickle_file import NUMPY_BOUNDS

LIBRARIES = ("scikit-learn", "numpy", "python")

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


def recorded_versions(file: Path) -> Versions:
    """The versions that a pickle records: scikit-learn's in its estimators, of numpy's ">=2" or "<2" at most.

    Python's version is not recorded.
    """
    sklearn_version, numpy_bound = pickle_file.recorded_versions(file)
    return {"scikit-learn": sklearn_version, "numpy": numpy_bound, "python": None}


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


def version_warning(made_by: dict[str, Any], compared: bool) -> str | None:
    """A warning when the model was made by another scikit-learn than the installed one.

    `compared`: the build compares the answers with those that the model gave where it was trained.
    """
    version = (made_by["scikit-learn"] or {}).get("version")
    if version is None or version == sklearn.__version__:
        return None
    warning = f"made by scikit-learn {version}, built and measured with {sklearn.__version__}"
    if compared:
        return warning
    return (
        f"{warning}: its answers may differ from those in the environment where it was trained; "
        "publish it with --answers to have them compared"
    )


def _agree(version: str, recorded: str | None) -> bool:
    if recorded in NUMPY_BOUNDS:
        return (int(version.partition(".")[0]) >= 2) == (recorded == ">=2")
    return recorded is None or version == recorded
