"""`trivium predict`: rows from a file or stdin, predictions as a table or as the API's record."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter

from service.cli.shared import Json, Model, connect, emit, model_ref, table

Rows = Annotated[
    str,
    Argument(
        metavar="ROWS",
        show_default=False,
        help='A .json file (a list of objects, one object, or {"instances": [...]}), a .csv file, '
        "or - for JSON on stdin.",
    ),
]


def predict(model: Model, rows: Rows, json: Json = False) -> None:
    """Predict rows of a file."""
    ref = model_ref(model)
    given = _read(rows)
    as_csv = rows.lower().endswith(".csv")
    body = given if as_csv else json_body(given, rows)
    with connect() as client:
        answer = client.predict(ref, body, "text/csv" if as_csv else "application/json")
    emit(json, answer, lambda: _show(answer["predictions"]))


def _read(rows: str) -> bytes:
    if rows == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(rows).read_bytes()
    except OSError as error:
        raise BadParameter(f"{rows}: {error.strerror}") from error


def json_body(given: bytes, source: str) -> bytes:
    """The predict call's body from any of the three forms that people write."""
    import msgspec

    try:
        value = msgspec.json.decode(given)
    except msgspec.DecodeError as error:
        raise BadParameter(f"{source} is not JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("instances"), list):
        return given  # as it is: the server, not we, judges what else is in it
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadParameter(f'{source}: expected a list of objects, an object, or {{"instances": [...]}}')
    return msgspec.json.encode({"instances": value})


def _show(predictions: list[dict[str, Any]]) -> None:
    flat = [_flatten(prediction) for prediction in predictions]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    table(columns, ([row.get(name) for name in columns] for row in flat), "no predictions")


def _flatten(prediction: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested objects as dotted columns, as the CSV answers have them: `probability.<class>`."""
    flat: dict[str, Any] = {}
    for name, value in prediction.items():
        shown = before + {"probabilities": "probability", "values": "value"}.get(name, name)
        flat.update(_flatten(value, f"{shown}.") if isinstance(value, dict) else {shown: value})
    return flat
