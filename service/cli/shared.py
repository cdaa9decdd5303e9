"""What several commands share: option types, the client, and how answers are printed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option, echo

if TYPE_CHECKING:
    from service.client import Client, ModelRef, Record
    from service.config import Settings

DEFAULT_URL = "http://127.0.0.1:8080"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?[smhdw])+")

Json = Annotated[bool, Option("--json", help="Print the API's own record on stdout.")]
Model = Annotated[
    str, Argument(metavar="MODEL", show_default=False, help="name, name@alias or name:version.")
]
Name = Annotated[str, Argument(metavar="NAME", help="The model's name.")]
Tags = Annotated[list[str] | None, Option("--tag", metavar="KEY=VALUE", help="May be repeated.")]
Reason = Annotated[str | None, Option("--reason", help="Kept in the alias's history.")]


def home() -> Path:
    return Path(os.environ.get("TRIVIUM_HOME") or ".trivium")


def read_settings(**given: Any) -> Settings:
    """The environment's settings; what is `given` and not None goes before them."""
    from service.config import Settings

    return Settings(**{key: value for key, value in given.items() if value is not None})


def connect(timeout_s: float = 60.0) -> Client:
    """A client of the server that the environment names, with the key that it names."""
    from service.client import Client

    return Client(os.environ.get("TRIVIUM_URL") or DEFAULT_URL, find_key(), timeout_s)


def find_key() -> str | None:
    if key := os.environ.get("TRIVIUM_API_KEY"):
        return key
    file = home() / "admin.key"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return None  # the server says that it wants one
    except PermissionError as error:
        raise BadParameter(f"{file} cannot be read by you; set TRIVIUM_API_KEY") from error


def model_ref(text: str) -> ModelRef:
    from service.client import ModelRef

    try:
        return ModelRef.parse(text)
    except ValueError as error:
        raise BadParameter(str(error)) from error


def one_version(text: str) -> ModelRef:
    """A `name:version`, and nothing else."""
    ref = model_ref(text)
    if ref.version is None:
        raise BadParameter(f"{text!r} names no version; write name:version")
    return ref


def only_name(text: str) -> str:
    """A model's name without version or alias."""
    ref = model_ref(text)
    if ref.version is not None or ref.alias:
        raise BadParameter(f"{text!r}: only the model's name is wanted here")
    return ref.name


def seconds(span: str | None) -> float | None:
    """`1h30m` as 5400."""
    if span is None:
        return None
    if _SPAN.fullmatch(span) is None:
        raise BadParameter(f"{span!r} is no span of time; write 1w, 30m, 1h30m or 5s")
    return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([0-9.]+)([smhdw])", span))


def pairs(given: Sequence[str] | None, last: bool = False) -> dict[str, str]:
    """`["a=1", "b=2"]` as a dict. `last`: it is the last = that counts."""
    found = {}
    for pair in given or ():
        key, equals, value = pair.rpartition("=") if last else pair.partition("=")
        if not equals or not key:
            raise BadParameter(f"{pair!r} is not KEY=VALUE")
        found[key] = value
    return found


def given(values: Record) -> Record:
    """Without what was not said: the server has the defaults."""
    return {key: value for key, value in values.items() if value is not None}


def emit(as_json: bool, record: Any, human: Callable[[], None]) -> None:
    """The record itself, or what `human` writes about it."""
    if as_json:
        import msgspec

        echo(msgspec.json.format(msgspec.json.encode(record), indent=2))
    else:
        human()


def say(message: str) -> None:
    """A message for people: stderr, so that stdout holds nothing but data."""
    echo(message, err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows as a table on stdout; `empty` on stderr when there are none."""
    listed = [[_cell(value) for value in row] for row in rows]
    if not listed:
        return say(empty)
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    drawn = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in listed:
        drawn.add_row(*row)
    if not console.is_terminal:  # in a pipe, nothing is cut to the width of a terminal that is not there
        console.width = console.measure(drawn, options=console.options.update(max_width=10_000)).maximum
    return console.print(drawn)


def _cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return escape(", ".join(f"{k}={_cell(v)}" for k, v in value.items()) or "-")
    if isinstance(value, list | tuple):
        return escape(", ".join(map(_cell, value)) or "-")
    return escape(str(value))


def when(stamp: str | None) -> str | None:
    """An RFC 3339 time as people read it, to the second, in UTC."""
    return (
        stamp.replace("T", " ").partition(".")[0].removesuffix("Z").removesuffix("+00:00") if stamp else None
    )


def aliases_of(record: Record) -> list[str]:
    """Alias names of a version, or `name -> version` of a model."""
    found = record.get("aliases") or []
    return [f"{name} -> {where}" for name, where in found.items()] if isinstance(found, dict) else list(found)
