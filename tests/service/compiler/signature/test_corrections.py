"""Corrections of measured fields."""

from __future__ import annotations

from registry.signature import Input
from service.compiler.signature.corrections import Corrections

INPUTS = (Input("a", "int64", minimum=0, maximum=255, enforced=True), Input("b", "string", closed=True))


def test_measured_fields_that_agree_are_accepted_as_part_of_a_whole_signature() -> None:
    whole = {"inputs": [{"name": "a", "enforced": True, "closed": False}, {"name": "b", "closed": True}]}
    assert Corrections.read(whole).without_effect(INPUTS) == []


def test_a_given_value_of_a_measured_field_is_a_warning_when_it_has_no_effect() -> None:
    given = {"inputs": [{"name": "a", "closed": True, "enforced": False}, {"name": "b"}]}
    assert Corrections.read(given).without_effect(INPUTS) == [
        '"closed" of the input "a" is measured and stays false; the given true has no effect',
        '"enforced" of the input "a" is measured and stays true; the given false has no effect',
    ]
