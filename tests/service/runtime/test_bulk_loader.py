"""The runtime that scores a version in bulk."""

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
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.isolated_runtime import IsolatedChild, Isolation
from service.runtime.loading import BulkLoader, is_shared, read_runtime_spec, start_runtime
from service.runtime.onnx_runtime import OnnxRuntime


def refuse_to_fork() -> IsolatedChild:
    raise Unavailable("this test starts no child")


NO_CHILDREN = Isolation(refuse_to_fork, memory_mb=0, deadline_s=30.0)


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
        query = select(VersionRow.id).join(ModelRow).where(ModelRow.name == model, VersionRow.number == 1)
        return int(session.scalars(query).one())


def test_a_forest_is_scored_by_the_kernel_and_answers_as_online(sessions: db.Sessions, store: Store) -> None:
    version_id = version(sessions, "forest")
    runtime = BulkLoader(sessions, store, NO_CHILDREN)(version_id)
    online = start_runtime(read_runtime_spec(sessions, version_id), store, NO_CHILDREN)
    assert isinstance(runtime, ForestRuntime)
    assert isinstance(online, OnnxRuntime)
    assert is_shared(runtime)
    rows = Rows(matrix=np.random.default_rng(0).normal(size=(50, 3)))
    outputs, expected = runtime.run(rows), online.run(rows)
    assert outputs["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=1e-9)


def test_a_version_without_a_table_of_nodes_uses_the_online_runtime(
    sessions: db.Sessions, store: Store
) -> None:
    load = BulkLoader(sessions, store, NO_CHILDREN)
    assert isinstance(load(version(sessions, "ridge")), OnnxRuntime)
    with pytest.raises(Unavailable, match="this test starts no child"):
        load(version(sessions, "sleeper"))


def test_a_version_that_was_deleted_is_not_ready(sessions: db.Sessions, store: Store) -> None:
    with pytest.raises(NotReady, match="deleted"):
        BulkLoader(sessions, store, NO_CHILDREN)(10**6)


def test_a_table_of_nodes_that_differs_is_not_used(home: Path) -> None:
    settings = Settings(home=home)
    engine = db.connect(settings.url)
    sessions, store = db.sessions(engine), Store(settings.blobs)
    load, version_id = BulkLoader(sessions, store, NO_CHILDREN), version(sessions, "forest")

    def fall_back(fallback: str) -> None:
        with sessions.begin() as session:
            session.get_one(VersionRow, version_id).fallback = fallback

    fall_back("online")
    assert isinstance(load(version_id), OnnxRuntime)
    fall_back("isolated")
    with pytest.raises(Unavailable, match="this test starts no child"):
        load(version_id)
    fall_back("none")
    with pytest.raises(Unavailable, match="forest:1 is not served: since a library was upgraded"):
        load(version_id)
    engine.dispose()
