"""Which runtime scores a version in bulk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from registry import db
from registry.artifacts import Store
from registry.errors import NotReady, Unavailable
from registry.rows import Rows
from registry.tables import ModelRow, VersionRow
from service.config import Settings
from service.runtime.bulk import BatchLoader, is_shared
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.isolated_runtime import IsolatedSpec, SpawnedChild
from service.runtime.loading import look_up, start
from service.runtime.onnx_runtime import OnnxRuntime


def no_children(spec: IsolatedSpec) -> SpawnedChild:
    raise Unavailable(f"{spec.format} would have a process of its own")


@pytest.fixture
def sessions(published_home: Path) -> Iterator[db.Sessions]:
    engine = db.connect(Settings(home=published_home).url)
    yield db.sessions(engine)
    engine.dispose()


@pytest.fixture
def store(published_home: Path) -> Store:
    return Store(Settings(home=published_home).blobs)


def version(sessions: db.Sessions, model: str) -> int:
    with sessions() as session:
        found = select(VersionRow.id).join(ModelRow).where(ModelRow.name == model, VersionRow.number == 1)
        return int(session.scalars(found).one())


def test_a_forest_is_scored_from_its_table_and_answers_as_online(sessions: db.Sessions, store: Store) -> None:
    version_id = version(sessions, "forest")
    runtime = BatchLoader(sessions, store, no_children, 30.0)(version_id)
    online = start(look_up(sessions, version_id), store, no_children, 30.0)
    assert isinstance(runtime, ForestRuntime)
    assert isinstance(online, OnnxRuntime)
    assert is_shared(runtime)
    rows = Rows(matrix=np.random.default_rng(0).normal(size=(50, 3)))
    answered, expected = runtime.run(rows), online.run(rows)
    assert answered["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(answered["probabilities"], expected["probabilities"], atol=1e-9)


def test_what_has_no_table_runs_as_it_does_online(sessions: db.Sessions, store: Store) -> None:
    load = BatchLoader(sessions, store, no_children, 30.0)
    assert isinstance(load(version(sessions, "ridge")), OnnxRuntime)
    with pytest.raises(Unavailable, match="sklearn-joblib would have a process"):
        load(version(sessions, "naps"))


def test_a_version_that_was_deleted_is_not_ready(sessions: db.Sessions, store: Store) -> None:
    with pytest.raises(NotReady, match="deleted"):
        BatchLoader(sessions, store, no_children, 30.0)(10**6)
