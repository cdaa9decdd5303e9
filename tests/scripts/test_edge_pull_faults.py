"""What `scripts/edge_pull.py` does with faulty proxies, file systems, files, clocks and options."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from registry import aliases, db
from registry.tables import TufMetadataRow
from scripts import edge_pull
from scripts.edge_pull import UpdateRefused
from service.edge.tuf_repository import TufRepository
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

PART = 300_000
Change = Callable[[httpx.Request, bytes, dict[str, str]], tuple[int, bytes, dict[str, str]]]


@pytest.fixture
def run(device: Device, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the script once, without its signal handlers; return the exit code."""
    monkeypatch.setattr(edge_pull, "stop_signal", lambda: lambda _: True)
    return lambda *options: edge_pull.main(device.arguments("--once", *options))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- proxies and caches ----


def ranges(first: int, content: bytes, total: object = len(BIG)) -> tuple[int, bytes, dict[str, str]]:
    return 206, content, {"Content-Range": f"bytes {first}-{len(BIG) - 1}/{total}"}


FAULTS: dict[str, Callable[[], tuple[int, bytes, dict[str, str]]]] = {
    "the part begins later": lambda: ranges(PART + 4096, BIG[PART + 4096 :]),
    "the part is of another file": lambda: ranges(PART, BIG[PART:], 999),
    "the part has no position": lambda: (206, BIG[PART:], {}),
    "the part has several ranges": lambda: (206, BIG, {"Content-Type": "multipart/byteranges; boundary=x"}),
    "the part is compressed": lambda: (
        206,
        gzip.compress(BIG[PART:]),
        ranges(PART, b"")[2] | {"Content-Encoding": "gzip"},
    ),
    "the part has other bytes": lambda: ranges(PART, bytes(len(BIG) - PART)),
    "the part is too long": lambda: ranges(PART, BIG[PART:] + b"x"),
    "the part is empty": lambda: ranges(PART, b""),
    "there is no such range": lambda: (416, b"", {"Content-Range": "bytes */1000"}),
    "the whole answer is truncated": lambda: (200, BIG[:1000], {"Content-Length": "1000"}),
}


def broken_proxy(device: Device, fault: Callable[[], tuple[int, bytes, dict[str, str]]]) -> None:
    """Answer with the fault, until a request demands that caches ask the server."""

    def forged(request: httpx.Request) -> httpx.Response:
        if "no-cache" in request.headers.get("Cache-Control", ""):
            return device.network.server(request)
        status, content, headers = fault()
        return httpx.Response(status, stream=Blocks(content, 1), headers=headers)

    device.network.forged["/v1/blobs"] = forged


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_faulty_continuation_is_dropped_and_the_download_started_again(
    device: Device, fault: Callable[[], tuple[int, bytes, dict[str, str]]]
) -> None:
    partial(device, BIG[:PART])
    broken_proxy(device, fault)
    assert device.poll()
    assert device.file.read_bytes() == BIG
    resumed, again = (r for r in device.network.requests if r.url.path.startswith("/v1/blobs"))
    assert resumed.headers["Range"] == f"bytes={PART}-"
    assert not {"range", "if-range"} & set(again.headers)


@pytest.mark.parametrize("total", [len(BIG), "*"])
def test_a_continuation_that_begins_earlier_is_used(device: Device, total: object) -> None:
    """A cache with blocks sends the block that contains the requested byte."""
    partial(device, BIG[:PART])
    broken_proxy(device, lambda: ranges(PART - 1000, BIG[PART - 1000 :], total))
    assert device.poll()
    assert device.file.read_bytes() == BIG
    assert device.network.paths().count(f"/v1/blobs/{SHA256}") == 1


def test_a_file_that_a_proxy_compresses_is_decompressed(device: Device) -> None:
    headers = {"Content-Encoding": "gzip"}
    broken_proxy(device, lambda: (200, gzip.compress(BIG), headers))
    assert device.poll()
    assert device.file.read_bytes() == BIG


def test_a_connection_that_breaks_leaves_all_received_bytes(device: Device) -> None:
    class Broken(Blocks):
        def __iter__(self) -> Any:
            yield BIG[:PART]
            raise httpx.ReadError("the server went away")

    device.network.forged["/v1/blobs"] = lambda _: httpx.Response(200, stream=Broken(b"", 0))
    with pytest.raises(httpx.ReadError):
        device.poll()
    assert partial(device).read_bytes() == BIG[:PART]
    device.network.forged.clear()
    assert device.poll()


@pytest.mark.parametrize(
    ("field", "value"), [("model", "other"), ("alias", "canary"), ("quantize", "int8"), ("sha256", "../../m")]
)
def test_a_manifest_of_something_else_is_refused(device: Device, field: str, value: str) -> None:
    forge_manifest(device, **{field: value})
    with pytest.raises(UpdateRefused, match=f"not a manifest of m .*{field}"):
        device.poll()
    assert device.network.paths() == ["/v1/edge/m"]


def test_a_redirect_to_a_portal_is_refused_with_its_address(device: Device) -> None:
    headers = {"Location": "http://portal.example/login"}
    device.network.forged["/v1/edge/m"] = lambda _: httpx.Response(302, headers=headers)
    with pytest.raises(UpdateRefused, match=r"302: http://portal\.example/login"):
        device.poll()


def test_an_outdated_manifest_of_a_proxy_is_refused_within_a_day(
    device: Device, registry: ServedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge_pull, "SIGNATURE_WAIT_S", 0.0)
    assert device.poll()
    number = device.state().version
    forge_manifest(device, version=number, sha256=SHA256)
    registry.provide(b"the next one")
    assert not device.poll()
    updater = device.updater()
    for moved in (-86_401, 86_401):  # the clock may have been corrected
        updater.state.verified_at = time.time() + moved
        with pytest.raises(UpdateRefused, match=f"version {number} is not among the signed files"):
            updater.poll()
    assert all(
        r.headers["cache-control"] == "no-cache"
        for r in device.network.requests
        if r.url.path == "/v1/edge/m"
    )


# ---- reports ----


def test_a_report_that_did_not_arrive_is_sent_by_the_next_poll(device: Device) -> None:
    for fault in (answer(200, b"<html>please log in</html>"), answer(503, b"")):
        device.network.forged["/v1/edge/m/reports"] = fault
        device.poll()
        assert device.reports() == []
    device.network.forged.clear()
    assert not device.poll()
    assert [(r["status"], r["version"]) for r in device.reports()] == [("ok", device.state().version)]
    device.network.paths()
    assert not device.poll()
    assert device.network.paths() == ["/v1/edge/m"]


def test_a_report_that_the_server_refuses_is_not_repeated(device: Device) -> None:
    device.network.forged["/v1/edge/m/reports"] = answer(422, b"")
    assert device.poll()
    device.network.paths()
    assert not device.poll()
    assert device.network.paths() == ["/v1/edge/m"]


# ---- file systems ----


@pytest.fixture
def vfat_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device on a file system without links and permissions, whose directories cannot be flushed."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    real = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_relative_to(device.folder) and path.is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    for name in ("link", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "fsync", fsync)
    return device


def test_a_file_system_without_links_keeps_a_copy_of_the_previous_file(
    vfat_device: Device, registry: ServedRegistry
) -> None:
    device = vfat_device
    assert device.poll()
    registry.provide(b"the next one")
    with recorded() as log:
        assert device.poll("--self-test", "test -s")
    assert (device.file.read_bytes(), device.previous.read_bytes()) == (b"the next one", BIG)
    copied = log.content_synced(device.previous)
    assert copied < log.position("rename", device.previous) < log.position("rename", device.file)
    registry.provide(b"broken here")
    with pytest.raises(UpdateRefused, match="self-test"):
        device.poll("--self-test", "false")
    assert device.file.read_bytes() == b"the next one"


def test_an_error_of_the_disk_is_not_a_missing_feature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        edge_pull.sync_directory(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_a_download_needs_space_for_the_rest_and_a_copy_where_there_are_no_links(
    device: Device, registry: ServedRegistry, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    registry.provide(b"x" * 1000)
    assert device.poll()
    registry.provide(BIG)
    partial(device, BIG[:PART])
    needed = len(BIG) - PART + 256 * 1024
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
        needed += 1000
    usage = SimpleNamespace(total=10**9, used=0, free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (usage.total, usage.used, usage.free))
    device.network.paths()
    with pytest.raises(
        UpdateRefused, match=f"needs {needed} free bytes in {device.folder}; {needed - 1} are"
    ):
        device.poll()
    assert not any(path.startswith("/v1/blobs") for path in device.network.paths())
    usage.free = needed
    assert device.poll()


def test_a_disk_that_becomes_full_keeps_the_installed_file_and_loses_the_part(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    registry.provide(b"the next one")
    part = partial(device, sha256=digest(b"the next one"))

    def fail(event: Event) -> None:
        if event.kind == "fsync" and event.path == part:
            raise OSError(errno.ENOSPC, "No space left on device")

    with recorded(fail), pytest.raises(UpdateRefused, match="the disk is full"):
        device.poll()
    assert device.file.read_bytes() == BIG
    assert list(part.parent.iterdir()) == []
    assert device.poll()
    assert device.file.read_bytes() == b"the next one"


def test_a_full_disk_leaves_no_half_copy_and_no_half_state(device: Device, registry: ServedRegistry) -> None:
    assert device.poll()
    registry.provide(b"the next one")
    for name in ("state.json.new", "spare"):

        def fail(event: Event, name: str = name) -> None:
            if event.kind == "link" or (event.kind == "fsync" and event.path.name == name):
                raise OSError(errno.ENOSPC, "No space left on device")

        with recorded(fail), pytest.raises(OSError, match="No space left"):
            device.poll()
        assert device.file.read_bytes() == BIG
        assert not (device.folder / name).exists()
    assert device.poll()


# ---- installed files ----


def test_a_damaged_file_is_replaced_although_its_size_and_date_are_the_same(device: Device) -> None:
    assert device.poll()
    before = device.file.stat()
    device.file.write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    os.utime(device.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert device.poll()
    assert device.file.read_bytes() == BIG


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"damaged")])
def test_the_previous_file_stands_in_while_the_server_cannot_be_reached(
    device: Device, registry: ServedRegistry, damage: Callable[[Path], object]
) -> None:
    assert device.poll()
    first = device.state().version
    number = registry.provide(b"the next one")
    assert device.poll()
    damage(device.file)
    device.network.forged["/"] = answer(503, b"")
    with pytest.raises(UpdateRefused, match="503"):
        device.poll()
    state = device.state()
    assert (state.version, state.sha256, device.file.read_bytes()) == (first, SHA256, BIG)
    device.network.forged.clear()
    assert device.poll()
    assert (device.state().version, device.file.read_bytes()) == (number, b"the next one")


def test_a_version_that_was_taken_back_does_not_stand_in(device: Device, registry: ServedRegistry) -> None:
    assert device.poll()
    first = device.state().version
    registry.provide(b"taken back later")
    assert device.poll()
    with registry.sessions.begin() as session:
        aliases.rollback(session, "m", "champion", by="test")
    registry.sign()
    registry.show()
    assert device.poll()
    assert (device.state().version, device.previous.read_bytes()) == (first, b"taken back later")
    device.file.unlink()
    device.network.forged["/"] = answer(503, b"")
    with pytest.raises(UpdateRefused, match="503"):
        device.poll()
    assert not device.file.exists()


def test_a_damaged_file_without_a_whole_previous_one_is_removed(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    registry.provide(b"the next one")
    assert device.poll()
    for file in (device.file, device.previous):
        file.write_bytes(b"damaged")
    device.network.forged["/"] = answer(503, b"")
    with pytest.raises(UpdateRefused, match="503"):
        device.poll()
    assert not device.file.exists()
    assert (device.state().version, device.state().sha256) == (None, None)


def test_after_a_deletion_and_a_failed_self_test_the_state_names_the_file_in_place(
    device: Device, registry: ServedRegistry
) -> None:
    assert device.poll()
    first = device.state().version
    registry.provide(b"the second one")
    assert device.poll()
    device.file.unlink()
    registry.provide(b"broken here")
    with pytest.raises(UpdateRefused, match="self-test"):
        device.poll("--self-test", "false")
    assert (device.state().version, device.file.read_bytes()) == (first, BIG)
    assert device.reports()[0]["message"].endswith(f"; version {first} is installed")
    number = registry.provide(b"the second one")
    assert device.poll()
    assert (device.state().version, device.file.read_bytes()) == (number, b"the second one")


@pytest.mark.parametrize("moment", ["previous", "state", "file", "directory"])
def test_a_power_failure_during_a_restoration_is_completed_by_the_next_poll(
    device: Device, registry: ServedRegistry, moment: str
) -> None:
    assert device.poll()
    first = device.state().version
    registry.provide(b"the next one")
    assert device.poll()
    device.file.unlink()
    last = {"previous": device.file, "state": device.folder / "state.json"}.get(moment)

    def fail(event: Event) -> None:
        if event.kind == "rename" and event.path == last:
            raise OSError("the power failed")
        if moment in ("file", "directory") and event.kind == "fsync" and event.path.is_dir():
            raise OSError("the power failed")

    with recorded(fail), pytest.raises(OSError, match="the power failed"):
        device.poll()
    device.network.forged["/"] = answer(503, b"")
    with pytest.raises(UpdateRefused, match="503"):
        device.poll()
    assert (device.state().version, device.file.read_bytes()) == (first, BIG)


def test_the_log_names_the_version_that_failed_its_self_test(
    device: Device, registry: ServedRegistry, run: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    assert device.poll()
    first, number = device.state().version, registry.provide(b"broken here")
    with pytest.raises(UpdateRefused):
        device.poll("--self-test", "false")
    with pytest.raises(UpdateRefused):
        device.poll()
    caplog.set_level(logging.INFO)
    assert run() == 0
    assert f"version {first} is installed; version {number} of the server failed its self-test" in caplog.text
    assert "is current" not in caplog.text


# ---- states and directories ----


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"null",
        b"\xff",
        b'{"sha256": 5}',
        b'{"bad": {}}',
        b'{"save": "x", "_path": "x", "sha256": null}',
        b'{"verified_at": 99999999999.0}',
    ],
)
def test_a_state_of_another_form_starts_empty_and_installs_again(device: Device, content: bytes) -> None:
    assert device.poll()
    (device.folder / "state.json").write_bytes(content)
    assert device.poll()
    assert json.loads((device.folder / "state.json").read_text())["sha256"] == SHA256


def test_a_directory_has_the_files_of_one_model(device: Device) -> None:
    assert device.poll()
    with pytest.raises(UpdateRefused, match="has the files of model m; pass another --dir for other"):
        device.poll("--model", "other")


def test_a_second_process_on_the_same_directory_is_refused(
    device: Device, run: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    device.folder.mkdir()
    with edge_pull.locked(device.folder):
        assert run() == 1
    assert "another edge_pull.py is running on" in caplog.text
    assert run() == 0


def test_a_directory_that_cannot_be_created_ends_the_script(
    run: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert run("--dir", str(tmp_path / "file" / "models")) == 1
    assert "NotADirectoryError" in caplog.text


# ---- signed documents and clocks ----


def test_a_damaged_first_root_is_replaced_by_its_copy(device: Device, registry: ServedRegistry) -> None:
    assert device.poll()
    (device.folder / "tuf" / "first.root.json").write_bytes(b"")
    registry.provide(b"the next one")
    device.network.paths()
    assert device.poll()
    assert "/tuf/metadata/1.root.json" not in device.network.paths()


def test_a_restored_server_is_refused_until_it_is_recovered(device: Device, registry: ServedRegistry) -> None:
    registry.sign()
    assert device.poll()
    updater = device.updater()
    updater.state.verified_at = 0.0
    with db.locked(registry.home / "tuf.lock"):  # the server cannot sign
        with registry.sessions.begin() as session:
            for role in ("snapshot", "timestamp"):  # as from a backup: the newest documents are lost
                newest = registry.document(role).signed.version
                session.delete(session.get(TufMetadataRow, (role, newest)))
        with pytest.raises(UpdateRefused, match="`trivium tuf recover`"):
            updater.poll()
        with registry.sessions.begin() as session:
            TufRepository(session, registry.keys).recover(roots=1)
    assert not updater.poll()
    registry.provide(b"after the restore")
    assert device.poll()
    assert device.file.read_bytes() == b"after the restore"


def test_a_clock_that_is_wrong_by_a_day_is_logged(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    assert device.poll()
    assert "clock" not in caplog.text
    dates = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    device.network.forged["/v1/edge/m"] = lambda _: httpx.Response(304, headers=dates)
    assert not device.poll()
    assert "the clock of this device differs from the server's by" in caplog.text


# ---- options ----


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--url", "ftp://server", "not the http:// or https:// address"),
        ("--url", "server:8080", "not the http:// or https:// address"),
        ("--url", "http://\x7f", "argument --url: Invalid non-printable"),
        ("--model", "../other", "a name is 1 to 63"),
        ("--alias", "Kanal", "a name is 1 to 63"),
        ("--device", "", "visible characters"),
        ("--device", "a\nb", "visible characters"),
        ("--device", "\udcff", "visible characters"),
        ("--device", "x" * 201, "201 characters are more than 200"),
        ("--runtime-version", "new", "not a version such as 2.1.0"),
        ("--interval", "0", "a positive number"),
        ("--self-test-timeout", "nan", "a positive number"),
        ("--self-test", "sh -c 'x", "is not a command: No closing quotation"),
    ],
)
def test_an_option_that_no_poll_could_work_with_is_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        edge_pull.parse_arguments(["--model", "m", "--dir", "d", option, value])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_device_with_any_name_gets_its_file_and_reports_the_name(device: Device) -> None:
    name = "Werk München 100% \N{SNOWMAN}"
    assert device.poll("--device", name)
    headers = {r.headers["x-device-id"] for r in device.network.requests}
    assert headers == {"Werk%20M%C3%BCnchen%20100%25%20%E2%98%83"}
    with device.server.client() as client:
        newest = client.get("/v1/edge/m/reports").json()["items"][0]
    assert newest["device"] == name


@pytest.mark.parametrize(
    ("content", "message"),
    [("trv_ü".encode(), "outside ASCII"), (b"\xff", "cannot be read"), (None, "cannot be read")],
)
def test_a_key_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    args = edge_pull.parse_arguments(["--model", "m", "--dir", "d", "--key-file", str(key)])
    with pytest.raises(SystemExit, match=message):
        edge_pull.request_headers(args)
