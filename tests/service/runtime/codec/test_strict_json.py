"""The bound on the items of a JSON body."""

from __future__ import annotations

import json

import pytest

from registry.errors import Invalid
from service.runtime.codec.strict_json import max_items, read_body


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 50 + b"[]]",
        b"[" + b"{}," * 50 + b"{}]",
        b"[" + b"1," * 100 + b"1]",
        b"[" + b"[" * 60 + b"]" * 60 + b"," + b"[" * 60 + b"]" * 61,
        b"[" + b'"",' * 120 + b'""]',
    ],
    ids=["lists", "objects", "numbers", "nesting", "strings"],
)
def test_a_body_of_too_many_items_is_rejected_before_it_is_decoded(body: bytes) -> None:
    with pytest.raises(Invalid, match="more values than the rows of one call can have"):
        read_body(body, 100)


def test_marks_in_texts_are_no_items() -> None:
    texts = ["a, b, [c], {d}" * 20, 'quoted "e, f, g" \\', ",,,"]
    assert read_body(json.dumps(texts).encode(), 10) == texts


def test_a_full_table_is_within_the_bound_in_every_form() -> None:
    rows, names = 50, ["a", "b", "c"]
    limit = max_items(rows, len(names))
    for value in (
        [[[1.5]] * rows for _ in names],
        [{name: [1.5] for name in names} for _ in range(rows)],
        [[1.5] * len(names)] * rows,
    ):
        assert read_body(json.dumps({"instances": value}).encode(), limit)
