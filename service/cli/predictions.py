"""`trivium predictions`, `prediction-log` and `feedback`: what models answered, and what was true."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from typer import Argument, BadParameter, Exit, Option, echo

from registry.media_types import CSV, NDJSON, OUTPUT_TYPE_BY_SUFFIX, SUFFIXES
from service.cli.connection import connect
from service.cli.exit_codes import FAILURE
from service.cli.options import Json, Name, lookup_suffix, parse_name, without_none
from service.cli.output import print_message, print_record
from service.cli.transfer import require_parent_directory

if TYPE_CHECKING:
    from service.client import Client, Record

CALL_LABELS = 5000
"""Labels sent in one call."""
NO_LIMIT = "none"

Start = Annotated[
    str | None, Option("--from", metavar="TIME", help="The first time, such as 2026-03-03T12:00:00Z.")
]
End = Annotated[str | None, Option("--to", metavar="TIME", help="Rows before this time.")]
Days = Annotated[
    str | None, Option(metavar="N", help=f"Delete rows after N days; {NO_LIMIT}: never (default 30).")
]
Megabytes = Annotated[
    str | None, Option(metavar="N", help=f"Delete the oldest rows above N MB; {NO_LIMIT} (default 10240).")
]
FeedbackFile = Annotated[
    Path,
    Argument(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        show_default=False,
        help="A .csv file with the columns id, label, and row if calls had several; or .jsonl.",
    ),
]


def predictions(
    name: Name,
    start: Start = None,
    end: End = None,
    version: Annotated[int | None, Option(min=1, help="Only rows of this version.")] = None,
    out: Annotated[
        Path | None, Option(dir_okay=False, help="A .csv, .jsonl or .parquet file (default: stdout).")
    ] = None,
    json: Json = False,
) -> None:
    """Read a model's prediction log, with labels.

    Without --out, prints JSON lines.
    """
    from urllib.parse import urlencode

    from service.client import path

    query = urlencode(without_none({"from": start, "to": end, "version": version}))
    url = path("models", parse_name(name), "predictions") + (f"?{query}" if query else "")
    media_type = NDJSON if out is None else lookup_suffix(out, OUTPUT_TYPE_BY_SUFFIX)
    if out is not None:
        require_parent_directory(out)
    with connect() as client:
        if out is not None:
            size = _save(client, url, media_type, out)
            record = {"file": str(out), "bytes": size, "media_type": media_type}
            print_record(json, record, lambda: print_message(f"{out}, {size:,} bytes"))
        elif json:
            import msgspec

            rows = b"".join(_blocks(client, url, media_type))
            record = {"items": [msgspec.json.decode(line) for line in rows.splitlines()]}
            print_record(json, record, lambda: None)
        else:
            for block in _blocks(client, url, media_type):
                sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()


def _blocks(client: Client, url: str, media_type: str) -> Iterator[bytes]:
    with client.stream(url, headers={"Accept": media_type}) as response:
        yield from response.iter_bytes()


def _save(client: Client, url: str, media_type: str, out: Path) -> int:
    """Write the rows to `out`, which is complete or absent, and return its size."""
    part = out.with_name(f"{out.name}.part")
    try:
        with part.open("wb") as file:
            for block in _blocks(client, url, media_type):
                file.write(block)
        size = part.stat().st_size
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return size


def prediction_log(
    name: Name,
    sample: Annotated[
        float | None, Option(min=0, max=1, help="Share of the calls to record, 1 for all.")
    ] = None,
    keep_days: Days = None,
    max_mb: Megabytes = None,
    off: Annotated[bool, Option("--off", help="Record no more calls; recorded rows stay.")] = False,
    json: Json = False,
) -> None:
    """Show or set what is recorded of a model's calls.

    Inputs are recorded too, and any key with the scope predict can read them.
    """
    from service.client import path

    model = parse_name(name)
    url = path("models", model, "prediction-log")
    changes = without_none({"sample": sample})
    changes |= {
        field: _parse_limit(option, text)
        for field, option, text in (("keep_days", "--keep-days", keep_days), ("max_mb", "--max-mb", max_mb))
        if text is not None
    }
    if off and changes:
        raise BadParameter("--off takes no other option; the limits stay as they are")
    with connect() as client:
        record: Record = client.call("DELETE" if off else "GET", url)
        if changes:
            settings = {field: record[field] for field in ("sample", "keep_days", "max_mb")}
            record = client.call("PUT", url, settings | changes)
    print_record(json, record, lambda: echo(f"{model}: {_describe(record)}"))


def _parse_limit(option: str, text: str) -> int | None:
    if text == NO_LIMIT:
        return None
    if not text.isdecimal():
        raise BadParameter(f"{option} {text!r}: expected a whole number or {NO_LIMIT}")
    return int(text)


def _describe(record: Record) -> str:
    share = f"{record['sample']:.4g} of the calls are recorded" if record["sample"] else "no call is recorded"
    days = "without end" if record["keep_days"] is None else f"for {record['keep_days']} days"
    size = "" if record["max_mb"] is None else f", at most {record['max_mb']:,} MB"
    return f"{share}; rows are kept {days}{size}"


def feedback(file: FeedbackFile, json: Json = False) -> None:
    """Report the true values of predictions.

    A later label replaces an earlier one. Labels join their predictions in `trivium predictions`.
    """
    from service.client import ServerRefused

    items = _read_csv(file) if _media_type(file) == CSV else _read_lines(file)
    count, first = 0, 1
    with connect() as client:
        for call in _calls(items):
            try:
                count += client.create("/v1/feedback", {"items": call})["labels"]
            except ServerRefused as error:
                if error.status != 422:
                    raise
                for line in _item_lines(error.problem, first):
                    echo(f"{file}: {line}", err=True)
                echo(f"{count} labels before item {first} were sent", err=True)
                raise Exit(FAILURE) from error
            first += len(call)
    print_record(json, {"labels": count}, lambda: print_message(f"{count:,} labels were sent"))


def _media_type(file: Path) -> str:
    return lookup_suffix(file, {s: t for t in (CSV, NDJSON) for s in SUFFIXES[t]})


def _read_csv(file: Path) -> Iterator[Record]:
    """Yield the items of a CSV file. Labels are text, which the server compares as the model's type.

    Columns `label.<target>` are labels of a model with several targets. An empty cell is null.
    """
    with file.open(encoding="utf-8-sig", newline="") as content:
        lines = _csv_lines(file, content)
        _, columns = next(lines, (0, []))
        targets = {c: c.removeprefix("label.") for c in columns if c.startswith("label.")}
        unknown = sorted(set(columns) - {"id", "row", "label", *targets})
        repeated = len(set(columns)) < len(columns)
        if unknown or repeated or "id" not in columns or ("label" in columns) == bool(targets):
            raise BadParameter(f"{file}: expected the columns id, label and, if needed, row; got {columns}")
        for number, line in lines:
            if len(line) != len(columns):
                message = f"expected {len(columns)} cells, got {len(line)}; quote labels with commas"
                raise BadParameter(f"{file}, line {number}: {message}")
            cells = dict(zip(columns, line, strict=True))
            item: Record = {"id": cells["id"]}
            if cells.get("row"):
                item["row"] = int(cells["row"]) if cells["row"].isdecimal() else cells["row"]
            if targets:
                item["label"] = {target: cells[column] or None for column, target in targets.items()}
            else:
                item["label"] = cells["label"] or None
            yield item


def _csv_lines(file: Path, content: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not empty."""
    reader = csv.reader(content)
    try:
        yield from ((reader.line_num, cells) for cells in reader if cells)
    except (csv.Error, UnicodeDecodeError) as error:
        message = f"{file}, line {reader.line_num + 1}: expected CSV in UTF-8: {error}"
        raise BadParameter(message) from error


def _read_lines(file: Path) -> Iterator[Record]:
    import msgspec

    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            if not line.strip():
                continue
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except msgspec.MsgspecError as error:
                raise BadParameter(f"{file}, line {number}: expected a JSON object: {error}") from error


def _calls(items: Iterator[Record]) -> Iterator[list[Record]]:
    """Yield the items of one call each, of about `CALL_LABELS` labels."""
    call: list[Record] = []
    labels = 0
    for item in items:
        size = len(item["labels"]) if isinstance(item.get("labels"), list) else 1
        if call and labels + size > CALL_LABELS:
            yield call
            call, labels = [], 0
        call.append(item)
        labels += size
    if call:
        yield call


def _item_lines(problem: Record, first: int) -> Iterator[str]:
    """Yield a line for each fault, with the number of the item in the file; `first` is the call's first."""
    for error in problem.get("errors") or [{"message": problem.get("detail")}]:
        _, index, *field = [*str(error.get("field") or "").split(".", 2), "", ""]
        place = f"item {first + int(index)}, {field[0]}: " if index.isdecimal() else ""
        yield f"{place}{error.get('message')}"
