"""The recorder of fsyncs, renames and commits notices each missing step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from registry.artifacts import fsync_directory
from tests.harness.durability import Event, recorded


def _write(partial: Path, *, flush: bool = True, fsync: bool = True) -> None:
    with partial.open("wb") as file:
        file.write(b"content")
        if flush:
            file.flush()
        if fsync:
            os.fsync(file.fileno())


def _save(target: Path) -> None:
    _write(target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)
    fsync_directory(target.parent)


def _save_without_flush(target: Path) -> None:
    _write(target.with_suffix(".part"), flush=False)
    target.with_suffix(".part").rename(target)
    fsync_directory(target.parent)


def _save_without_fsync(target: Path) -> None:
    _write(target.with_suffix(".part"), fsync=False)
    target.with_suffix(".part").rename(target)
    fsync_directory(target.parent)


def _save_without_fsync_of_the_directory(target: Path) -> None:
    _write(target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)


def _fsync_the_directory_before_the_rename(target: Path) -> None:
    _write(target.with_suffix(".part"))
    fsync_directory(target.parent)
    target.with_suffix(".part").rename(target)


def _fsync_after_the_rename(target: Path) -> None:
    _write(target.with_suffix(".part"), fsync=False)
    target.with_suffix(".part").rename(target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    fsync_directory(target.parent)


def _write_at_the_final_path(target: Path) -> None:
    _write(target)
    fsync_directory(target.parent)


def test_a_file_that_is_fsynced_and_renamed_is_saved(tmp_path: Path) -> None:
    with recorded() as log:
        _save(tmp_path / "file")
    assert log.saved(tmp_path / "file") == len(log.events) - 1
    assert log.steps(tmp_path) == ["fsync file.part", "rename file.part -> file", "fsync ."]


@pytest.mark.parametrize(
    "save",
    [
        _save_without_flush,
        _save_without_fsync,
        _save_without_fsync_of_the_directory,
        _fsync_the_directory_before_the_rename,
        _fsync_after_the_rename,
        _write_at_the_final_path,
    ],
)
def test_each_missing_or_early_step_is_noticed(save: Callable[[Path], None], tmp_path: Path) -> None:
    with recorded() as log:
        save(tmp_path / "file")
    with pytest.raises(AssertionError, match=r"missing|before"):
        log.saved(tmp_path / "file")


def test_commits_are_recorded_with_the_tables_that_they_change(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'db'}")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE part (number INTEGER)"))
    with recorded() as log:
        with engine.begin() as connection:
            connection.execute(text("SELECT * FROM part"))
        with engine.connect() as connection:
            connection.execute(text("DELETE FROM part"))
            connection.rollback()
        _save(tmp_path / "file")
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO part VALUES (1)"))
    assert log.saved(tmp_path / "file") < log.committed("part")
    assert [e.tables for e in log.events if e.kind == "commit"] == [{"part"}]


def test_an_observer_can_let_a_step_fail(tmp_path: Path) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == "fsync":
            raise OSError(5, "Input/output error")

    with recorded(break_disk) as log, pytest.raises(OSError, match="Input/output"):
        _save(tmp_path / "file")
    assert log.steps(tmp_path) == []
    assert not (tmp_path / "file").exists()
