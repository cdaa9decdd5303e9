"""Key files of the TUF roles are durable before anything depends on them, and no valid key is lost."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from registry.errors import Conflict
from registry.tuf_documents import ROLES
from service.edge.tuf_keys import RoleKeys, read_signer
from service.edge.tuf_repository import TufRepository
from tests.harness.durability import Event, recorded
from tests.service.edge.tuf_registry import Registry


@pytest.fixture
def keys(tmp_path: Path) -> RoleKeys:
    return RoleKeys(tmp_path / "tuf")


def _keyid(path: Path) -> str:
    keyid: str = read_signer(path).public_key.keyid
    return keyid


def _rotated(keys: RoleKeys) -> tuple[str, str]:
    """Create a key of root and its successor; return their ids."""
    first = keys.create("root").public_key.keyid
    return first, keys.create("root", [first]).public_key.keyid


def test_a_new_key_is_fsynced_before_its_rename_and_its_directories_are_fsynced(keys: RoleKeys) -> None:
    with recorded() as log:
        keys.create("root")
    assert log.entry_synced(keys.directory) < log.saved(keys.path("root"))
    assert log.steps(keys.directory, "fsync", "rename") == [
        "fsync root.partial",
        "rename root.partial -> root.pem",
        "fsync .",
    ]


def test_the_file_of_a_key_has_mode_0600_from_its_first_byte(keys: RoleKeys, tmp_path: Path) -> None:
    keys.directory.mkdir()
    (keys.directory / "root.partial").touch(0o644)  # of a killed process
    with recorded() as log:
        keys.create("root")
        keys.move_offline("root", tmp_path / "stick")
    opened = [event for event in log.events if event.kind == "open"]
    assert [(event.path.name, event.bytes, event.mode) for event in opened] == [
        ("root.partial", 0, 0o600),
        ("root.partial", 0, 0o600),
    ]


def test_the_directories_of_keys_are_closed_to_others(keys: RoleKeys, tmp_path: Path) -> None:
    keys.create("root")
    keys.move_offline("root", tmp_path / "stick")
    for directory in (keys.directory, tmp_path / "stick"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_previous_key_is_renamed_before_the_new_one_takes_its_path(keys: RoleKeys) -> None:
    first = keys.create("root").public_key.keyid
    with recorded() as log:
        second = keys.create("root", [first]).public_key.keyid
    assert [signer.public_key.keyid for signer in keys.load("root")] == [second, first]
    assert log.saved(keys.path("root")) == log.entry_synced(keys.previous_path("root"))
    assert log.position("rename", keys.previous_path("root")) < log.position("rename", keys.path("root"))


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_key_that_cannot_be_written_leaves_the_valid_one(keys: RoleKeys, step: str) -> None:
    valid = keys.create("root").public_key.keyid

    def break_disk(event: Event) -> None:
        if event.kind == step and event.path != keys.previous_path("root"):
            raise OSError(28, "No space left on device")

    with recorded(break_disk), pytest.raises(OSError, match="No space"):
        keys.create("root", [valid])
    assert [signer.public_key.keyid for signer in keys.load("root")] == [valid]
    assert not (keys.directory / "root.partial").exists()


def test_a_key_is_durable_at_its_new_path_before_the_old_files_are_deleted(
    keys: RoleKeys, tmp_path: Path
) -> None:
    _, keyid = _rotated(keys)
    with recorded() as log:
        target = keys.move_offline("root", tmp_path / "usb" / "stick")
    assert _keyid(target) == keyid
    assert log.entry_synced(target.parent) < log.saved(target)
    assert log.saved(target) < log.position("unlink", keys.path("root"))
    assert log.saved(target) < log.position("unlink", keys.previous_path("root"))
    assert list(keys.directory.iterdir()) == []


def test_the_deletion_of_a_key_that_moved_offline_is_fsynced(keys: RoleKeys, tmp_path: Path) -> None:
    _rotated(keys)
    with recorded() as log:
        keys.move_offline("root", tmp_path / "stick")
    for path in (keys.path("root"), keys.previous_path("root")):
        assert log.unlink_synced(path) == len(log.events) - 1


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_key_whose_copy_fails_stays_where_it_is(keys: RoleKeys, tmp_path: Path, step: str) -> None:
    keyid = keys.create("root").public_key.keyid

    def break_disk(event: Event) -> None:
        if event.kind == step and event.path.is_relative_to(tmp_path / "stick"):
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        keys.move_offline("root", tmp_path / "stick")
    assert _keyid(keys.path("root")) == keyid
    assert list((tmp_path / "stick").iterdir()) == []  # no copy of the key is left behind


def _rotate_without_commit(registry: Registry, role: str = "root") -> None:
    with registry.sessions() as session:
        TufRepository(session, registry.keys).rotate(role)
        session.rollback()


def test_rotations_that_are_rolled_back_lose_no_key(registry: Registry) -> None:
    registry.export(b"model")
    registry.sign()
    for _ in range(2):
        _rotate_without_commit(registry)
    with registry.sessions.begin() as session:
        assert TufRepository(session, registry.keys).rotate("root") == 2


@pytest.mark.parametrize("rotations", [0, 1])
def test_the_valid_key_moves_offline_after_a_rotation_that_was_rolled_back(
    registry: Registry, tmp_path: Path, rotations: int
) -> None:
    registry.export(b"model")
    registry.sign()
    for _ in range(rotations):
        with registry.sessions.begin() as session:
            TufRepository(session, registry.keys).rotate("root")
    valid = _keyid(registry.keys.path("root"))
    _rotate_without_commit(registry)
    with registry.sessions.begin() as session:
        moved = TufRepository(session, registry.keys).move_offline("root", tmp_path / "stick")
    assert _keyid(moved) == valid
    assert registry.keys.load("root") == []


def test_the_previous_key_moves_offline_when_the_new_one_was_not_written(
    keys: RoleKeys, tmp_path: Path
) -> None:
    """After a crash in `create`."""
    keyid = keys.create("root").public_key.keyid
    keys.path("root").rename(keys.previous_path("root"))
    assert _keyid(keys.move_offline("root", tmp_path / "stick")) == keyid
    assert list(keys.directory.iterdir()) == []


def test_a_valid_key_that_is_elsewhere_cannot_be_moved_offline(registry: Registry, tmp_path: Path) -> None:
    registry.export(b"model")
    registry.sign()
    registry.keys.path("root").rename(tmp_path / "root.pem")
    registry.keys.create("root")
    with registry.sessions.begin() as session, pytest.raises(Conflict, match="already moved offline"):
        TufRepository(session, registry.keys).move_offline("root", tmp_path / "stick")
    assert not (tmp_path / "stick").exists()


def test_a_new_key_is_durable_before_the_root_that_lists_it_is_committed(registry: Registry) -> None:
    registry.export(b"model")
    with recorded() as log:
        registry.sign()
        signed = log.committed("tuf_metadata")
        assert all(log.saved(registry.keys.path(role)) < signed for role in ROLES)
        with registry.sessions.begin() as session:
            TufRepository(session, registry.keys).rotate("targets")
    assert signed < log.saved(registry.keys.path("targets")) < log.committed("tuf_metadata", after=signed)
