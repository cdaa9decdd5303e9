"""How each server takes one row and returns its probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.serving.models import Model

Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """The same POST for all rows, except for the body. `read` returns the probabilities of one answer.

    `read` is None for a constant answer.
    """

    path: str
    bodies: list[str]
    read: Callable[[Any], list[float]] | None
    headers: dict[str, str] = field(default_factory=dict)


def trivium(model: Model, key: str) -> Request:
    return Request(
        f"/v1/models/{model.name}/predict",
        [_dump({"instances": [row]}) for row in model.rows],
        lambda answer: list(answer["predictions"][0]["probabilities"].values()),
        {"Authorization": f"Bearer {key}"},
    )


def constant(request: Request) -> Request:
    """Return the requests of another server, for one that answers them with a constant."""
    return Request("/predict", request.bodies, None, request.headers)


def lists(model: Model) -> Request:
    """Rows as lists of numbers, or as records for a model of mixed columns."""
    return Request(
        "/predict",
        [_dump({"instances": [_values(model, row)]}) for row in model.rows],
        lambda answer: list((answer["predictions"] if isinstance(answer, dict) else answer)[0]),
    )


def records(model: Model) -> Request:
    """Rows as records, answered with `probabilities` (the servers with an ONNX session)."""
    return Request(
        "/predict",
        [_dump({"instances": [row]}) for row in model.rows],
        lambda answer: list(answer["probabilities"][0]),
    )


def mlserver(model: Model) -> Request:
    """Open Inference Protocol in JSON: one tensor, or one for each column of a frame."""
    return Request(
        f"/v2/models/{model.name}/infer",
        [_dump(_inference(model, row)) for row in model.rows],
        lambda answer: list(answer["outputs"][0]["data"]),
    )


def _inference(model: Model, row: Row) -> Row:
    outputs = [{"name": "predict_proba"}]
    if model.columns is None:
        tensor = {
            "name": "rows",
            "shape": [1, len(row)],
            "datatype": "FP64",
            "data": list(row.values()),
            "parameters": {"content_type": "np"},
        }
        return {"inputs": [tensor], "outputs": outputs}
    columns = [
        {
            "name": name,
            "shape": [1, 1],
            "datatype": "FP64" if model.columns[name] == "float64" else "BYTES",
            "data": [value],
            "parameters": {"content_type": "np" if model.columns[name] == "float64" else "str"},
        }
        for name, value in row.items()
    ]
    return {"parameters": {"content_type": "pd"}, "inputs": columns, "outputs": outputs}


def mlflow(model: Model) -> Request:
    if model.columns is None:
        bodies: list[Row] = [{"inputs": [list(row.values())]} for row in model.rows]
    else:
        bodies = [
            {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}} for row in model.rows
        ]
    return Request(
        "/invocations", [_dump(body) for body in bodies], lambda answer: list(answer["predictions"][0])
    )


def _values(model: Model, row: Row) -> Any:
    return row if model.columns else list(row.values())


def _dump(body: object) -> str:
    return json.dumps(body, separators=(",", ":"))
