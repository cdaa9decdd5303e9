"""Every object inside an unpickled model, with the path to it."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

_SCALARS = frozenset({bool, bytes, complex, float, int, str, types.NoneType})
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


class Member(NamedTuple):
    """An object, and the attribute, index or key that leads to it from its parent."""

    value: Any
    step: str = ""
    parent: Member | None = None

    def path(self) -> str:
        """Example: `RandomForestClassifier.estimators_[0].tree_`."""
        steps, member = [], self
        while member.parent is not None:
            steps.append(member.step)
            member = member.parent
        return type(member.value).__name__ + "".join(reversed(steps))


def members(model: Any) -> Iterator[Member]:
    """Yield `model` and every object that its attributes, lists, dicts and object arrays lead to, each once.

    Numbers, texts, arrays of numbers and code are not yielded.
    """
    pending, visited = [Member(model)], {id(model)}
    while pending:
        member = pending.pop()
        yield member
        inner = [
            Member(value, step, member)
            for step, value in _inner(member.value)
            if type(value) not in _SCALARS and not isinstance(value, (np.generic, *_CODE))
        ]
        for found in reversed(inner):
            if id(found.value) not in visited and not _is_numeric(found.value):
                visited.add(id(found.value))
                pending.append(found)


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype != object


def _inner(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((f"[{key!r}]", inner) for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"[{index}]", inner) for index, inner in enumerate(value))
    if isinstance(value, np.ndarray):
        return ((f"[{index}]", inner) for index, inner in enumerate(value.ravel().tolist()))
    if isinstance(value, functools.partial):
        return ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    if isinstance(value, types.MethodType):
        return ((".__self__", value.__self__),)
    return ((f".{name}", inner) for name, inner in getattr(value, "__dict__", {}).items())
