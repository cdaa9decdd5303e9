"""Which library versions made a pickle, as far as it tells, and which ones build it."""

from __future__ import annotations

import platform
import warnings
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.exceptions import InconsistentVersionWarning


def builder() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "joblib": joblib.__version__,
    }


def made_by(model: Any, caught: list[warnings.WarningMessage]) -> dict[str, str | None]:
    """scikit-learn's version as its estimators carry it: they warn at loading when it is not this one.

    A pickle does not tell the versions of numpy and Python: those are null, and nothing is guessed.
    """
    made: dict[str, str | None] = {"scikit-learn": None, "numpy": None, "python": None}
    for warning in caught:
        if isinstance(warning.message, InconsistentVersionWarning):
            return made | {"scikit-learn": str(warning.message.original_sklearn_version)}
    if type(model).__module__.startswith("sklearn."):
        return made | {"scikit-learn": sklearn.__version__}
    return made


def warning(made: dict[str, str | None]) -> str | None:
    version = made.get("scikit-learn")
    if version is None or version == sklearn.__version__:
        return None
    return (
        f"made by scikit-learn {version}, built and measured with {sklearn.__version__}: "
        "its answers may differ from those it gave where it was trained"
    )
