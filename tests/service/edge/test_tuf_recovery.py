"""Signed documents after a restore from a backup, with python-tuf's own client as the device."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import BadVersionNumberError, DownloadHTTPError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from registry import db, tuf_documents
from registry.errors import Conflict, NotFound
from service.edge.tuf_keys import RoleKeys, read_signer
from service.edge.tuf_repository import Recovery, TufRepository, sign_targets
from tests.service.edge.tuf_registry import NAME, Registry


class StoredDocuments(FetcherInterface):
    """Answers a device from the registry, without a server."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def _fetch(self, url: str) -> Iterator[bytes]:
        *number, role, _ = url.rpartition("/")[2].split(".")
        with db.reading(self.registry.sessions) as session:
            try:
                stored = tuf_documents.get(session, role, int(number[0])) if number else None
            except NotFound as error:
                raise DownloadHTTPError(str(error), 404) from error
            yield (stored or tuf_documents.newest(session, role) or "").encode()


class Device:
    """A device, which keeps the documents that it has seen and trusts the first root."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        folder.mkdir()
        self.folder, self.root, self.registry = folder, registry.first_root(), registry

    def look(self) -> int:
        """Verify the documents; return the model's version in them."""
        updater = Updater(
            str(self.folder),
            "https://registry/",
            fetcher=StoredDocuments(self.registry),
            bootstrap=self.root,
        )
        updater.refresh()
        target = updater.get_targetinfo(NAME)
        assert target is not None
        number: int = target.unrecognized_fields["custom"]["version"]
        return number


class Backup:
    """A copy of a data directory, and the directory to which it is restored."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self._registry, self._folder = registry, folder
        registry.engine.dispose()
        shutil.copytree(registry.home, folder)

    def restore(self, keys: bool = True) -> None:
        """Put the copy in place, with or without its keys."""
        home = self._registry.home
        self._registry.engine.dispose()
        for file in home.glob("registry.db*"):
            file.unlink()
        shutil.copy(self._folder / "registry.db", home)
        if keys:
            shutil.rmtree(home / "tuf")
            shutil.copytree(self._folder / "tuf", home / "tuf")


@pytest.fixture
def backup(registry: Registry, tmp_path: Path) -> Backup:
    """The backup of a registry with one signed export."""
    registry.export(b"first")
    registry.sign()
    return Backup(registry, tmp_path / "backup")


@pytest.fixture
def new_device(registry: Registry, tmp_path: Path) -> Callable[[str], Device]:
    return lambda name: Device(tmp_path / name, registry)


NewDevice = Callable[[str], Device]


def change(registry: Registry, method: Callable[[TufRepository], object]) -> None:
    with registry.sessions.begin() as session:
        method(TufRepository(session, registry.keys))


def recover(registry: Registry, *root_keys: Path, now: datetime | None = None) -> Recovery:
    with registry.sessions.begin() as session:
        return TufRepository(session, registry.keys).recover([read_signer(k) for k in root_keys], 3, now)


def test_devices_refuse_a_restored_registry_until_it_is_recovered(
    registry: Registry, backup: Backup, new_device: NewDevice
) -> None:
    older, newer = new_device("older"), new_device("newer")
    assert older.look() == 1
    for content in (b"second", b"third"):
        registry.export(content)
        registry.sign()
        newer.look()
    backup.restore()
    with pytest.raises(BadVersionNumberError):
        newer.look()
    recovery = recover(registry)
    assert recovery.waiting == []
    assert recovery.versions == registry.versions()
    assert [older.look(), newer.look(), new_device("new").look()] == [1, 1, 1]
    registry.export(b"another second")
    registry.sign()
    assert [older.look(), newer.look()] == [2, 2]


def test_other_documents_with_the_same_versions_are_replaced(
    registry: Registry, backup: Backup, new_device: NewDevice
) -> None:
    """After a restore the registry signs the versions again that the device has seen, with other files."""
    device = new_device("device")
    registry.export(b"second")
    registry.sign()
    assert device.look() == 2
    backup.restore()
    for content in (b"another second", b"third"):
        registry.export(content, promote=content == b"third")
    registry.sign()
    assert registry.versions()["timestamp"] == 2
    assert device.look() == 2, "the documents from before the restore"
    recover(registry)
    assert device.look() == 3


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_devices_that_saw_a_rotated_key_accept_the_restored_one(
    registry: Registry, backup: Backup, new_device: NewDevice, role: str
) -> None:
    device = new_device("device")
    change(registry, lambda repository: repository.rotate(role))
    registry.export(b"second")
    registry.sign()
    assert device.look() == 2
    backup.restore()
    recovery = recover(registry)
    assert recovery.versions["root"] == 1 + 3
    assert [device.look(), new_device("new").look()] == [1, 1]


def test_keys_that_are_newer_than_the_database_are_listed(
    registry: Registry, backup: Backup, new_device: NewDevice
) -> None:
    older, newer = new_device("older"), new_device("newer")
    assert older.look() == 1
    for role in ("root", "timestamp"):
        change(registry, lambda repository, role=role: repository.rotate(role))  # type: ignore[misc]
    assert newer.look() == 1
    newest_root = read_signer(registry.keys.path("root")).public_key.keyid
    backup.restore(keys=False)
    recover(registry)
    assert registry.document("root").signed.roles["root"].keyids == [newest_root]
    assert [older.look(), newer.look(), new_device("new").look()] == [1, 1, 1]
    change(registry, lambda repository: repository.rotate("snapshot"))
    assert [older.look(), newer.look()] == [1, 1]


def test_a_rotated_offline_root_key_is_passed_with_its_previous_one(
    registry: Registry, backup: Backup, new_device: NewDevice, tmp_path: Path
) -> None:
    older, newer, stick = new_device("older"), new_device("newer"), tmp_path / "stick"
    assert older.look() == 1
    change(registry, lambda repository: repository.move_offline("root", stick))
    key = read_signer(stick / "root.pem")
    change(registry, lambda repository: repository.rotate("root", key, RoleKeys(stick)))
    assert newer.look() == 1
    backup.restore(keys=False)
    with pytest.raises(Conflict, match=r"pass the new and the previous one"):
        recover(registry, stick / "root.pem")
    recover(registry, stick / "root.pem", stick / "root.previous.pem")
    assert [older.look(), newer.look(), new_device("new").look()] == [1, 1, 1]


def test_without_the_offline_root_key_the_other_documents_are_recovered(
    registry: Registry, backup: Backup, new_device: NewDevice, tmp_path: Path
) -> None:
    stick = tmp_path / "stick"
    device, of_newer_root = new_device("device"), new_device("of_newer_root")
    registry.export(b"second")
    registry.sign()
    assert device.look() == 2
    change(registry, lambda repository: repository.rotate("timestamp"))
    assert of_newer_root.look() == 2
    backup.restore()
    change(registry, lambda repository: repository.move_offline("root", stick))
    recovery = recover(registry)
    assert (recovery.waiting, recovery.versions["root"]) == (["root"], 1)
    assert device.look() == 1
    with pytest.raises(UnsignedMetadataError):
        of_newer_root.look()
    assert recover(registry, stick / "root.pem").waiting == []
    assert [device.look(), of_newer_root.look()] == [1, 1]


def test_targets_with_an_offline_key_are_signed_there(
    registry: Registry, backup: Backup, new_device: NewDevice, tmp_path: Path
) -> None:
    device = new_device("device")
    for content in (b"second", b"third"):
        registry.export(content)
        registry.sign()
    assert device.look() == 3
    backup.restore()
    change(registry, lambda repository: repository.move_offline("targets", tmp_path / "stick"))
    key = read_signer(tmp_path / "stick" / "targets.pem")
    with registry.sessions.begin() as session:
        before_recovery = TufRepository(session, registry.keys).prepare()
    assert recover(registry).waiting == ["targets"]
    with pytest.raises(BadVersionNumberError):
        device.look()
    with registry.sessions.begin() as session:
        repository = TufRepository(session, registry.keys)
        with pytest.raises(Conflict, match="prepare it again"):
            repository.submit(sign_targets(before_recovery, key))
        version = repository.submit(sign_targets(repository.prepare(), key))
    assert version == registry.versions()["targets"] > 1_000_000
    assert device.look() == 1


def test_lost_online_keys_are_created_again_with_the_root_key(
    registry: Registry, backup: Backup, new_device: NewDevice, tmp_path: Path
) -> None:
    device = new_device("device")
    assert device.look() == 1
    change(registry, lambda repository: repository.move_offline("root", tmp_path / "stick"))
    for role in ("snapshot", "timestamp"):
        registry.keys.path(role).unlink()
    before = registry.versions()
    with pytest.raises(Conflict, match=r"the key of snapshot .* is not in .*/tuf; restore it, or"):
        recover(registry)
    assert registry.versions() == before
    recover(registry, tmp_path / "stick" / "root.pem")
    assert device.look() == 1
    assert registry.keys.path("timestamp").exists()


def test_another_root_key_changes_nothing(registry: Registry, backup: Backup, tmp_path: Path) -> None:
    RoleKeys(tmp_path / "other").create("root")
    change(registry, lambda repository: repository.move_offline("root", tmp_path / "stick"))
    before = registry.versions()
    with pytest.raises(Conflict, match="none of the keys is the root key of version 1; after a rotation"):
        recover(registry, tmp_path / "other" / "root.pem")
    assert registry.versions() == before


def test_a_clock_behind_the_documents_is_refused(registry: Registry, backup: Backup) -> None:
    before = registry.versions()
    for now in (datetime(1970, 1, 1, tzinfo=UTC), datetime.now(UTC) - timedelta(hours=1)):
        with pytest.raises(Conflict, match="the clock of this machine"):
            recover(registry, now=now)
    assert registry.versions() == before


def test_every_recovery_has_versions_above_those_before(
    registry: Registry, backup: Backup, new_device: NewDevice
) -> None:
    device = new_device("device")
    later = datetime.now(UTC) + timedelta(minutes=1)
    recover(registry)
    for content in (b"second", b"third"):
        registry.export(content)
        registry.sign()
    assert device.look() == 3
    backup.restore()
    recover(registry, now=later)
    assert device.look() == 1


def test_a_rotation_lets_devices_forget_the_versions_that_a_thief_of_keys_signed(
    registry: Registry, backup: Backup, new_device: NewDevice
) -> None:
    device = new_device("device")
    expires, highest = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3), 2**31 - 1
    meta = {"targets.json": MetaFile(1)}
    with registry.sessions.begin() as session:
        for role, signed in (
            ("snapshot", Snapshot(highest, expires=expires, meta=meta)),
            ("timestamp", Timestamp(highest, expires=expires, snapshot_meta=MetaFile(highest))),
        ):
            document: Metadata[Any] = Metadata(signed)
            document.sign(read_signer(registry.keys.path(role)))
            tuf_documents.add(session, role, highest, document.to_bytes().decode())
    assert device.look() == 1
    backup.restore()
    recover(registry)
    with pytest.raises(BadVersionNumberError):
        device.look()
    for role in ("snapshot", "timestamp"):
        change(registry, lambda repository, role=role: repository.rotate(role))  # type: ignore[misc]
    assert device.look() == 1
