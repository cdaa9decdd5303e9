"""How commands print: records as JSON or text, messages, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from typer import echo


def print_record(as_json: bool, record: Any, print_text: Callable[[], None]) -> None:
    """Print `record` as JSON on stdout, or call `print_text`."""
    if as_json:
        import msgspec

        echo(msgspec.json.format(msgspec.json.encode(record), indent=2))
    else:
        print_text()


def print_message(message: str) -> None:
    """Print a message on stderr; stdout is for data."""
    echo(message, err=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty_message: str) -> None:
    """Print a table on stdout; without rows, print `empty_message` on stderr."""
    cells = [[_format_cell(value) for value in row] for row in rows]
    if not cells:
        print_message(empty_message)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for row in cells:
        table.add_row(*row)
    if not console.is_terminal:  # in a pipe, cells are not cut to a width
        console.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table)


def _format_cell(value: object) -> str:
    from rich.markup import escape

    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return escape(", ".join(f"{k}={_format_cell(v)}" for k, v in value.items()) or "-")
    if isinstance(value, list | tuple):
        return escape(", ".join(map(_format_cell, value)) or "-")
    return escape(str(value))


def format_time(timestamp: str | None) -> str | None:
    """Return an RFC 3339 time as `2026-03-03 12:00:00`, in UTC."""
    if not timestamp:
        return None
    return timestamp.replace("T", " ").partition(".")[0].removesuffix("Z").removesuffix("+00:00")
