"""Properties that hold for every signature and every body."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.rows import Rows
from registry.signature import MAX_SAFE_INTEGER, Input, Output, Signature
from service.runtime.codec import Codec
from service.runtime.codec.columns import FLOAT32_MAX, MAX_FAULTS
from service.runtime.codec.json import FAST_DECODER_ERRORS

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = st.lists(TEXT, min_size=1, max_size=5, unique=True)
DTYPES = st.sampled_from(["float64", "float32", "int64", "bool", "string"])
CATEGORIES: dict[str, tuple[Any, ...]] = {
    "float64": (0.5, 1.0),
    "float32": (0.1, 1.0),
    "int64": (1, 2),
    "bool": (True,),
    "string": ("a", "é b"),
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "float32": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "int64": st.integers(-MAX_SAFE_INTEGER, MAX_SAFE_INTEGER),
    "bool": st.booleans(),
    "string": TEXT.filter(bool),
}
ARROW = {
    "float64": pa.float64(),
    "float32": pa.float32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
EDGES = st.sampled_from(
    [
        2**63,
        -(2**63) - 1,
        2**64,
        10**400,
        1e39,
        -1e39,
        FLOAT32_MAX,
        39.0,
        39.5,
        1e19,
        -0.0,
        1e308,
        "a",
        "é b",
        0.1,
        1,
        True,
    ]
)


@st.composite
def inputs(draw: Any) -> tuple[Input, ...]:
    features_drawn = []
    for name in draw(NAMES):
        dtype = draw(DTYPES)
        closed = draw(st.booleans()) and draw(st.booleans())
        features_drawn.append(
            Input(name, dtype, draw(st.booleans()), CATEGORIES[dtype] if closed else None, closed)
        )
    return tuple(features_drawn)


def codec(features: tuple[Input, ...]) -> Codec:
    return Codec(Signature("regression", features, (Output("value", "float64", (-1,)),)))


def good(feature: Input) -> st.SearchStrategy[Any]:
    values = st.sampled_from(feature.categories) if feature.categories else VALUES[feature.dtype]
    return values | st.none() if feature.nullable else values


@st.composite
def tables(draw: Any) -> tuple[tuple[Input, ...], list[dict[str, Any]]]:
    features = draw(inputs())
    return features, draw(
        st.lists(st.fixed_dictionaries({f.name: good(f) for f in features}), min_size=1, max_size=5)
    )


def same(first: Rows, second: Rows) -> bool:
    def arrays(rows: Rows) -> tuple[Any, ...]:
        return (rows.matrix,) if rows.matrix is not None else rows.columns or ()

    pairs = zip(arrays(first), arrays(second), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype != object) for a, b in pairs)


def check(error: Invalid) -> None:
    """Check that the error names its faults in text that can be sent as UTF-8."""
    assert 1 <= len(error.errors) <= MAX_FAULTS
    json.dumps([(e.message, e.field, e.expected) for e in error.errors], ensure_ascii=False).encode()


def decoded_fast(signature_codec: Codec, body: bytes) -> Rows | None:
    try:
        return signature_codec._json.decode_fast(body)
    except FAST_DECODER_ERRORS:
        return None


def decoded(signature_codec: Codec, body: bytes) -> Rows | None:
    try:
        return signature_codec._json.decode_slowly(body)
    except Invalid as error:
        check(error)
        return None


@settings(max_examples=150, deadline=None)
@given(tables())
def test_json_csv_and_arrow_of_one_table_are_the_same_rows(table: Any) -> None:
    features, instances = table
    signature_codec = codec(features)
    rows = signature_codec.decode_json(json.dumps({"instances": instances}).encode())
    assert len(rows) == len(instances)

    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in reversed(features)])
    writer.writeheader()
    writer.writerows(instances)
    assert same(rows, signature_codec.decode_csv(text.getvalue().encode()))

    columns = [pa.array([i[f.name] for i in instances], ARROW[f.dtype]) for f in features]
    out = pa.BufferOutputStream()
    arrow = pa.table(columns, names=[f.name for f in features])
    with pa.ipc.new_stream(out, arrow.schema) as stream:
        stream.write_table(arrow, max_chunksize=2)
    assert same(rows, signature_codec.decode_arrow(out.getvalue().to_pybytes()))


@settings(max_examples=150, deadline=None)
@given(tables())
def test_rows_hold_the_values_of_the_body(table: Any) -> None:
    features, instances = table
    rows = codec(features).decode_json(json.dumps({"instances": instances}).encode())
    for j, feature in enumerate(features):
        column = rows.columns[j] if rows.columns is not None else rows.matrix[:, j]  # type: ignore[index]
        for instance, actual in zip(instances, column.tolist(), strict=True):
            expected = instance[feature.name]
            if expected is None:
                assert actual is None or np.isnan(actual)
            elif feature.dtype == "string":
                assert actual == expected
            else:
                exact = column.dtype.kind in "ib"
                assert actual == (
                    expected
                    if exact
                    else float(np.float32(expected))
                    if feature.dtype == "float32"
                    else float(expected)
                )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_fast_decoder_accepts_exactly_what_the_slow_decoder_accepts(data: Any) -> None:
    features = data.draw(inputs())
    signature_codec = codec(features)
    assume(signature_codec._json.decoder is not None)
    fields: dict[str, st.SearchStrategy[Any]] = {f.name: good(f) for f in features}
    for feature in features:
        if data.draw(st.booleans()):
            fields[feature.name] = good(feature) | EDGES | JSON
    unknown = data.draw(st.lists(TEXT, max_size=1).map(lambda names: set(names) - set(fields)))
    shape = st.fixed_dictionaries(fields, optional=dict.fromkeys(unknown, JSON))
    instances = data.draw(st.lists(shape, max_size=3))
    body = json.dumps({"instances": instances}).encode()
    fast, slow = decoded_fast(signature_codec, body), decoded(signature_codec, body)
    assert (fast is None) == (slow is None)
    if fast is not None and slow is not None:
        assert same(fast, slow)


@settings(max_examples=150, deadline=None)
@given(inputs(), JSON, st.booleans())
def test_any_json_is_decoded_or_rejected_as_invalid(
    features: tuple[Input, ...], value: Any, wrap: bool
) -> None:
    signature_codec = codec(features)
    body = json.dumps(
        {"instances": value if isinstance(value, list) else [value]} if wrap else value
    ).encode()
    assert (decoded_fast(signature_codec, body) is None) == (
        decoded(signature_codec, body) is None
    ) or signature_codec._json.decoder is None


@settings(max_examples=150, deadline=None)
@given(
    inputs(), st.binary(max_size=80) | st.text(max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_decoded_or_rejected_as_invalid(features: tuple[Input, ...], body: bytes) -> None:
    signature_codec = codec(features)
    for decode in (signature_codec.decode_json, signature_codec.decode_csv, signature_codec.decode_arrow):
        try:
            assert len(decode(body)) >= 1
        except Invalid as error:
            check(error)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4, unique=True), st.data())
def test_answers_contain_the_outputs_in_every_format(classes: list[str], data: Any) -> None:
    n = data.draw(st.integers(1, 4))
    labels = data.draw(st.lists(st.sampled_from(classes), min_size=n, max_size=n))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    rows = data.draw(
        st.lists(st.lists(numbers, min_size=len(classes), max_size=len(classes)), min_size=n, max_size=n)
    )
    signature_codec = Codec(
        Signature(
            "classification",
            (Input("x", "float64"),),
            (
                Output("label", "string", (-1,), tuple(classes)),
                Output("probabilities", "float64", (-1, len(classes)), tuple(classes)),
            ),
        )
    )
    outputs = {"label": np.array(labels, dtype=object), "probabilities": np.array(rows)}
    expected = [
        {"label": a, "probabilities": dict(zip(classes, p, strict=True))}
        for a, p in zip(labels, rows, strict=True)
    ]
    assert json.loads(signature_codec.encode_json(outputs, "m", 1, "id"))["predictions"] == expected

    flat = [[a, *p] for a, p in zip(labels, rows, strict=True)]
    header, *lines = csv.reader(io.StringIO(signature_codec.encode_csv(outputs).decode(), newline=""))
    assert header == ["label", *(f"probability.{c}" for c in classes)]
    assert [[line[0], *map(float, line[1:])] for line in lines] == flat
    arrow = pa.ipc.open_stream(signature_codec.encode_arrow(outputs)).read_all()
    assert [list(r.values()) for r in arrow.to_pylist()] == flat
