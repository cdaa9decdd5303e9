"""Acceptance of trainings: their blobs are held against garbage collection."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from registry import garbage
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Invalid
from service.config import Settings
from service.submit import admission
from service.submit.train_admission import TrainAdmission
from tests.registry.interleaving import blobs_are_held, just_before, on_postgresql

ADMISSION = TrainAdmission()
FIELDS = ("estimator", "input", "then.input")


class Blobs:
    """Uploads of two days ago, and the specs that name them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.by_field = {field: store.put([field.encode()]).sha256 for field in FIELDS}
        for sha256 in self.by_field.values():
            os.utime(store.path(sha256), (1, 1))

    def spec(self, **fields: Any) -> dict[str, Any]:
        estimator, rows, then_rows = (
            {"artifact": self.by_field[field], "media_type": "text/csv"} for field in FIELDS
        )
        defaults = {
            "kind": "train",
            "estimator": estimator,
            "input": rows,
            "then": {"kind": "score", "input": then_rows},
            "publish": {"name": "learned"},
            "engine": "local",
            "max_attempts": 4,
        }
        return defaults | fields

    def collect_before_the_lock(self, sessions: Sessions, field: str) -> Callable[[], None]:
        """Return an action that collects the blob of `field` and keeps the others."""

        def collect() -> None:
            for other in set(FIELDS) - {field}:
                self.store.touch(self.by_field[other])
            with sessions.begin() as session:
                assert garbage.collect(session, self.store).blobs == [self.by_field[field]]

        return collect


@pytest.fixture
def blobs(store: Store) -> Blobs:
    return Blobs(store)


def _accept(session: Session, store: Store, settings: Settings, spec: dict[str, Any]) -> None:
    ADMISSION.accept(session, store, spec, None, by="ann")


def _check(session: Session, store: Store, settings: Settings, spec: dict[str, Any]) -> None:
    ADMISSION.check(session, settings, store, spec)


@on_postgresql
@pytest.mark.parametrize("step", [_accept, _check])
@pytest.mark.parametrize("field", FIELDS)
def test_a_training_whose_blob_was_collected_before_the_lock_is_rejected(
    engine: Engine,
    sessions: Sessions,
    store: Store,
    settings: Settings,
    blobs: Blobs,
    step: Callable[..., None],
    field: str,
) -> None:
    collect = blobs.collect_before_the_lock(sessions, field)
    with (
        just_before(engine, "pg_advisory_xact_lock_shared", collect),
        pytest.raises(Invalid, match="was not uploaded") as raised,
        sessions.begin() as session,
    ):
        step(session, store, settings, blobs.spec())
    assert [error.field for error in raised.value.errors] == [f"{field}.artifact"]


@on_postgresql
@pytest.mark.parametrize("step", [_accept, _check])
def test_the_blobs_of_a_training_are_held_until_the_transaction_ends(
    sessions: Sessions, store: Store, settings: Settings, blobs: Blobs, step: Callable[..., None]
) -> None:
    with sessions.begin() as session:
        step(session, store, settings, blobs.spec())
        assert blobs_are_held(sessions)
    assert not blobs_are_held(sessions)


@pytest.mark.parametrize("step", [_accept, _check])
def test_every_blob_of_a_training_is_as_good_as_new_once_it_is_accepted(
    sessions: Sessions, store: Store, settings: Settings, blobs: Blobs, step: Callable[..., None]
) -> None:
    with sessions() as session:
        step(session, store, settings, blobs.spec())
        session.rollback()
    with sessions.begin() as session:
        assert garbage.collect(session, store).blobs == []


def test_a_training_has_the_settings_of_its_spec(sessions: Sessions, store: Store, blobs: Blobs) -> None:
    spec = blobs.spec(then=None)
    with sessions.begin() as session:
        parent = ADMISSION.accept(session, store, spec, None, by="ann")
        job = ADMISSION.accept(session, store, spec, None, by="bob", schedule="weekly", parent_id=parent.id)
    assert (job.kind, job.state, job.model, job.version) == ("train", "queued", "learned", None)
    assert (job.engine, job.max_attempts, job.schedule, job.parent_id) == ("local", 4, "weekly", parent.id)
    assert (job.created_by, job.spec) == ("bob", spec)


def test_ray_must_be_installed_for_a_training_that_requires_it(
    sessions: Sessions, store: Store, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ray_is_installed", lambda: False)
    with pytest.raises(Invalid, match="Ray is not installed"), sessions.begin() as session:
        ADMISSION.accept(session, store, blobs.spec(engine="ray"), None, by="ann")


@pytest.mark.parametrize("field", ["input", "then.input"])
def test_a_scheduled_training_reads_only_inputs_inside_the_batch_roots(
    sessions: Sessions, store: Store, settings: Settings, blobs: Blobs, tmp_path: Path, field: str
) -> None:
    inside, outside = {"uri": f"{tmp_path}/data/rows.csv"}, {"uri": f"{tmp_path}/rows.csv"}
    place: dict[str, Any] = {"input": inside, "then": {"kind": "score", "input": inside}}
    with sessions.begin() as session:
        ADMISSION.check(session, settings, store, blobs.spec(**place))  # the file may be missing
    place |= {"input": outside} if field == "input" else {"then": {"kind": "score", "input": outside}}
    with pytest.raises(Invalid, match="outside the batch roots") as raised, sessions.begin() as session:
        ADMISSION.check(session, settings, store, blobs.spec(**place))
    assert [error.field for error in raised.value.errors] == [f"{field}.uri"]


def test_both_inputs_of_a_scheduled_training_are_examined_if_they_exist(
    store: Store, settings: Settings, blobs: Blobs, tmp_path: Path
) -> None:
    rows, then_rows = tmp_path / "data/rows.csv", tmp_path / "data/then.csv"
    spec = blobs.spec(
        input={"uri": str(rows)},
        then={"kind": "score", "input": {"uri": str(then_rows)}},
        target="y",
        exclude=[],
        dtypes={},
    )

    def examine() -> list[str]:
        return ADMISSION.examine_scheduled_job(settings, store, spec, None)

    assert len(examine()) == 2  # a warning for each missing file
    rows.write_text("x,y\n1,2\n")
    (warning,) = examine()
    assert "then.csv" in warning
    then_rows.write_text("z\n1\n")
    with pytest.raises(Invalid, match="the input of then has no column 'x'"):
        examine()
    with pytest.raises(Invalid, match="the input of then has no column 'x'"):
        ADMISSION.examine(settings, store, spec, None)
    then_rows.write_text("x\n1\n")
    assert examine() == []
    assert ADMISSION.examine(settings, store, spec, None) == (["x"], 0, 0, [])
    rows.write_text("x,z\n1,2\n")
    with pytest.raises(Invalid) as raised:
        examine()
    assert [error.field for error in raised.value.errors] == ["target"]
