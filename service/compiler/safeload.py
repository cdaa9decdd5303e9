"""The one place that unpickles. Only ever called in a build child or an isolated runtime's child.

There is no allow-list yet: what a pickle does here is bounded by `sandbox.confine` alone. The
allow-list goes into `load`, and nowhere else.
"""

from __future__ import annotations

import pickle
import re
import zlib
from lzma import LZMAError
from pathlib import Path

import joblib

from registry.errors import Refused

_BROKEN = (EOFError, IndexError, KeyError, UnicodeDecodeError, pickle.UnpicklingError, zlib.error, LZMAError)
"""What a pickle machine trips over when the bytes are not, or no longer, a pickle."""

_ABSENT = (
    re.compile(r"Can't get attribute '(?P<what>[^']*)' (on|from) <module '(?P<module>[^']*)'"),
    re.compile(r"module '(?P<module>[^']*)' has no attribute '(?P<what>[^']*)'"),  # of old pickle protocols
)


def load(path: Path | str) -> object:
    """The object in a joblib file (plain or compressed) or a raw pickle.

    Raises `Refused` with a sentence for people when the file is cut short, is no pickle, or needs
    something that is not installed here.
    """
    try:
        return joblib.load(path)
    except ModuleNotFoundError as error:
        raise Refused(f"the pickle needs the module {error.name!r}, which is not installed here") from error
    except ImportError as error:  # a name that the module lacks; Python adds the module's path
        raise Refused(f"the pickle does not load: {str(error).replace(f' ({error.path})', '')}") from error
    except AttributeError as error:
        raise Refused(_absent(error)) from error
    except _BROKEN as error:
        raise Refused(f"the file is cut short or is no pickle ({type(error).__name__}: {error})") from error
    except Exception as error:
        raise Refused(f"the pickle does not load: {type(error).__name__}: {error}") from error


def _absent(error: AttributeError) -> str:
    """What the pickle wants of a module that has no such thing. Python's own words end with a path."""
    found = next(filter(None, (pattern.match(str(error)) for pattern in _ABSENT)), None)
    if found is None:
        return f"the pickle does not load: AttributeError: {error}"
    if found["module"] == "__main__":
        return (
            f"the pickle needs {found['what']!r}, defined in the script that made it (__main__); "
            "put it into a module that is installed here"
        )
    return f"the pickle needs {found['what']!r} of the module {found['module']!r}, which has none here"
