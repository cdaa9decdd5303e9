"""Time to decode and encode one row of 30 features, and 10,000 rows by format.

    python -m benchmarks.codec [--json]

Ratios to pydantic and to a plain msgspec decode (parsing and type check, without numpy) can be compared
between machines, absolute times cannot.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pydantic

from registry.rows import Outputs
from registry.signature import Input, Output, Signature
from service.runtime.codec import MAX_INSTANCES, Codec

NAMES = [f"mean radius {i}" for i in range(30)]
CLASSES = ("malignant", "benign")
NUMERIC = Signature(
    "classification",
    tuple(Input(n, "float64") for n in NAMES),
    (Output("label", "string", (-1,), CLASSES), Output("probabilities", "float32", (-1, 2), CLASSES)),
)
MIXED = Signature(
    "classification",
    (*NUMERIC.inputs[:20], *(Input(n, "string", nullable=True) for n in NAMES[20:])),
    NUMERIC.outputs,
)


def microseconds(call: Callable[[], object], number: int) -> float:
    """Return the fastest of seven repeats: slower ones measured other load on the machine."""
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1e6


def instance(signature: Signature) -> dict[str, Any]:
    return {
        f.name: f"word {i}" if f.dtype == "string" else i * 1.37 + 0.123
        for i, f in enumerate(signature.inputs)
    }


def body(signature: Signature, rows: int) -> bytes:
    return json.dumps({"instances": [instance(signature)] * rows}).encode()


def outputs(rows: int) -> Outputs:
    first = np.random.default_rng(0).random(rows, dtype=np.float32)
    labels = np.where(first > 0.5, *CLASSES).astype(object)
    return {"label": labels, "probabilities": np.stack([first, 1 - first], axis=1)}


def one_row() -> dict[str, float]:
    codec, raw, answer = Codec(NUMERIC), body(NUMERIC, 1), outputs(1)
    fields: Any = {f"f{i}": (float, pydantic.Field(alias=n)) for i, n in enumerate(NAMES)}
    row = pydantic.create_model("Row", __config__=pydantic.ConfigDict(extra="forbid", strict=True), **fields)
    body_model = pydantic.create_model("Body", instances=(list[row], ...))  # type: ignore[valid-type]
    struct = msgspec.defstruct(
        "Row", [(f"f{i}", float) for i in range(30)], rename=dict(zip(fields, NAMES, strict=True))
    )
    bare = msgspec.json.Decoder(msgspec.defstruct("Body", [("instances", list[struct])]))  # type: ignore[valid-type]
    mixed, mixed_raw = Codec(MIXED), body(MIXED, 1)
    return {
        "decode_json": microseconds(lambda: codec.decode_json(raw), 20_000),
        "decode_json, 10 of 30 strings": microseconds(lambda: mixed.decode_json(mixed_raw), 5_000),
        "encode_json": microseconds(lambda: codec.encode_json(answer, "fraud", 3, "01J"), 20_000),
        "pydantic validate_json": microseconds(lambda: body_model.model_validate_json(raw), 20_000),
        "plain msgspec decode": microseconds(lambda: bare.decode(raw), 20_000),
    }


def many_rows() -> dict[str, float]:
    codec, mixed, answer = Codec(NUMERIC), Codec(MIXED), outputs(MAX_INSTANCES)
    raw, mixed_raw = body(NUMERIC, MAX_INSTANCES), body(MIXED, MAX_INSTANCES)
    values = instance(NUMERIC)
    lines = ",".join(NAMES) + "\n" + (",".join(map(str, values.values())) + "\n") * MAX_INSTANCES
    sink = pa.BufferOutputStream()
    table = pa.table({n: np.full(MAX_INSTANCES, v) for n, v in values.items()})
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    csv, arrow = lines.encode(), sink.getvalue().to_pybytes()
    calls: dict[str, Callable[[], object]] = {
        "decode_json": lambda: codec.decode_json(raw),
        "decode_json, 10 of 30 strings": lambda: mixed.decode_json(mixed_raw),
        "decode_csv": lambda: codec.decode_csv(csv),
        "decode_arrow": lambda: codec.decode_arrow(arrow),
        "encode_json": lambda: codec.encode_json(answer, "fraud", 3, "01J"),
        "encode_csv": lambda: codec.encode_csv(answer),
        "encode_arrow": lambda: codec.encode_arrow(answer),
    }
    return {name: MAX_INSTANCES / microseconds(call, 2) * 1e6 for name, call in calls.items()}


def main() -> None:
    row_us, rows_per_s = one_row(), many_rows()
    if "--json" in sys.argv[1:]:
        print(json.dumps({"one_row_us": row_us, "rows_per_s": rows_per_s}))
        return
    print("one row of 30 features          us   x pydantic   x msgspec")
    for name, us in row_us.items():
        ratios = (us / row_us["pydantic validate_json"], us / row_us["plain msgspec decode"])
        print(f"{name:<30}{us:>6.2f}{ratios[0]:>11.2f}{ratios[1]:>12.2f}")
    print(f"\n{MAX_INSTANCES:,} rows                       rows/s")
    for name, rate in rows_per_s.items():
        print(f"{name:<30}{rate:>12,.0f}")


if __name__ == "__main__":
    main()
