"""The table of column types."""

from __future__ import annotations

from decimal import Context, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.runtime.codec.arrow_types import (
    EXTENSION_NAME,
    FAMILIES,
    TypeFamily,
    TypeNotSupported,
    decode,
    family_of,
    feature_dtype,
    plain_type,
    to_dtype,
)
from tests.service.column_samples import SAMPLES, encodings


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.title)
def test_each_family_holds_its_types_in_every_encoding(family: TypeFamily) -> None:
    for array in SAMPLES[family.title]:
        for encoded in encodings(array):
            assert family_of(encoded.type) is family, encoded.type
            assert decode(encoded).type == plain_type(encoded.type)
            assert str(decode(encoded).to_pylist()) == str(array.to_pylist()), encoded.type


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.title)
def test_a_type_is_a_feature_or_refused_with_a_remedy(family: TypeFamily) -> None:
    for array in SAMPLES[family.title]:
        if family.dtype is not None:
            assert feature_dtype(array.type) == family.dtype
            column = to_dtype(array, family.dtype)
            assert column.null_count == array.null_count
        else:
            with pytest.raises(TypeNotSupported, match=r"are not features; .* before fitting"):
                feature_dtype(array.type)


def test_an_extension_type_that_is_not_registered_is_no_integer() -> None:
    period = pa.field("p", pa.int64(), metadata={EXTENSION_NAME: b"pandas.period"})
    with pytest.raises(TypeNotSupported, match=r"extension<pandas\.period>"):
        feature_dtype(period)


@pytest.mark.parametrize(
    ("kind", "largest"),
    [
        (pa.decimal32(9, 2), 10**9 - 1),
        (pa.decimal64(18, 2), 10**15),
        (pa.decimal64(18, 6), 10**18 - 1),
        (pa.decimal128(38, 0), 2**53),
        (pa.decimal128(38, 0), 2**63),
        (pa.decimal128(38, 22), 2**53 - 1),
        (pa.decimal128(38, 30), 10**15),
        (pa.decimal128(38, 10), 10**38 - 1),
        (pa.decimal128(20, -3), 10**15),
        (pa.decimal256(76, 4), 10**60),
    ],
    ids=str,
)
def test_decimals_become_the_nearest_float(kind: Any, largest: int) -> None:
    random = np.random.default_rng(0)
    digits = [int(largest * share) for share in [*random.uniform(-1, 1, 500).tolist(), 0, 1, -1]]
    decimals = [Decimal(n).scaleb(-kind.scale, Context(prec=100)) for n in digits]
    array = pa.array([None, *decimals, None], kind)
    for data in (array, array.slice(3, 90), pa.chunked_array([array.slice(7), array.slice(0, 0), array])):
        expected = [None if v is None else float(v) for v in data.to_pylist()]
        assert to_dtype(data, "float64").to_pylist() == expected


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**53 + 1, "float64"), (2**24 + 1, "float32"), (1.5, "int64"), (2**63, "int64")]
)
def test_a_conversion_that_changes_a_value_is_an_error(value: Any, dtype: Any) -> None:
    with pytest.raises(pa.ArrowInvalid):
        to_dtype(pa.array([value], pa.uint64() if value == 2**63 else None), dtype)


def test_a_sliced_run_end_encoded_column_keeps_its_rows() -> None:
    array = pa.RunEndEncodedArray.from_arrays(pa.array([2, 5, 6], pa.int32()), pa.array(["a", None, "b"]))
    assert decode(array.slice(1, 4)).to_pylist() == ["a", None, None, None]
    chunked = pa.chunked_array([array.slice(4), array.slice(0, 2)])
    assert decode(chunked).to_pylist() == [None, "b", "a", "a"]


def test_floats_are_rounded_to_float32() -> None:
    assert to_dtype(pa.array([0.1]), "float32").to_pylist() == [float(np.float32(0.1))]
