"""Rows in the log equal what callers sent and what the model answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from registry.rows import Rows
from registry.signature import Input, Output, Signature
from service.prediction_log.log_tables import LogTable
from service.runtime.codec import Codec
from tests.registry.signatures import MIXED, SIGNATURES
from tests.service.prediction_log.calls import (
    RecordedCall,
    decode,
    outputs_of,
    read,
    simple_call,
    write_calls,
)

NUMBERS_SENT = [{"x0": 0.1, "x1": None}, {"x0": -3.5, "x1": 1e300}, {"x0": 2, "x1": 7}]
MIXED_SENT = [
    dict(zip([i.name for i in MIXED], row, strict=True))
    for row in (
        (17.99, None, "FR", None, 2, True, 0.5),
        (1e-300, 2**53 - 1, "DE", "", None, False, -2.25),
        (0.1, -40, "FR", "Zürich \U0001f600\n", 1, True, 3.4028234663852886e38),
    )
]


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_every_row_equals_what_was_sent_and_answered(name: str, tmp_path: Path) -> None:
    signature = SIGNATURES[name]
    sent = MIXED_SENT if signature.inputs == MIXED else NUMBERS_SENT
    calls, answers = [], []
    for index, instances in enumerate((sent, sent[:1], sent[1:], sent[2:])):
        outputs = outputs_of(signature, len(instances), index)
        rows = decode(signature, instances)
        calls.append(RecordedCall(index + 1.0, f"pred-{index}", None, "r", len(instances), rows, outputs))
        body = Codec(signature).encode_json(outputs, "m", 1, "")
        answers += [
            (index, row, i, p) for row, (i, p) in enumerate(zip(instances, _predictions(body), strict=True))
        ]
    write_calls(tmp_path, calls, "a-1", signature=signature)
    logged = read(tmp_path)
    assert len(logged) == len(answers) == 7
    for row, (index, number, instance, prediction) in zip(logged, answers, strict=True):
        assert (row["id"], row["row"], row["alias"], row["request_id"]) == (
            f"pred-{index}",
            number,
            None,
            "r",
        )
        assert row["version"] == 1
        assert {k.removeprefix("input."): v for k, v in row.items() if k.startswith("input.")} == instance
        assert {k.removeprefix("output."): v for k, v in row.items() if k.startswith("output.")} == prediction


def _predictions(body: bytes) -> list[dict[str, Any]]:
    """The predictions of an answer in JSON, with the columns of a CSV answer."""
    return [_flat(prediction) for prediction in msgspec.json.decode(body)["predictions"]]


def _flat(prediction: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key, value in prediction.items():
        name = prefix + {"probabilities": "probability", "values": "value"}.get(key, key)
        if isinstance(value, dict):
            columns |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            columns |= {f"{name}.{index}": item for index, item in enumerate(value)}
        else:
            columns[name] = value
    return columns


def test_integers_keep_their_value_beyond_the_precision_of_floats(tmp_path: Path) -> None:
    inputs = (Input("n", "int64"), Input("s", "string"))
    signature = Signature("regression", inputs, (Output("value", "float64", (-1,)),))
    large = 2**53 + 1
    calls = []
    for numbers in (np.array([large]), np.array([4.0])):  # the dtypes of two decoders
        rows = Rows(columns=(numbers, np.array(["a"], object)))
        calls.append(RecordedCall(1.0, "p", None, None, 1, rows, {"value": np.array([1.0])}))
    write_calls(tmp_path, calls, "a-1", signature=signature)
    assert [row["input.n"] for row in read(tmp_path)] == [large, 4]


def test_chunks_are_one_table_whatever_calls_they_join() -> None:
    table = LogTable(1, SIGNATURES["strings"])
    rows = decode(SIGNATURES["strings"], MIXED_SENT)
    outputs = outputs_of(SIGNATURES["strings"], 3)
    call = RecordedCall(1.5, "p", "champion", None, 3, rows, outputs)
    one = table.table([table.chunk([call, call, call])])
    assert table.table([table.chunk([call]), table.chunk([call, call])]).equals(one)
    assert one.num_rows == 9


def test_rows_of_a_clock_that_was_set_back_are_in_the_order_of_time(tmp_path: Path) -> None:
    write_calls(tmp_path, [simple_call(3), simple_call(1), simple_call(2)], "a-1")
    assert [row["input.x"] for row in read(tmp_path)] == [1.0, 2.0, 3.0]
