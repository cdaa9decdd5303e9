"""The updates of `scripts/edge_pull.py`, in this process, with a real server and an attacker in between."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from tuf.api.exceptions import DownloadHTTPError, RepositoryError

from registry import aliases, db, exports, queue
from registry.vocabulary import EXPORT_TASK
from scripts import edge_pull
from scripts.edge_pull import UpdateRefused
from service.edge.rollout import rollout_position
from tests.harness.durability import Event, recorded
from tests.scripts.conftest import (
    BIG,
    SHA256,
    Blocks,
    Device,
    ServedRegistry,
    answer,
    forge_manifest,
    partial,
)
from tests.service.edge.tuf_registry import Registry

FAILS = f"{sys.executable} -c 'raise SystemExit(\"no such operator\")'"


@dataclass
class Clock:
    """Stands for the module `time` of the script: only `sleep` moves it."""

    now: float = 1000.0
    sleeps: list[float] = field(default_factory=list)
    at_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        self.at_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(edge_pull, "time", clock)
    return clock


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing signature is refused at once."""
    monkeypatch.setattr(edge_pull, "SIGNATURE_WAIT_S", 0.0)


# ---- installation ----


def test_an_installation_stores_its_version_digest_and_entity_tag(
    device: Device, registry: ServedRegistry
) -> None:
    number = registry.provide(b"the next one")
    updater = device.updater()
    assert updater.poll()
    state = device.state()
    assert (state.version, state.sha256) == (number, hashlib.sha256(b"the next one").hexdigest())
    assert (state.trying, state.bad) == (None, [])
    assert state.etag == updater.client.get("/v1/edge/m").headers["etag"]
    assert [(r["status"], r["version"], r["latency_ms"]) for r in device.reports()] == [("ok", number, None)]


def test_an_unchanged_manifest_is_requested_alone_with_its_entity_tag(device: Device) -> None:
    assert device.poll()
    device.network.paths()
    assert not device.poll()
    (request,) = device.network.requests
    assert (request.url.path, request.headers["if-none-match"]) == ("/v1/edge/m", device.state().etag)


def test_another_version_with_the_same_bytes_is_recorded_and_reported_without_a_download(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    before = device.state().etag
    number = registry.provide(BIG)
    device.network.paths()
    assert not device.poll()
    assert not any(path.startswith("/v1/blobs") for path in device.network.paths())
    assert device.state().etag not in (before, None)
    assert device.state().version == device.reports()[0]["version"] == number


def test_a_deleted_file_is_downloaded_again_although_its_manifest_is_unchanged(device: Device) -> None:
    assert device.poll()
    device.file.unlink()
    assert device.poll()
    assert device.file.read_bytes() == BIG


def test_every_request_names_the_device_and_files_are_requested_uncompressed(device: Device) -> None:
    assert device.poll()
    key = device.key_file.read_text().strip()
    for request in device.network.requests:
        assert request.headers["authorization"] == f"Bearer {key}"
        assert request.headers["x-device-id"] == device.folder.name
        if request.url.path.startswith(("/tuf/", "/v1/blobs/")) and "1.root" not in request.url.path:
            assert request.headers["accept-encoding"] == "identity", request.url


def test_missing_parent_directories_are_created(device: Device) -> None:
    nested = device.folder / "lib" / "models"
    assert device.poll("--dir", str(nested))
    assert (nested / "m.tflite").read_bytes() == BIG


def test_a_damaged_state_file_starts_an_empty_state(device: Device) -> None:
    device.folder.mkdir()
    (device.folder / "state.json").write_text('{"etag": "')
    assert device.poll()
    assert device.state().sha256 == SHA256


def test_the_previous_file_is_kept(device: Device, registry: ServedRegistry) -> None:
    assert device.poll()
    (device.folder / "spare").write_bytes(b"of an update that was interrupted")
    registry.provide(b"the next one")
    assert device.poll()
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"the next one", BIG)
    assert not (device.folder / "spare").exists()


def test_devices_inside_and_outside_a_rollout_install_the_file_for_them(
    device: Device, registry: ServedRegistry
) -> None:
    registry.provide(b"for a part of the devices", percent=35)
    positions = {"a": 35, "b": 33}
    assert {name: rollout_position(name, "m", "champion") for name in positions} == positions
    assert device.poll("--device", "a")
    assert device.file.read_bytes() == BIG
    assert device.poll("--device", "b")
    assert device.file.read_bytes() == b"for a part of the devices"


def test_a_device_with_an_older_runtime_gets_a_file_that_runs_on_it(
    device: Device, registry: ServedRegistry
) -> None:
    number = registry.export(b"runs everywhere")
    blob = registry.store.put([b"needs the newest"])
    with registry.sessions.begin() as session:
        row = exports.create(session, registry.store, "m", number, exports.NewExport(), by="test")
        finished = exports.FinishedExport("ready", {}, blob.sha256, blob.bytes, None, "2.9.0")
        exports.finish(session, row.id, finished)
        queue.cancel(session, EXPORT_TASK, str(row.id))  # a server on the registry would build it
    registry.sign()
    registry.show()
    assert device.poll("--runtime-version", "2.5.0")
    assert device.file.read_bytes() == b"runs everywhere"
    assert device.poll("--runtime-version", "2.9.0")
    assert device.file.read_bytes() == b"needs the newest"


# ---- signatures ----


@pytest.mark.usefixtures("no_wait")
def test_another_version_than_the_signed_one_is_refused(device: Device, registry: ServedRegistry) -> None:
    number = registry.provide(b"signed as one version")
    for version in (number - 1, number + 1, str(number)):
        forge_manifest(device, version=version)
        with pytest.raises(UpdateRefused, match=f"version {version} is not among the signed files"):
            device.poll()
    assert not device.file.exists()
    device.network.forged.clear()
    assert device.poll()


@pytest.mark.usefixtures("no_wait")
def test_a_file_that_was_signed_for_an_earlier_version_is_refused(
    device: Device, registry: ServedRegistry
) -> None:
    registry.provide(b"signed now")
    forge_manifest(device, sha256=SHA256)
    with pytest.raises(UpdateRefused, match="not among the signed files"):
        device.poll()
    assert not any(path.startswith("/v1/blobs") for path in device.network.paths())


@pytest.mark.usefixtures("no_wait")
def test_a_file_of_another_quantization_or_alias_is_refused(device: Device, registry: ServedRegistry) -> None:
    """Its signature holds for another name."""
    number = registry.provide(b"of the champion")
    with registry.sessions.begin() as session:
        aliases.promote(session, "m", "canary", number - 1, by="test")
    registry.sign()
    registry.show()
    forge_manifest(device, version=number, sha256=hashlib.sha256(b"of the champion").hexdigest())
    with pytest.raises(UpdateRefused, match="not among the signed files"):
        device.poll("--alias", "canary")
    with registry.sessions.begin() as session:
        aliases.remove(session, "m", "canary", by="test")


def test_a_missing_signature_is_awaited_for_15_seconds(
    device: Device, registry: ServedRegistry, clock: Clock
) -> None:
    with db.locked(registry.home / "tuf.lock"):  # the server cannot sign
        number = registry.provide(b"not signed", sign=False)
        with pytest.raises(UpdateRefused, match=f"version {number} is not among the signed files"):
            device.poll()
    assert clock.sleeps == [1.0] * 15
    assert device.state().etag is None, "the next poll tries again"


def test_an_update_is_installed_when_its_signature_arrives(
    device: Device, registry: ServedRegistry, clock: Clock
) -> None:
    clock.at_sleep = registry.sign
    with db.locked(registry.home / "tuf.lock"):
        registry.provide(b"signed a second later", sign=False)
        assert device.poll()
    assert clock.sleeps == [1.0]
    assert device.file.read_bytes() == b"signed a second later"


def test_the_root_option_must_match_the_servers_root(
    device: Device, tmp_path: Path, registry: ServedRegistry
) -> None:
    (own_root := tmp_path / "root.json").write_bytes(registry.first_root())
    other = Registry(tmp_path / "other")
    db.migrate(other.engine, other.home)
    other.export(b"poison")
    other.sign()
    (other_root := tmp_path / "other.json").write_bytes(other.first_root())
    other.engine.dispose()
    with pytest.raises(UpdateRefused, match="do not continue those that this device trusts"):
        device.poll("--root", str(other_root))
    assert not device.file.exists()
    assert device.poll("--root", str(own_root))
    assert "/tuf/metadata/1.root.json" not in device.network.paths()


def test_the_first_root_is_stored_and_not_requested_again(device: Device, registry: ServedRegistry) -> None:
    with recorded() as log:
        assert device.poll()
    assert device.network.paths().count("/tuf/metadata/1.root.json") == 1
    first_root = device.folder / "tuf" / "first.root.json"
    assert log.saved(first_root) < log.position("rename", device.file), "before anything is verified with it"
    assert first_root.read_bytes() == registry.first_root()
    registry.provide(b"the next one")
    assert device.poll()
    assert "/tuf/metadata/1.root.json" not in device.network.paths()


def test_an_error_in_place_of_the_first_root_is_not_stored(device: Device) -> None:
    device.network.forged["/tuf/metadata/1.root.json"] = answer(404, b"not here")
    with pytest.raises(UpdateRefused, match="the server answered 404: not here"):
        device.poll()
    assert list((device.folder / "tuf").iterdir()) == []
    device.network.forged.clear()
    assert device.poll()


def test_another_answer_than_a_first_root_is_not_stored(device: Device) -> None:
    device.network.forged["/tuf/metadata/1.root.json"] = answer(200, b"<html>please log in</html>")
    with pytest.raises(RepositoryError):
        device.poll()
    assert list((device.folder / "tuf").iterdir()) == []
    device.network.forged.clear()
    assert device.poll(), "the device did not store the page of the portal"


def test_an_unavailable_document_ends_the_poll_with_its_status(device: Device) -> None:
    device.network.forged["/tuf/metadata/timestamp.json"] = answer(503, b"{}")
    with pytest.raises(DownloadHTTPError) as failure:
        device.poll()
    assert failure.value.status_code == 503


# ---- downloads ----


def test_an_interrupted_download_is_resumed(device: Device) -> None:
    partial(device, BIG[:400_000])
    assert device.poll()
    (blob,) = (r for r in device.network.requests if r.url.path.startswith("/v1/blobs"))
    assert (blob.headers["range"], blob.headers["if-range"]) == ("bytes=400000-", f'"{SHA256}"')
    assert blob.headers["accept-encoding"] == "identity"
    assert device.file.read_bytes() == BIG


def test_a_new_download_requests_the_whole_file(device: Device) -> None:
    assert device.poll()
    (blob,) = (r for r in device.network.requests if r.url.path.startswith("/v1/blobs"))
    assert not {"range", "if-range"} & set(blob.headers)


@pytest.mark.parametrize(
    ("content", "range_header"),
    [
        pytest.param(BIG[:-1], f"bytes={len(BIG) - 1}-", id="one byte is missing"),
        pytest.param(BIG[:1], "bytes=1-", id="one byte exists"),
        pytest.param(BIG + b"x", None, id="one byte too many"),
    ],
)
def test_a_partial_file_is_continued_or_started_again(
    device: Device, content: bytes, range_header: str | None
) -> None:
    partial(device, content)
    assert device.poll()
    (blob,) = (r for r in device.network.requests if r.url.path.startswith("/v1/blobs"))
    assert blob.headers.get("range") == range_header
    assert device.file.read_bytes() == BIG


def test_a_complete_partial_file_is_not_requested_again(device: Device) -> None:
    partial(device, BIG)
    assert device.poll()
    assert not any(path.startswith("/v1/blobs") for path in device.network.paths())
    assert device.file.read_bytes() == BIG


def test_a_whole_file_in_place_of_a_range_starts_again(device: Device) -> None:
    partial(device, b"x" * 1000)
    device.network.forged["/v1/blobs"] = answer(200, BIG)
    assert device.poll()
    assert device.file.read_bytes() == BIG


def test_a_damaged_partial_download_is_dropped_and_started_again(device: Device) -> None:
    partial(device, bytes(1000))
    assert device.poll()
    assert device.file.read_bytes() == BIG


def test_a_file_of_the_signed_length_with_other_bytes_is_refused(device: Device) -> None:
    device.network.forged["/v1/blobs"] = answer(200, BIG[:-1] + bytes([BIG[-1] ^ 1]))
    with pytest.raises(UpdateRefused, match="not the signed one"):
        device.poll()
    assert not device.file.exists()
    assert not partial(device).exists()
    assert device.network.paths().count(f"/v1/blobs/{SHA256}") == 2, "started again once"


def test_a_file_that_ends_early_is_continued_by_the_next_poll(device: Device) -> None:
    device.network.forged["/v1/blobs"] = answer(200, BIG[:-1])
    with pytest.raises(UpdateRefused, match=f"ended after {len(BIG) - 1} of {len(BIG)} bytes"):
        device.poll()
    assert not device.file.exists()
    device.network.forged.clear()
    device.network.requests.clear()
    assert device.poll()
    (blob,) = (r for r in device.network.requests if r.url.path.startswith("/v1/blobs"))
    assert blob.headers["range"] == f"bytes={len(BIG) - 1}-"


@pytest.mark.parametrize(
    ("block", "count"), [(BIG, 40), (BIG + b"x", 1)], ids=["endless", "one byte too many"]
)
def test_an_answer_beyond_the_signed_length_is_not_read_to_its_end(
    device: Device, block: bytes, count: int
) -> None:
    stream = Blocks(block, count)
    device.network.forged["/v1/blobs"] = lambda _: httpx.Response(200, stream=stream)
    with pytest.raises(UpdateRefused, match=f"more than the signed length of {len(BIG)} bytes"):
        device.poll()
    assert stream.sent <= 2 * 2 * len(block), "of two downloads"
    assert not partial(device).exists()
    assert not device.file.exists()


def test_an_answer_beyond_the_rest_of_a_partial_file_is_refused(device: Device) -> None:
    partial(device, BIG[:1000])
    content_range = {"Content-Range": f"bytes 1000-{len(BIG) - 1}/{len(BIG)}"}
    device.network.forged["/v1/blobs"] = lambda _: httpx.Response(
        206, stream=Blocks(BIG[1000:] + b"x", 1), headers=content_range
    )
    with pytest.raises(UpdateRefused, match="does not continue the file at byte 0"):
        device.poll()
    assert not partial(device).exists()


def test_a_refused_download_leaves_the_partial_file(device: Device) -> None:
    partial(device, BIG[:1000])
    device.network.forged["/v1/blobs"] = answer(404, b"not here")
    with pytest.raises(UpdateRefused, match="the server answered 404: not here"):
        device.poll()
    assert partial(device).read_bytes() == BIG[:1000]


def test_partial_downloads_of_other_files_are_deleted(device: Device) -> None:
    other = partial(device, b"of a file that is no longer offered", sha256="0" * 64)
    assert device.poll()
    assert not other.exists()


# ---- self-tests ----


def test_a_version_that_fails_its_self_test_is_removed_and_not_tried_again(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    installed = device.state().version
    number = registry.provide(b"broken here")
    with pytest.raises(UpdateRefused, match=f"version {number} failed its self-test and was removed"):
        device.poll("--self-test", FAILS)
    assert device.file.read_bytes() == BIG
    newest = device.reports()[0]
    assert (newest["status"], newest["version"]) == ("failed", number)
    message = f"exit code 1: no such operator; version {installed} is installed"
    assert (newest["message"], newest["latency_ms"]) == (message, None)
    assert (device.state().sha256, device.state().etag) == (SHA256, None)
    device.network.paths()
    with pytest.raises(UpdateRefused, match=f"version {number} failed its self-test here before"):
        device.poll("--self-test", "true")
    assert device.network.paths() == ["/v1/edge/m"]
    assert not device.poll("--self-test", "true"), "its manifest is remembered, so this is no failure"
    registry.provide(b"better")
    assert device.poll("--self-test", "test -s")
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"better", BIG)
    assert device.reports()[0]["latency_ms"] >= 0


def test_a_first_version_that_fails_its_self_test_leaves_no_file(device: Device) -> None:
    with pytest.raises(UpdateRefused, match="failed its self-test"):
        device.poll("--self-test", "false")
    assert not device.file.exists()
    assert device.state().sha256 is None


def test_a_failed_self_test_restores_the_installed_file_also_without_its_state(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    (device.folder / "state.json").write_text("damaged")
    registry.provide(b"broken here")
    with pytest.raises(UpdateRefused, match="failed its self-test"):
        device.poll("--self-test", "false")
    assert device.file.read_bytes() == BIG
    assert (device.state().sha256, device.state().version) == (SHA256, None)


def test_a_self_test_may_print_any_bytes(device: Device) -> None:
    invalid_utf8_code = "import os; os.write(2, bytes([255, 254])); raise SystemExit(1)"
    with pytest.raises(UpdateRefused, match="failed its self-test"):
        device.poll("--self-test", f"{sys.executable} -c '{invalid_utf8_code}'")
    assert device.reports()[0]["status"] == "failed"


def test_the_end_of_what_a_self_test_prints_is_reported(device: Device) -> None:
    code = f"print({'x' * 600!r} + {'y' * 499!r}); raise SystemExit(3)"
    with pytest.raises(UpdateRefused, match="failed its self-test"):
        device.poll("--self-test", f'{sys.executable} -c "{code}"')
    assert device.reports()[0]["message"] == f"exit code 3: x{'y' * 499}; no version is installed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--self-test", "/no/such/command"), "No such file or directory"),
        (("--self-test", f"/{'x' * 600}"), "File name too long"),
        (("--self-test", "sh -c 'exec sleep 60'", "--self-test-timeout", "0.01"), "timed out"),
    ],
)
def test_a_self_test_that_does_not_end_by_itself_has_failed(
    device: Device, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UpdateRefused, match=message):
        device.poll(*options)
    assert not device.file.exists()
    (report,) = device.reports()
    assert message in report["message"]
    assert len(report["message"]) <= 500 + len("; no version is installed")


def test_the_time_of_the_self_test_is_reported_in_milliseconds(
    device: Device, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = device.updater("--self-test", "true")
    self_test = updater._self_test

    def run() -> str | None:
        clock.now += 0.00123456
        return self_test()

    monkeypatch.setattr(updater, "_self_test", run)
    assert updater.poll()
    assert [r["latency_ms"] for r in device.reports()] == [1.235]


@pytest.mark.parametrize("count", [19, 20])
def test_20_files_that_failed_their_self_test_are_remembered(device: Device, count: int) -> None:
    updater = device.updater("--self-test", "false")
    before = [f"{n:064x}" for n in range(count)]
    updater.state.bad = before
    with pytest.raises(UpdateRefused, match="failed its self-test"):
        updater.poll()
    assert device.state().bad == [*before, SHA256][-20:]


def test_a_failed_report_changes_nothing_on_the_device(
    device: Device, registry: ServedRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    device.network.forged["/v1/edge/m/reports"] = answer(403, b"no")
    assert device.poll()
    assert "the server did not accept the report: the server answered 403: no" in caplog.text

    def fail(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("the network is down", request=request)

    device.network.forged["/v1/edge/m/reports"] = fail
    registry.provide(b"the next one")
    assert device.poll()
    assert device.file.read_bytes() == b"the next one"
    assert not device.poll()


# ---- power failures ----


def test_a_download_is_durable_before_the_state_names_it(device: Device) -> None:
    with recorded() as log:
        assert device.poll()
    downloaded = log.content_synced(device.file)
    renamed = log.position("rename", device.file)
    assert log.events[renamed].source == partial(device)
    assert downloaded < log.position("rename", device.folder / "state.json") < renamed


def test_each_step_of_an_update_is_durable_before_the_next(device: Device, registry: ServedRegistry) -> None:
    assert device.poll()
    registry.provide(b"the next one")
    states: list[tuple[str | None, str | None]] = []

    def look(event: Event) -> None:
        if event.kind == "rename" and event.path == device.folder / "state.json":
            written = json.loads(event.source.read_text()) if event.source else {}
            states.append((written["trying"], written["sha256"]))

    with recorded(look) as log:
        assert device.poll("--self-test", "true")
    assert log.content_synced(device.file) < log.position("rename", device.folder / "state.json")
    new = hashlib.sha256(b"the next one").hexdigest()
    assert states == [(new, SHA256), (None, new), (None, new), (None, new)]
    steps = log.steps(device.folder, "rename", "link", "fsync")
    first = steps.index("link m.tflite -> spare")
    assert steps[first - 1] == f"fsync incoming/{new}.part"
    state = ["fsync state.json.new", "rename state.json.new -> state.json", "fsync ."]
    assert steps[first:] == [
        "link m.tflite -> spare",
        "rename spare -> m.previous.tflite",
        *state,
        f"rename incoming/{new}.part -> m.tflite",
        "fsync .",
        *state,
        *state,
        *state,
    ]


def test_the_self_test_runs_on_a_file_whose_rename_is_durable(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = device.updater("--self-test", "true")
    with recorded() as log:
        self_test = updater._self_test
        tested_at: list[int] = []

        def run() -> str | None:
            tested_at.append(len(log.events))
            return self_test()

        monkeypatch.setattr(updater, "_self_test", run)
        assert updater.poll()
    assert log.entry_synced(device.file) < tested_at[0]


def test_a_restored_file_is_durable_before_the_state_forgets_the_update(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    registry.provide(b"broken here")
    with recorded() as log, pytest.raises(UpdateRefused):
        device.poll("--self-test", "false")
    restored = log.position("rename", device.file, log.position("rename", device.file))
    assert log.events[restored].source == device.previous
    steps = [str(event.path.name) for event in log.events[restored:] if event.kind in ("rename", "fsync")]
    assert steps[:4] == ["m.tflite", device.folder.name, "state.json.new", "state.json"]


def test_a_report_is_sent_when_the_state_is_stored(device: Device, registry: ServedRegistry) -> None:
    stored: list[tuple[str | None, str | None, list[str]]] = []

    def report(request: httpx.Request) -> httpx.Response:
        state = device.state()
        stored.append((state.sha256, state.trying, state.bad))
        return httpx.Response(201)

    device.network.forged["/v1/edge/m/reports"] = report
    assert device.poll()
    registry.provide(b"broken here")
    with pytest.raises(UpdateRefused):
        device.poll("--self-test", "false")
    assert stored == [(SHA256, None, []), (SHA256, None, [hashlib.sha256(b"broken here").hexdigest()])]


@pytest.mark.parametrize("failing", ["state.json", "m.tflite"])
def test_an_update_that_cannot_be_renamed_leaves_the_installed_file(
    device: Device, registry: ServedRegistry, failing: str
) -> None:
    assert device.poll()
    registry.provide(b"the next one")

    def fail(event: Event) -> None:
        if event.kind == "rename" and event.path == device.folder / failing:
            raise OSError("the disk is full")

    with recorded(fail), pytest.raises(OSError, match="the disk is full"):
        device.poll()
    assert device.file.read_bytes() == BIG
    assert device.poll()
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"the next one", BIG)


@pytest.mark.parametrize("renamed", [False, True])
def test_an_interrupted_first_update_is_removed_before_the_next_poll(device: Device, renamed: bool) -> None:
    updater = device.updater()
    updater.state.trying = SHA256
    updater.state.save()
    if renamed:
        device.file.write_bytes(b"not tested")
    device.network.forged["/v1/edge/m"] = answer(503, b"later")
    with pytest.raises(UpdateRefused, match="503"):
        device.poll()
    assert not device.file.exists()
    assert device.state().trying is None


def test_an_update_interrupted_after_its_restoration_keeps_the_installed_file(device: Device) -> None:
    assert device.poll()
    updater = device.updater()
    updater.state.trying = "0" * 64
    updater.state.save()
    assert not device.previous.exists()
    assert not device.poll()
    assert device.file.read_bytes() == BIG
    assert device.state().trying is None


def test_a_file_is_fsynced_before_it_replaces_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    descriptors = psutil.Process().num_fds()
    with recorded() as log:
        edge_pull.write_atomically(file, b"new")
    log.saved(file)
    assert psutil.Process().num_fds() <= descriptors
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (b"new", [file])


# ---- answers of servers and portals ----


@pytest.mark.parametrize(
    "content",
    [
        b"<html>please log in</html>",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"sha256": "00"}',
        b'{"sha256": "00", "version": null}',
        b'{"sha256": "00", "version": "latest"}',
    ],
)
def test_another_answer_than_a_manifest_is_refused(device: Device, content: bytes) -> None:
    """A captive portal answers 200 with its own page."""
    device.network.forged["/v1/edge/m"] = answer(200, content)
    with pytest.raises(UpdateRefused, match="the response is not a manifest"):
        device.poll()
    assert device.network.paths() == ["/v1/edge/m"]


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"detail": "the reason"}', "the reason"),
        (b"[]", r"\[\]"),
        (b'{"title": "no"}', '{"title": "no"}'),
        (b"x" * 300, "x{200}$"),
    ],
)
def test_a_refusal_contains_the_servers_message(content: bytes, detail: str) -> None:
    with pytest.raises(UpdateRefused, match=f"the server answered 400: {detail}"):
        edge_pull.require_status(httpx.Response(400, content=content), 200)
    edge_pull.require_status(httpx.Response(206, content=content), 200, 206)


def test_a_wrong_key_or_a_wrong_option_is_refused_with_the_servers_message(
    device: Device, tmp_path: Path
) -> None:
    (wrong_key := tmp_path / "key").write_text("trv_nobody_x")
    with pytest.raises(UpdateRefused, match="the server answered 401"):
        device.poll("--key-file", str(wrong_key))
    with pytest.raises(UpdateRefused, match="quantize: not one of the allowed values"):
        device.poll("--quantize", "int4")
    with pytest.raises(UpdateRefused, match="m@unknown"):
        device.poll("--alias", "unknown")


# ---- the command ----


def test_the_command_requires_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = edge_pull.parse_arguments(["--model", "m", "--dir", str(tmp_path), "--device", "pi-1"])
    monkeypatch.delenv("TRIVIUM_API_KEY", raising=False)
    with pytest.raises(SystemExit, match="an API key is required"):
        edge_pull.request_headers(args)
    monkeypatch.setenv("TRIVIUM_API_KEY", "from-the-environment")
    headers = {"Authorization": "Bearer from-the-environment", "X-Device-Id": "pi-1"}
    assert edge_pull.request_headers(args) == headers
    args.key_file = tmp_path / "key"
    args.key_file.write_text("from-a-file\n")
    args.runtime_version = "2.1.0"
    assert edge_pull.request_headers(args) == {
        "Authorization": "Bearer from-a-file",
        "X-Device-Id": "pi-1",
        "X-Runtime-Version": "2.1.0",
    }
    args.key_file.write_text("\n")
    with pytest.raises(SystemExit, match="an API key is required"):
        edge_pull.request_headers(args)


def test_the_options_have_their_documented_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIVIUM_URL", raising=False)
    args = vars(edge_pull.parse_arguments(["--model", "m", "--dir", "d"]))
    assert args.pop("device") == socket.gethostname()
    assert args == {
        "url": "http://127.0.0.1:8080",
        "model": "m",
        "dir": Path("d"),
        "alias": "champion",
        "quantize": "none",
        "key_file": None,
        "runtime_version": None,
        "root": None,
        "self_test": None,
        "self_test_timeout": 60.0,
        "once": False,
        "interval": 300.0,
    }
    monkeypatch.setenv("TRIVIUM_URL", "http://server:1")
    assert edge_pull.parse_arguments(["--model", "m", "--dir", "d"]).url == "http://server:1"
    for missing in (["--model", "m"], ["--dir", "d"]):
        with pytest.raises(SystemExit):
            edge_pull.parse_arguments(missing)


@dataclass
class Waits:
    """Stands for the wait between two polls: no time passes, and it ends the script after `count` waits."""

    count: int
    seconds: list[float] = field(default_factory=list)
    at_wait: Callable[[int], object] = lambda _: None

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        self.at_wait(len(self.seconds))
        return len(self.seconds) == self.count


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits(1)
    monkeypatch.setattr(edge_pull, "stop_signal", lambda: waits)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    return waits


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (300, [600, 1200, 2400, 3600, 3600]),
        (3600, [3600, 3600]),
        (5000, [5000, 5000]),
    ],
)
def test_failed_polls_double_the_wait_up_to_an_hour_or_the_interval(
    device: Device, waits: Waits, interval: int, expected: list[int]
) -> None:
    waits.count = len(expected)
    options = device.arguments("--url", "http://127.0.0.1:9", "--interval", str(interval))
    assert edge_pull.main(options) == 0
    assert waits.seconds == expected


def test_a_successful_poll_ends_the_longer_waits(
    device: Device, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device.folder.mkdir()
    waits.count = 4
    device.file.mkdir()  # no file can be renamed to it
    waits.at_wait = lambda number: device.file.rmdir() if number == 2 else None
    assert edge_pull.main(device.arguments("--url", f"{device.server.url}/", "--interval", "10")) == 0
    assert waits.seconds == [20, 40, 10, 10]
    assert "is current" in caplog.text
    assert device.file.read_bytes() == BIG


def test_intervals_differ_by_a_fifth(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, bounds = Waits(1), []
    monkeypatch.setattr(edge_pull, "stop_signal", lambda: waits)
    monkeypatch.setattr(random, "uniform", lambda *given: bounds.append(given) or 1.2)  # type: ignore[func-returns-value]
    assert edge_pull.main(device.arguments("--interval", "100")) == 0
    assert (waits.seconds, bounds) == ([120.0], [(0.8, 1.2)])


def test_once_ends_with_1_after_every_kind_of_failure(
    device: Device, waits: Waits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert edge_pull.main(device.arguments("--once")) == 0
    (key := tmp_path / "key").write_text("trv_nobody_x")
    (no_root := tmp_path / "root.json").write_text("{}")
    device.file.unlink()
    for options, error in [
        (["--key-file", str(key)], "UpdateRefused"),
        (["--url", "http://127.0.0.1:9"], "ConnectError"),
        (["--root", str(no_root)], "DeserializationError"),
        (["--root", str(tmp_path / "missing")], "FileNotFoundError"),
    ]:
        caplog.clear()
        assert edge_pull.main(device.arguments("--once", *options)) == 1
        assert error in caplog.text
    assert waits.seconds == []
