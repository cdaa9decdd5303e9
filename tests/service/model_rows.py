"""Rows of models that were published elsewhere, without the time of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import inspect, select

from registry import aliases, db, revision, versions
from registry.tables import ModelRow, TagRow, VersionRow
from tests.registry.signatures import SIGNATURES


def add_models(home: Path, names: Sequence[str], alias: str | None = None) -> None:
    """Insert models with a ready version each, and an alias of it. Servers on `home` notice them."""
    engine = db.connect(f"sqlite:///{home / 'registry.db'}")
    signature = SIGNATURES["strings"].to_json()
    fields = {"format": "onnx", "artifact": "0" * 64, "state": "ready", "runtime": "onnx", "description": ""}
    more_fields = {"metrics": {}, "lineage": {}, "signature": signature, "servable": "0" * 64}
    with db.sessions(engine).begin() as session:
        for name in names:
            owner = ModelRow(name=name, last_number=1, created_by="test")
            session.add(owner)
            session.add(VersionRow(model=owner, number=1, created_by="test", **fields, **more_fields))
        session.flush()
        for name in names:
            revision.record_change(session, "model", name)
            if alias is not None:
                aliases.promote(session, name, alias, 1, by="test")
    engine.dispose()


def copy_version(
    home: Path,
    source: str,
    name: str,
    tags: Mapping[str, str] | None = None,
    number: int = 1,
    **changes: Any,
) -> None:
    """Insert a version of the model `source`, without its aliases and tags, as the next version of `name`.

    The model `name` is created if it does not exist. `tags` are the tags of the copy, `changes` the columns
    in which it differs.
    """
    engine = db.connect(f"sqlite:///{home / 'registry.db'}")
    with db.sessions(engine).begin() as session:
        built = versions.get(session, source, number)
        own = {"id", "model_id", "number"}
        fields = {c.key: getattr(built, c.key) for c in inspect(VersionRow).column_attrs if c.key not in own}
        owner = session.scalar(select(ModelRow).where(ModelRow.name == name))
        if owner is None:
            owner = ModelRow(name=name, last_number=0, created_by=built.created_by)
        owner.last_number += 1
        copied_tags = [TagRow(key=key, value=value) for key, value in (tags or {}).items()]
        session.add_all(
            [owner, VersionRow(model=owner, number=owner.last_number, tags=copied_tags, **fields | changes)]
        )
        session.flush()
        revision.record_change(session, "model", name)
    engine.dispose()
