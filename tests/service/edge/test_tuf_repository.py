"""python-tuf's own client is the proof: it downloads what an alias offers and refuses all else."""

from __future__ import annotations

import json
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

from registry import aliases, db, exports, tuf_documents, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.errors import Conflict, Invalid
from registry.signature import Signature
from service.edge.tuf_keys import KeyFiles, read
from service.edge.tuf_repository import Repository, sign
from tests.harness.server import Server, serving

NAME = "m/champion/none.tflite"
NOWHERE = Signature("regression", (), ())


class Fetcher(FetcherInterface):
    """Asks the server with a key. `lies` replaces answers, as somebody in between would."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.lies: dict[str, bytes] = {}  # by the end of the address
        self.seen: dict[str, bytes] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        for end, lie in self.lies.items():
            if url.endswith(end):
                yield lie
                return
        answer = self._client.get(url)
        if answer.status_code != 200:
            raise DownloadHTTPError(answer.text, answer.status_code)
        self.seen[url.rpartition("/")[2]] = answer.content
        yield answer.content


class Registry:
    """A registry whose versions have exports; everything is written through its own functions."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.engine = db.connect(f"sqlite:///{home / 'registry.db'}")
        self.sessions = db.sessions(self.engine)
        self.store = Store(home / "blobs")
        self.keys = KeyFiles(home / "tuf")

    def export(self, content: bytes, *, promote: bool = True, percent: int | None = None) -> int:
        """A new version with this .tflite; its number."""
        blob = self.store.put([content])
        with self.sessions.begin() as session:
            new = versions.NewVersion("m", blob.sha256, "onnx")
            version = versions.publish(session, self.store, new, by="test")
            built = BuildResult(state="ready", report={}, runtime="onnx", signature=NOWHERE)
            versions.finish_build(session, version.id, built)
            row = exports.create(session, self.store, "m", version.number, exports.NewExport(), by="test")
            done = exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.1.0")
            exports.finish(session, row.id, done)
            if promote:
                aliases.promote(session, "m", "champion", version.number, by="test", edge_percent=percent)
            return version.number

    def sign(self, moment: datetime | None = None) -> bool:
        with self.sessions.begin() as session:
            return Repository(session, self.keys).refresh(moment)

    def newest(self, role: str) -> dict[str, object]:
        with db.reading(self.sessions) as session:
            signed: dict[str, object] = json.loads(tuf_documents.newest(session, role) or "{}")["signed"]
            return signed

    def first_root(self) -> bytes:
        with db.reading(self.sessions) as session:
            return tuf_documents.get(session, "root", 1).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("tuf") / "home") as running:
        yield running


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """One without a server, for what its signer does."""
    home = tmp_path / "home"
    made = Registry(home)
    db.migrate(made.engine, home)
    yield made
    made.engine.dispose()


class Device:
    """A device with its own folder, bootstrapped with the first root."""

    def __init__(self, folder: Path, server: Server, root: bytes) -> None:
        (folder / "files").mkdir(parents=True)
        self.folder, self.root, self.url = folder, root, server.url
        self.client = server.client()
        self.fetcher = Fetcher(self.client)

    def pull(self, name: str = NAME) -> bytes:
        """What a device does: refresh, look up, download, verified at each step."""
        updater = Updater(
            str(self.folder),
            f"{self.url}/tuf/metadata/",
            str(self.folder / "files"),
            f"{self.url}/tuf/targets/",
            fetcher=self.fetcher,
            bootstrap=self.root,
        )
        updater.refresh()
        found = updater.get_targetinfo(name)
        assert found is not None, name
        self.custom = found.unrecognized_fields["custom"]
        return Path(updater.download_target(found)).read_bytes()


@pytest.fixture
def live(server: Server) -> Iterator[Registry]:
    """The running server's registry, with a first export that is signed."""
    made = Registry(server.home)
    made.export(b"the first model")
    made.sign()  # the server's own chore does the same: whoever comes first
    yield made
    made.engine.dispose()


@pytest.fixture
def device(tmp_path: Path, server: Server, live: Registry) -> Iterator[Device]:
    made = Device(tmp_path / "device", server, live.first_root())
    yield made
    made.client.close()


def test_the_client_downloads_what_the_alias_offers_and_sees_the_next_promotion(
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
    assert device.pull() == b"the first model", "a rollback of ours is a new, signed statement"


def test_a_tampered_file_is_refused(device: Device, live: Registry) -> None:
    number = live.export(b"honest bytes")
    live.sign()
    device.fetcher.lies = {".none.tflite": b"honest bytez"}
    with pytest.raises(LengthOrHashMismatchError):
        device.pull()
    assert list((device.folder / "files").iterdir()) == []
    device.fetcher.lies = {}
    assert (device.pull(), device.custom["version"]) == (b"honest bytes", number)


def test_a_file_that_is_longer_than_signed_is_cut_off(device: Device, live: Registry) -> None:
    live.export(b"short")
    live.sign()
    device.fetcher.lies = {".none.tflite": b"short" + bytes(1_000_000)}
    with pytest.raises(DownloadLengthMismatchError):
        device.pull()


def test_old_documents_shown_again_are_refused(device: Device, live: Registry) -> None:
    device.pull()
    old = device.fetcher.seen["timestamp.json"]
    live.export(b"newer")
    live.sign()
    assert device.pull() == b"newer"
    device.fetcher.lies = {"timestamp.json": old}
    with pytest.raises(BadVersionNumberError):
        device.pull()
    device.fetcher.lies = {}
    assert device.pull() == b"newer", "a refused answer does no lasting harm"


def test_a_signature_of_another_key_is_refused(device: Device, live: Registry, tmp_path: Path) -> None:
    stranger = Registry(tmp_path / "stranger")
    db.migrate(stranger.engine, stranger.home)
    stranger.export(b"poison")
    stranger.sign()
    with db.reading(stranger.sessions) as session:
        forged = tuf_documents.newest(session, "timestamp") or ""
    stranger.engine.dispose()
    device.fetcher.lies = {"timestamp.json": forged.encode()}
    with pytest.raises(UnsignedMetadataError):
        device.pull()


def test_a_frozen_repository_is_noticed_when_its_timestamp_expires(
    registry: Registry, tmp_path: Path, server: Server
) -> None:
    registry.export(b"frozen")
    registry.sign(moment=datetime.now(UTC).replace(microsecond=0) - timedelta(days=2))
    device = Device(tmp_path / "device", server, registry.first_root())
    with db.reading(registry.sessions) as session:
        for role in ("timestamp", "snapshot", "targets"):
            device.fetcher.lies[f"{role}.json"] = (tuf_documents.newest(session, role) or "").encode()
    with pytest.raises(ExpiredMetadataError):
        device.pull()
    device.client.close()


def test_documents_are_signed_again_when_half_their_life_is_over(registry: Registry) -> None:
    start = datetime.now(UTC).replace(microsecond=0)
    registry.export(b"model")
    assert registry.sign(start)
    assert not registry.sign(start + timedelta(hours=11))
    assert registry.sign(start + timedelta(hours=13))
    assert (registry.newest("timestamp")["version"], registry.newest("snapshot")["version"]) == (2, 1)
    assert registry.sign(start + timedelta(days=4))
    assert (registry.newest("timestamp")["version"], registry.newest("snapshot")["version"]) == (3, 2)


def test_every_role_can_be_rotated_and_devices_follow(device: Device, live: Registry) -> None:
    device.pull()
    for role in ("root", "targets", "snapshot", "timestamp"):
        with live.sessions.begin() as session:
            Repository(session, live.keys).rotate(role)
        content = f"after {role} was rotated".encode()
        live.export(content)
        live.sign()
        assert device.pull() == content
    assert _fresh(device).pull() == b"after timestamp was rotated", "also one that starts at the first root"


def test_a_promotion_waits_for_the_offline_key_and_is_signed_with_it(
    registry: Registry, tmp_path: Path
) -> None:
    registry.export(b"first")
    registry.sign()
    taken = registry.keys.take("targets", tmp_path / "stick")
    assert (taken.stat().st_mode & 0o777, registry.keys.load("targets")) == (0o600, [])
    number = registry.export(b"second")
    assert not registry.sign(), "nothing here can sign it"
    with registry.sessions.begin() as session:
        repository = Repository(session, registry.keys)
        assert repository.status().pending == [NAME]
        prepared = repository.prepare()
        with pytest.raises(Invalid, match="valid signature"):
            repository.submit(prepared)
        signed = sign(prepared, read(taken))
        assert repository.submit(signed) == 2
        assert repository.status().pending == []
        with pytest.raises(Conflict, match="prepare it again"):
            repository.submit(signed)
    target = registry.newest("targets")["targets"][NAME]  # type: ignore[index]
    assert target["custom"]["version"] == number


def test_the_keys_that_sign_every_day_cannot_be_taken_away(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be taken offline"):
        registry.keys.take("timestamp", tmp_path)


def test_an_offline_root_key_is_needed_to_rotate(registry: Registry, tmp_path: Path) -> None:
    registry.export(b"model")
    registry.sign()
    taken = registry.keys.take("root", tmp_path / "stick")
    with registry.sessions.begin() as session, pytest.raises(Conflict, match="root key"):
        Repository(session, registry.keys).rotate("targets")
    with registry.sessions.begin() as session:
        assert Repository(session, registry.keys).rotate("targets", read(taken)) == 2


def test_a_key_that_was_taken_away_does_not_come_back_by_rotating_it(
    registry: Registry, tmp_path: Path
) -> None:
    registry.export(b"model")
    registry.sign()
    stick = tmp_path / "stick"
    for role in ("targets", "root"):
        registry.keys.take(role, stick)
    for role in ("targets", "root"):
        root_key = read(stick / "root.pem")
        with registry.sessions.begin() as session:
            repository = Repository(session, registry.keys)
            with pytest.raises(Conflict, match="--to"):
                repository.rotate(role, root_key)
            repository.rotate(role, root_key, KeyFiles(stick))
            online = {r.role: r.online for r in repository.status().roles}
        assert (online["root"], online["targets"]) == (False, False)
    assert not registry.sign(), "all is signed already, by the new keys"
    with registry.sessions.begin() as session:
        repository = Repository(session, registry.keys)
        assert repository.submit(sign(repository.prepare(), read(stick / "targets.pem"))) == 3


def test_an_older_export_for_older_runtimes_is_signed_too(registry: Registry) -> None:
    number = registry.export(b"runs everywhere")
    blob = registry.store.put([b"needs the newest"])
    with registry.sessions.begin() as session:
        row = exports.create(session, registry.store, "m", number, exports.NewExport(), by="test")
        exports.finish(
            session, row.id, exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.9.0")
        )
    registry.sign()
    targets = registry.newest("targets")["targets"]
    about = {name: t["custom"]["min_runtime"] for name, t in targets.items()}  # type: ignore[attr-defined]
    assert about == {NAME: "2.9.0", "m/champion/none.2.1.0.tflite": "2.1.0"}


def test_a_rollout_offers_the_version_before_and_the_new_one_with_its_share(registry: Registry) -> None:
    first = registry.export(b"first")
    second = registry.export(b"second", percent=10)
    registry.sign()
    targets = registry.newest("targets")["targets"]
    about = {name: t["custom"] for name, t in targets.items()}  # type: ignore[attr-defined]
    assert about == {
        NAME: {"version": first, "min_runtime": "2.1.0"},
        "m/champion/none.rollout.tflite": {"version": second, "min_runtime": "2.1.0", "percent": 10},
    }


def test_nothing_is_signed_before_the_first_export(registry: Registry) -> None:
    assert not registry.sign()
    assert not registry.keys.directory.exists()


def test_private_keys_are_for_their_owner_alone(registry: Registry) -> None:
    registry.export(b"model")
    registry.sign()
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in registry.keys.directory.iterdir()} == {
        f"{role}.pem": "0o600" for role in ("root", "targets", "snapshot", "timestamp")
    }


def _fresh(device: Device) -> Device:
    """Another device, set up with the first root."""
    made = Device.__new__(Device)
    folder = device.folder.parent / f"{device.folder.name}-2"
    (folder / "files").mkdir(parents=True)
    made.folder, made.root, made.url, made.client = folder, device.root, device.url, device.client
    made.fetcher = Fetcher(device.client)
    return made
