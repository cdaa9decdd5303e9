"""`trivium predict`: predict rows of a file or of stdin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter

from registry.media_types import CSV, JSON
from service.cli.connection import connect
from service.cli.options import Json, Model, parse_model
from service.cli.output import print_record, print_table

Rows = Annotated[
    str,
    Argument(
        metavar="ROWS",
        show_default=False,
        help='A .json file (a list of objects, one object, or {"instances": [...]}), a .csv file, or - for '
        "JSON on stdin.",
    ),
]


def predict(model: Model, rows: Rows, json: Json = False) -> None:
    """Predict the rows of a .json or .csv file."""
    ref = parse_model(model)
    content = _read(rows)
    is_csv = rows.lower().endswith(".csv")
    body = content if is_csv else request_body(content, rows)
    with connect() as client:
        answer = client.predict(ref, body, CSV if is_csv else JSON)
    print_record(json, answer, lambda: _print_predictions(answer["predictions"]))


def _read(rows: str) -> bytes:
    if rows == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(rows).read_bytes()
    except OSError as error:
        raise BadParameter(f"{rows}: {error.strerror}") from error


def request_body(content: bytes, source: str) -> bytes:
    """Return the body of a predict call for a list of objects, one object, or a whole body."""
    import msgspec

    try:
        value = msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise BadParameter(f"{source} is not JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("instances"), list):
        return content  # unchanged: the server checks the other fields
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadParameter(f'{source}: expected a list of objects, an object, or {{"instances": [...]}}')
    return msgspec.json.encode({"instances": value})


def _print_predictions(predictions: list[dict[str, Any]]) -> None:
    rows = [_flatten(prediction) for prediction in predictions]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print_table(columns, ([row.get(name) for name in columns] for row in rows), "no predictions")


def _flatten(prediction: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested objects into columns named as in CSV answers: `probability.<class>`."""
    row: dict[str, Any] = {}
    for name, value in prediction.items():
        column = prefix + {"probabilities": "probability", "values": "value"}.get(name, name)
        row.update(_flatten(value, f"{column}.") if isinstance(value, dict) else {column: value})
    return row
