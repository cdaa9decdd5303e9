"""Catalog: each model with its champion, or else its newest ready version."""

from __future__ import annotations

import pytest

from registry import catalog, db, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.catalog import CatalogEntry
from registry.db import Sessions
from registry.errors import NotFound
from registry.signature import Signature
from tests.registry.helpers import SIGNATURE, build, promote, publish, publish_ready


def _listed(sessions: Sessions, name: str | None = None) -> list[tuple[str, int, str | None]]:
    with db.reading(sessions) as session:
        return [(e.name, e.version, e.alias) for e in catalog.entries(session, name)]


def test_entries_list_the_champion_or_else_the_newest_ready_version(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, "fraud", 3)
    publish_ready(sessions, store, "churn", 2)
    publish_ready(sessions, store, "spam", 2)
    publish(sessions, store, "spam")
    publish(sessions, store, "new")
    promote(sessions, 2)
    promote(sessions, 1, model="churn", alias="challenger")
    with sessions.begin() as session:
        versions.edit(session, "spam", 2, archived=True)
    expected = [("churn", 2, None), ("fraud", 2, "champion"), ("spam", 1, None)]
    assert _listed(sessions) == expected
    assert [_listed(sessions, name)[0] for name, *_ in expected] == expected


def test_an_entry_holds_the_fields_of_a_documentation_page(sessions: Sessions, store: Store) -> None:
    publish_ready(sessions, store, description="Scores payments")
    with db.reading(sessions) as session:
        (entry,) = catalog.entries(session)
    assert entry[:-1] == CatalogEntry("fraud", 1, None, "onnx", "Scores payments", {})[:-1]
    assert Signature.from_json(entry.signature) == SIGNATURE


def test_models_without_a_ready_version_are_not_listed(sessions: Sessions, store: Store) -> None:
    publish(sessions, store)
    build(sessions, BuildResult(state="rejected", report={"reason": "no"}))
    assert _listed(sessions) == []
    for name in ("fraud", "missing"):
        with pytest.raises(NotFound, match="model with a ready version"):
            _listed(sessions, name)
