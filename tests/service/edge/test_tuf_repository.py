"""The TUF repository, tested with python-tuf's own client as the device."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    UnsignedMetadataError,
)
from tuf.ngclient import FetcherInterface, Updater

from registry import aliases, db, exports, tuf_documents
from registry.errors import Conflict, Invalid
from service.edge.tuf_keys import RoleKeys, read_signer
from service.edge.tuf_repository import TufRepository, sign_targets
from tests.harness.server import Server, serving
from tests.service.edge.tuf_registry import NAME, Registry


class Fetcher(FetcherInterface):
    """Sends requests with a key. `forged` replaces responses, as an attacker on the network would."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.forged: dict[str, bytes] = {}  # by the end of the URL
        self.responses: dict[str, bytes] = {}  # by file name

    def _fetch(self, url: str) -> Iterator[bytes]:
        for suffix, content in self.forged.items():
            if url.endswith(suffix):
                yield content
                return
        answer = self._client.get(url)
        if answer.status_code != 200:
            raise DownloadHTTPError(answer.text, answer.status_code)
        self.responses[url.rpartition("/")[2]] = answer.content
        yield answer.content


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("tuf") / "home") as running:
        yield running


class Device:
    """A device with its own folder, which starts with the first root."""

    def __init__(self, folder: Path, server: Server, root: bytes) -> None:
        (folder / "files").mkdir(parents=True)
        self.folder, self.root, self.url = folder, root, server.url
        self.client = server.client()
        self.fetcher = Fetcher(self.client)

    def pull(self, name: str = NAME) -> bytes:
        """Refresh the documents, look the target up, and download it; each step is verified."""
        updater = Updater(
            str(self.folder),
            f"{self.url}/tuf/metadata/",
            str(self.folder / "files"),
            f"{self.url}/tuf/targets/",
            fetcher=self.fetcher,
            bootstrap=self.root,
        )
        updater.refresh()
        target = updater.get_targetinfo(name)
        assert target is not None, name
        self.custom = target.unrecognized_fields["custom"]
        return Path(updater.download_target(target)).read_bytes()


@pytest.fixture
def live(server: Server) -> Iterator[Registry]:
    """The running server's registry, with a signed export."""
    registry = Registry(server.home)
    registry.export(b"the first model")
    registry.sign()  # the server's background task does the same; either may be first
    yield registry
    registry.engine.dispose()


@pytest.fixture
def device(tmp_path: Path, server: Server, live: Registry) -> Iterator[Device]:
    device = Device(tmp_path / "device", server, live.first_root())
    yield device
    device.client.close()


def test_the_client_downloads_the_file_of_the_alias_and_follows_promote_and_rollback(
    device: Device, live: Registry
) -> None:
    assert device.pull() == b"the first model"
    number = live.export(b"the second model")
    live.sign()
    assert device.pull() == b"the second model"
    assert device.custom == {"version": number, "min_runtime": "2.1.0"}
    with live.sessions.begin() as session:
        aliases.rollback(session, "m", "champion", by="test")
    live.sign()
    assert device.pull() == b"the first model", "a rollback of the alias is a new signed document"


def test_a_tampered_file_is_rejected(device: Device, live: Registry) -> None:
    number = live.export(b"honest bytes")
    live.sign()
    device.fetcher.forged = {".none.tflite": b"honest bytez"}
    with pytest.raises(LengthOrHashMismatchError):
        device.pull()
    assert list((device.folder / "files").iterdir()) == []
    device.fetcher.forged = {}
    assert (device.pull(), device.custom["version"]) == (b"honest bytes", number)


def test_a_file_longer_than_its_signed_length_is_rejected(device: Device, live: Registry) -> None:
    live.export(b"short")
    live.sign()
    device.fetcher.forged = {".none.tflite": b"short" + bytes(1_000_000)}
    with pytest.raises(DownloadLengthMismatchError):
        device.pull()


def test_replayed_old_documents_are_rejected(device: Device, live: Registry) -> None:
    device.pull()
    old_timestamp = device.fetcher.responses["timestamp.json"]
    live.export(b"newer")
    live.sign()
    assert device.pull() == b"newer"
    device.fetcher.forged = {"timestamp.json": old_timestamp}
    with pytest.raises(BadVersionNumberError):
        device.pull()
    device.fetcher.forged = {}
    assert device.pull() == b"newer", "a rejected response has no lasting effect"


def test_a_signature_with_another_key_is_rejected(device: Device, live: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    db.migrate(other.engine, other.home)
    other.export(b"poison")
    other.sign()
    with db.reading(other.sessions) as session:
        timestamp = tuf_documents.newest(session, "timestamp") or ""
    other.engine.dispose()
    device.fetcher.forged = {"timestamp.json": timestamp.encode()}
    with pytest.raises(UnsignedMetadataError):
        device.pull()


def test_a_frozen_repository_is_detected_when_its_timestamp_expires(
    registry: Registry, tmp_path: Path, server: Server
) -> None:
    registry.export(b"frozen")
    registry.sign(now=datetime.now(UTC).replace(microsecond=0) - timedelta(days=2))
    device = Device(tmp_path / "device", server, registry.first_root())
    with db.reading(registry.sessions) as session:
        for role in ("timestamp", "snapshot", "targets"):
            device.fetcher.forged[f"{role}.json"] = (tuf_documents.newest(session, role) or "").encode()
    with pytest.raises(ExpiredMetadataError):
        device.pull()
    device.client.close()


def test_documents_are_signed_again_after_half_of_their_validity(registry: Registry) -> None:
    start = datetime.now(UTC).replace(microsecond=0)
    registry.export(b"model")
    assert registry.sign(start)
    assert not registry.sign(start + timedelta(hours=11))
    assert registry.sign(start + timedelta(hours=13))
    assert (registry.newest("timestamp")["version"], registry.newest("snapshot")["version"]) == (2, 1)
    assert registry.sign(start + timedelta(days=4))
    assert (registry.newest("timestamp")["version"], registry.newest("snapshot")["version"]) == (3, 2)


def test_devices_follow_the_key_rotation_of_every_role(device: Device, live: Registry) -> None:
    device.pull()
    for role in ("root", "targets", "snapshot", "timestamp"):
        with live.sessions.begin() as session:
            TufRepository(session, live.keys).rotate(role)
        content = f"after {role} was rotated".encode()
        live.export(content)
        live.sign()
        assert device.pull() == content
    assert _new_device(device).pull() == b"after timestamp was rotated", "from the first root on"


def test_a_promotion_is_pending_until_signed_with_the_offline_key(registry: Registry, tmp_path: Path) -> None:
    registry.export(b"first")
    registry.sign()
    key_file = registry.keys.move_offline("targets", tmp_path / "stick")
    assert (key_file.stat().st_mode & 0o777, registry.keys.load("targets")) == (0o600, [])
    number = registry.export(b"second")
    assert not registry.sign(), "the key is not in the data directory"
    with registry.sessions.begin() as session:
        repository = TufRepository(session, registry.keys)
        assert repository.status().pending == [NAME]
        prepared = repository.prepare()
        with pytest.raises(Invalid, match="valid signature"):
            repository.submit(prepared)
        signed = sign_targets(prepared, read_signer(key_file))
        assert repository.submit(signed) == 2
        assert repository.status().pending == []
        with pytest.raises(Conflict, match="prepare it again"):
            repository.submit(signed)
    target = registry.newest("targets")["targets"][NAME]  # type: ignore[index]
    assert target["custom"]["version"] == number


def test_the_keys_of_snapshot_and_timestamp_cannot_be_moved_offline(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match="cannot be moved offline"):
        registry.keys.move_offline("timestamp", tmp_path)


def test_rotation_requires_the_offline_root_key(registry: Registry, tmp_path: Path) -> None:
    registry.export(b"model")
    registry.sign()
    key_file = registry.keys.move_offline("root", tmp_path / "stick")
    with registry.sessions.begin() as session, pytest.raises(Conflict, match="root key"):
        TufRepository(session, registry.keys).rotate("targets")
    with registry.sessions.begin() as session:
        assert TufRepository(session, registry.keys).rotate("targets", read_signer(key_file)) == 2


def test_the_new_key_of_an_offline_role_is_not_stored_online(registry: Registry, tmp_path: Path) -> None:
    registry.export(b"model")
    registry.sign()
    offline_folder = tmp_path / "stick"
    for role in ("targets", "root"):
        registry.keys.move_offline(role, offline_folder)
    for role in ("targets", "root"):
        root_key = read_signer(offline_folder / "root.pem")
        with registry.sessions.begin() as session:
            repository = TufRepository(session, registry.keys)
            with pytest.raises(Conflict, match="--to"):
                repository.rotate(role, root_key)
            repository.rotate(role, root_key, RoleKeys(offline_folder))
            online = {r.role: r.online for r in repository.status().roles}
        assert (online["root"], online["targets"]) == (False, False)
    assert not registry.sign(), "everything is signed already, with the new keys"
    with registry.sessions.begin() as session:
        repository = TufRepository(session, registry.keys)
        assert (
            repository.submit(sign_targets(repository.prepare(), read_signer(offline_folder / "targets.pem")))
            == 3
        )


def test_an_older_export_for_older_runtimes_is_also_signed(registry: Registry) -> None:
    number = registry.export(b"runs everywhere")
    blob = registry.store.put([b"requires the newest"])
    with registry.sessions.begin() as session:
        row = exports.create(session, registry.store, "m", number, exports.NewExport(), by="test")
        exports.finish(
            session, row.id, exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.9.0")
        )
    registry.sign()
    targets = registry.newest("targets")["targets"]
    min_runtimes = {n: t["custom"]["min_runtime"] for n, t in targets.items()}  # type: ignore[attr-defined]
    assert min_runtimes == {NAME: "2.9.0", "m/champion/none.2.1.0.tflite": "2.1.0"}


def test_a_rollout_lists_the_previous_version_and_the_new_one_with_its_percentage(registry: Registry) -> None:
    first = registry.export(b"first")
    second = registry.export(b"second", percent=10)
    registry.sign()
    targets = registry.newest("targets")["targets"]
    custom = {name: t["custom"] for name, t in targets.items()}  # type: ignore[attr-defined]
    assert custom == {
        NAME: {"version": first, "min_runtime": "2.1.0"},
        "m/champion/none.rollout.tflite": {"version": second, "min_runtime": "2.1.0", "percent": 10},
    }


def test_nothing_is_signed_before_the_first_export(registry: Registry) -> None:
    assert not registry.sign()
    assert not registry.keys.directory.exists()


def test_private_keys_are_readable_only_by_their_owner(registry: Registry) -> None:
    registry.export(b"model")
    registry.sign()
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in registry.keys.directory.iterdir()} == {
        f"{role}.pem": "0o600" for role in ("root", "targets", "snapshot", "timestamp")
    }


def _new_device(device: Device) -> Device:
    """Set up another device, which starts with the first root."""
    copy = Device.__new__(Device)
    folder = device.folder.parent / f"{device.folder.name}-2"
    (folder / "files").mkdir(parents=True)
    copy.folder, copy.root, copy.url, copy.client = folder, device.root, device.url, device.client
    copy.fetcher = Fetcher(device.client)
    return copy
