"""Vocabularies: each literal type and its table have the same entries."""

from __future__ import annotations

from typing import get_args

from registry import vocabulary


def test_every_scope_has_a_description() -> None:
    assert tuple(vocabulary.SCOPES) == get_args(vocabulary.Scope)
    assert all(vocabulary.SCOPES.values())


def test_every_format_has_a_file_name_suffix() -> None:
    assert tuple(vocabulary.FORMAT_SUFFIXES) == vocabulary.FORMATS
    assert all(vocabulary.FORMAT_SUFFIXES.values())
