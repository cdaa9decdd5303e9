"""What answers predict calls: the table of nodes of a tree ensemble, or the version's own runtime."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

import service.runtime
from registry import db
from registry.artifacts import Store
from registry.errors import Unavailable
from registry.rows import Rows
from registry.tables import ModelRow, VersionRow
from service.config import Settings
from service.runtime import kernel_code
from service.runtime.isolated_runtime import IsolatedChild, Isolation
from service.runtime.loading import ModelLoader
from service.runtime.pool import Pool


def refuse_to_fork() -> IsolatedChild:
    raise Unavailable("this test starts no child")


NO_CHILDREN = Isolation(refuse_to_fork, memory_mb=0, deadline_s=30.0)
ROWS = Rows(matrix=np.random.default_rng(0).normal(size=(50, 3)))


class Site:
    """The models of a data directory, which a test may change."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self._engine = db.connect(self.settings.url)
        self.sessions, self.store = db.sessions(self._engine), Store(self.settings.blobs)
        self.load = ModelLoader(self.sessions, self.store, NO_CHILDREN)
        with self.sessions() as session:
            query = select(VersionRow).join(ModelRow).where(ModelRow.name == "forest")
            version = session.scalars(query).one()
            self.forest, self.table = version.id, version.forest

    @contextmanager
    def changed(self) -> Iterator[VersionRow]:
        with self.sessions.begin() as session:
            yield session.get_one(VersionRow, self.forest)

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture
def site(home: Path) -> Iterator[Site]:
    kernel_code.load_or_compile()
    site = Site(home)
    yield site
    site.close()


def test_a_tree_ensemble_answers_from_its_table_as_its_onnx_graph_does(site: Site) -> None:
    model = site.load(site.forest)
    assert (model.kind, model.waits_for_kernel) == ("forest", False)
    assert model.is_cheap(1)
    with site.changed() as version:
        version.fallback = "online"  # a check found that the table differs
    onnx = site.load(site.forest)
    assert (onnx.kind, onnx.waits_for_kernel) == ("onnx", False)
    answers, expected = model.run(ROWS), onnx.run(ROWS)
    assert answers["label"].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(answers["probabilities"], expected["probabilities"], atol=1e-9)


def test_a_table_answers_instead_of_an_isolated_process(site: Site) -> None:
    with site.changed() as version:
        version.runtime, version.servable = "isolated", None
    assert site.load(site.forest).kind == "forest"
    with site.changed() as version:
        version.fallback = "online"
    with pytest.raises(Unavailable, match="this test starts no child"):
        site.load(site.forest)


def test_the_versions_own_runtime_answers_instead_of_a_damaged_table(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.table is not None
    path = site.store.path(site.table)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert site.load(site.forest).kind == "onnx"
    path.unlink()
    assert site.load(site.forest).kind == "onnx"
    assert capsys.readouterr().out.count("forest.not_loaded") == 2


def test_the_versions_own_runtime_answers_on_a_machine_that_llvm_does_not_support(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "service.runtime.kernel_code", None)
    monkeypatch.delattr(service.runtime, "kernel_code")
    model = site.load(site.forest)
    assert (model.kind, model.waits_for_kernel) == ("onnx", False)


@pytest.mark.anyio
async def test_the_table_answers_once_its_kernel_is_compiled_and_no_call_fails_or_waits(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = kernel_code.code_file().read_bytes()
    monkeypatch.setattr(kernel_code, "_loaded", None)
    monkeypatch.setattr(kernel_code, "code_file", lambda: tmp_path / "kernel.o")
    pool = Pool(site.load, 1 << 30)
    try:
        before = await pool.get(site.forest)
        assert (before.kind, before.waits_for_kernel) == ("onnx", True)
        pool.use_compiled_kernel()
        assert await pool.get(site.forest) is before
        expected = before.run(ROWS)["label"].tolist()
        kept = await pool.acquire(site.forest)
        (tmp_path / "kernel.o").write_bytes(code)
        pool.use_compiled_kernel()
        kinds: list[str] = []
        while kinds[-1:] != ["forest"]:
            entry = pool.acquire_loaded(site.forest)
            assert entry is not None, "a call would wait"
            kinds.append(entry.model.kind)
            assert entry.model.run(ROWS)["label"].tolist() == expected
            pool.release(entry)
            await asyncio.sleep(0)
        assert before.run(ROWS)["label"].tolist() == expected, "it is open until its last user releases it"
        pool.release(kept)
        pool.use_compiled_kernel()
        assert pool.loaded() == [await pool.get(site.forest)]
    finally:
        await pool.close()
