"""Which library versions made an upload, who says so, and which ones build it."""

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
BLOCK = 1 << 20  # bytes of a file that are looked through at a time
SINCE_2, BEFORE_2 = b"numpy._core.", b"numpy.core."
"""How pickles of arrays and numbers name numpy's module, which version 2 renamed."""
BOUNDS = (">=2", "<2")

Versions = dict[str, str | None]
"""By library; None where nothing is told."""


def builder() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "joblib": joblib.__version__,
    }


def told_by(file: Path, model: Any, caught: list[warnings.WarningMessage]) -> Versions:
    """What a pickle tells of its maker, where `model` is what it holds and `caught` its warnings at loading.

    scikit-learn's version, as its estimators carry it: they warn when it is not the one here. Of numpy's
    no more than the side of version 2, ">=2" or "<2", and of a compressed file not that. Nothing of Python's.
    """
    told: Versions = {"scikit-learn": None, "numpy": _numpy(file), "python": None}
    for warning in caught:
        if isinstance(warning.message, InconsistentVersionWarning):
            return told | {"scikit-learn": str(warning.message.original_sklearn_version)}
    if type(model).__module__.startswith("sklearn."):
        return told | {"scikit-learn": sklearn.__version__}
    return told


def settle(told: Versions, said: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """`made_by` of the record, `{library: {"version", "said_by"} or None}`, and warnings.

    `told` is the file's word and goes before all others. Then comes the publisher's, in `said["made_by"]`;
    where it contradicts the file there is a warning. Last comes the environment that the version was
    published from, `said["published_from"]`: it is taken for the maker's only if its scikit-learn is the
    one that the file names.
    """
    sources = {"publisher": {name: word["version"] for name, word in said.get("made_by", {}).items()}}
    environment = said.get("published_from", {})
    if told["scikit-learn"] is not None and environment.get("scikit-learn") == told["scikit-learn"]:
        sources["environment"] = environment
    made: dict[str, Any] = {}
    contradictions = []
    for library in LIBRARIES:
        word = told[library]
        exact, bound = (None, word) if word in BOUNDS else (word, None)
        words = [("file", exact)]
        for source, versions in sources.items():
            claimed = versions.get(library)
            if claimed is None or _agree(claimed, word):
                words.append((source, claimed))
            elif source == "publisher":
                contradictions.append(f"its publisher says that {library} {claimed} made it, its file {word}")
        words.append(("file", bound))
        made[library] = next(({"version": v, "said_by": s} for s, v in words if v is not None), None)
    return made, contradictions


def warning(made: dict[str, Any]) -> str | None:
    """That it was made by another scikit-learn than the one here."""
    version = (made["scikit-learn"] or {}).get("version")
    if version is None or version == sklearn.__version__:
        return None
    return (
        f"made by scikit-learn {version}, built and measured with {sklearn.__version__}: "
        "its answers may differ from those it gave where it was trained"
    )


def _agree(version: str, told: str | None) -> bool:
    if told in BOUNDS:
        return (int(version.partition(".")[0]) >= 2) == (told == ">=2")
    return told is None or version == told


def _numpy(file: Path) -> str | None:
    before = False
    with file.open("rb") as opened:
        end = b""  # of the block before: a name may lie across two
        while block := opened.read(BLOCK):
            seen = end + block
            if SINCE_2 in seen:
                return ">=2"
            before = before or BEFORE_2 in seen
            end = seen[-len(SINCE_2) :]
    return "<2" if before else None
