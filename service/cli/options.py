"""Arguments and options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from typer import Argument, BadParameter, Option

if TYPE_CHECKING:
    from service.client import ModelRef, Record

Json = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[
    str, Argument(metavar="MODEL", show_default=False, help="name, name@alias or name:version.")
]
Version = Annotated[str, Argument(metavar="MODEL", show_default=False, help="name:version.")]
ModelOption = Annotated[str, Option("--model", metavar="MODEL", help="name, name@alias or name:version.")]
Name = Annotated[str, Argument(metavar="NAME", show_default=False, help="The model's name.")]
NameOption = Annotated[str, Option("--name", help="The model's name.")]
Tags = Annotated[list[str] | None, Option("--tag", metavar="KEY=VALUE", help="A tag; may be repeated.")]
Reason = Annotated[str | None, Option("--reason", help="A note for the alias's history.")]
ReadyAlias = Annotated[str | None, Option("--alias", help="Move this alias to the version when it is ready.")]

TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
"""Seconds per unit."""
_SPAN = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+")

Value = TypeVar("Value")


def parse_model(text: str) -> ModelRef:
    """Read `name`, `name@alias` or `name:version`."""
    from service.client import ModelRef

    try:
        return ModelRef.parse(text)
    except ValueError as error:
        raise BadParameter(str(error)) from error


def parse_version(text: str) -> ModelRef:
    """Read `name:version`."""
    ref = parse_model(text)
    if ref.version is None:
        raise BadParameter(f"{text!r} has no version number; write name:version")
    return ref


def parse_name(text: str) -> str:
    """Read a model's name, without version or alias."""
    ref = parse_model(text)
    if ref.version is not None or ref.alias:
        raise BadParameter(f"{text!r}: expected the model's name, without version or alias")
    return ref.name


def parse_span(text: str | None) -> float | None:
    """Read a span of time such as `1h30m` and return seconds."""
    if text is None:
        return None
    if _SPAN.fullmatch(text) is None:
        raise BadParameter(f"{text!r} is not a span of time; write 1w, 30m, 1h30m or 5s")
    return sum(float(number) * TIME_UNITS[unit] for number, unit in re.findall(r"([0-9.]+)([smhdw])", text))


def parse_pairs(texts: Sequence[str] | None, split_at_last: bool = False) -> dict[str, str]:
    """Read `["a=1", "b=2"]` as a dict. `split_at_last`: keys may contain `=`."""
    pairs = {}
    for text in texts or ():
        key, equals, value = text.rpartition("=") if split_at_last else text.partition("=")
        if not equals or not key:
            raise BadParameter(f"{text!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def lookup_suffix(file: Path, values: Mapping[str, Value], hint: str = "") -> Value:
    """Return the value of the file's suffix. Raises `BadParameter` with the known suffixes and `hint`."""
    try:
        return values[file.suffix.lower()]
    except KeyError:
        suffixes = ", ".join(values)
        raise BadParameter(
            f"{file.name}: the suffix {file.suffix!r} is not one of {suffixes}{hint}"
        ) from None


def without_none(values: Record) -> Record:
    """Drop options that were not passed, so that the server's defaults apply."""
    return {key: value for key, value in values.items() if value is not None}
