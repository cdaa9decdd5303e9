"""The only place that unpickles. Called in build children and in the children of isolated runtimes.

Only `sandbox.confine` limits the effects of a pickle. An allow-list of classes would belong into `load`.
"""

from __future__ import annotations

import pickle
import re
import zlib
from lzma import LZMAError
from pathlib import Path

import joblib

from registry.errors import Refused, describe_error

_BROKEN = (EOFError, IndexError, KeyError, UnicodeDecodeError, pickle.UnpicklingError, zlib.error, LZMAError)
"""Errors of the unpickler for bytes that are not a pickle, or only a part of one."""

_MISSING_ATTRIBUTE = (
    re.compile(r"Can't get attribute '(?P<name>[^']*)' (on|from) <module '(?P<module>[^']*)'"),
    re.compile(r"module '(?P<module>[^']*)' has no attribute '(?P<name>[^']*)'"),  # of old pickle protocols
)


def load(path: Path | str) -> object:
    """The object in a joblib file (plain or compressed) or a raw pickle.

    Raises `Refused`, with the reason, when the file is truncated, is not a pickle, or needs something that
    is not installed.
    """
    try:
        return joblib.load(path)
    except ModuleNotFoundError as error:
        raise Refused(f"the pickle needs the module {error.name!r}, which is not installed here") from error
    except ImportError as error:  # a name that the module lacks; Python adds the module's path
        raise Refused(f"the pickle does not load: {str(error).replace(f' ({error.path})', '')}") from error
    except AttributeError as error:
        raise Refused(_explain_missing(error)) from error
    except _BROKEN as error:
        raise Refused(f"the file is cut short or is not a pickle ({describe_error(error)})") from error
    except Exception as error:
        raise Refused(f"the pickle does not load: {describe_error(error)}") from error


def _explain_missing(error: AttributeError) -> str:
    """The attribute that a module lacks. Python's own message is not used: it ends with a path."""
    match = next(filter(None, (pattern.match(str(error)) for pattern in _MISSING_ATTRIBUTE)), None)
    if match is None:
        return f"the pickle does not load: {describe_error(error)}"
    if match["module"] == "__main__":
        return (
            f"the pickle needs {match['name']!r}, defined in the script that made it (__main__); "
            "put it into a module that is installed here"
        )
    return f"the pickle needs {match['name']!r} of the module {match['module']!r}, which lacks it here"
