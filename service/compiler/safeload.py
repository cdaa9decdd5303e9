"""The only place that unpickles. Called in build children and in the children of isolated runtimes.

Only `sandbox.confine` limits the effects of a pickle. An allow-list of classes would belong into `load`.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zlib
from lzma import LZMAError
from pathlib import Path

import joblib
from sklearn.exceptions import InconsistentVersionWarning

from registry.errors import Refused, describe_error
from service.compiler import foreign_files, native_structures, other_versions, pickle_file
from service.compiler.object_graph import members

_BROKEN = (EOFError, IndexError, KeyError, UnicodeDecodeError, pickle.UnpicklingError, zlib.error, LZMAError)
"""Errors of the unpickler for bytes that are not a pickle, or only a part of one."""

_MISSING_ATTRIBUTE = (
    re.compile(r"Can't get attribute '(?P<name>[^']*)' (on|from) <module '(?P<module>[^']*)'"),
    re.compile(r"module '(?P<module>[^']*)' has no attribute '(?P<name>[^']*)'"),  # of old pickle protocols
)
_SKLEARN_MODULES = ("sklearn", "_loss")
"""Modules of scikit-learn. In some versions a compiled one names itself without its package."""


def load(path: Path | str) -> object:
    """The object in a joblib file (plain or compressed) or a raw pickle.

    Raises `Refused`, with the reason, when the file is not a pickle or truncated, needs something that is not
    installed, is damaged, or was made by a version of scikit-learn whose models answer otherwise here.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", InconsistentVersionWarning)
        model = _unpickle(Path(path))
    versions = [
        w.message.original_sklearn_version for w in caught if hasattr(w.message, "original_sklearn_version")
    ]
    version = other_versions.oldest(versions)
    for member in members(model):
        native_structures.check(member)
        if version is not None:
            other_versions.check(member, version)
    return model


def _unpickle(path: Path) -> object:
    try:
        return joblib.load(path)
    except _BROKEN as error:
        if (kind := foreign_files.describe_text(path)) is not None:
            raise Refused(foreign_files.explain(kind, "sklearn-joblib")) from error
        raise Refused(f"the file is cut short or is not a pickle ({describe_error(error)})") from error
    except Exception as error:
        version, _ = pickle_file.recorded_versions(path)
        if version is not None and other_versions.is_other(version) and _concerns_sklearn(error):
            raise other_versions.does_not_load(version) from error
        raise Refused(_explain(error)) from error


def _concerns_sklearn(error: Exception) -> bool:
    """False where another module is missing, or lacks what the pickle needs."""
    if isinstance(error, ImportError):
        module = error.name
    elif isinstance(error, AttributeError) and (missing := _missing_attribute(error)) is not None:
        module = missing["module"]
    else:
        return True
    return module is not None and module.partition(".")[0] in _SKLEARN_MODULES


def _explain(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        converter = foreign_files.CONVERTERS.get((error.name or "").partition(".")[0])
        way_in = f": {converter} and publish the .onnx file" if converter else ""
        return f"the pickle needs the module {error.name!r}, which is not installed here{way_in}"
    if isinstance(error, ImportError):  # a name that the module lacks; Python adds the module's path
        return f"the pickle does not load: {str(error).replace(f' ({error.path})', '')}"
    missing = _missing_attribute(error) if isinstance(error, AttributeError) else None
    if missing is None:
        return f"the pickle does not load: {describe_error(error)}"
    if missing["module"] == "__main__":
        return (
            f"the pickle needs {missing['name']!r}, defined in the script that made it (__main__); "
            "put it into a module that is installed here"
        )
    return f"the pickle needs {missing['name']!r} of the module {missing['module']!r}, which lacks it here"


def _missing_attribute(error: AttributeError) -> re.Match[str] | None:
    """The attribute that a module lacks. Python's own message is not used: it ends with a path."""
    return next(filter(None, (pattern.match(str(error)) for pattern in _MISSING_ATTRIBUTE)), None)
