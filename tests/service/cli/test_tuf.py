"""`trivium tuf` on a data directory, without a server: keys, offline signing and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Targets

from registry import revision
from service.edge.tuf_keys import RoleKeys, read_signer
from tests.service.cli.conftest import CommandResult
from tests.service.edge.conftest import empty_registry as empty_registry
from tests.service.edge.conftest import registry as registry
from tests.service.edge.tuf_registry import NAME, Registry

Tuf = Callable[..., CommandResult]


@pytest.fixture
def tuf(trivium: Callable[..., CommandResult], registry: Registry) -> Tuf:
    """Run `trivium tuf` on a registry with an export and signed documents."""
    registry.export(b"first")
    registry.sign()
    registry.home.chmod(0o700)
    environment = {"TRIVIUM_HOME": str(registry.home), "TRIVIUM_URL": "http://127.0.0.1:9"}
    return lambda *args: trivium("tuf", *args, env=environment)


def refused(result: CommandResult, *messages: str) -> None:
    assert (result.code, result.out) == (1, "")
    for message in messages:
        assert message in result.err


def test_the_status_names_roles_keys_and_what_waits_for_a_signature(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    status = tuf("status", "--json").record
    assert [(r["role"], r["version"], r["online"]) for r in status["roles"]] == [
        (role, 1, True) for role in ("root", "targets", "snapshot", "timestamp")
    ]
    assert status["pending"] == []
    assert tuf("offline", "targets", "--to", tmp_path / "stick").code == 0
    registry.export(b"second")
    table = tuf("status")
    assert f"waits for the targets key: {NAME}" in table.err
    online = {line.split()[0]: line.split()[-1] for line in table.out.splitlines()[2:]}
    assert online == {"root": "here", "targets": "elsewhere", "snapshot": "here", "timestamp": "here"}


def test_the_first_root_is_printed_as_it_was_signed(tuf: Tuf, registry: Registry) -> None:
    assert tuf("rotate", "root").code == 0
    assert tuf("root").out == registry.first_root().decode() + "\n"
    assert tuf("root", "--json").record == json.loads(registry.first_root())


def test_a_key_is_moved_offline_once_and_never_over_another_file(tuf: Tuf, tmp_path: Path) -> None:
    refused(tuf("offline", "snapshot", "--to", tmp_path / "stick"), "cannot be moved offline")
    (stick := tmp_path / "stick").mkdir()
    (stick / "root.pem").write_bytes(b"of another registry")
    refused(tuf("offline", "root", "--to", stick), "root.pem already exists")
    assert tuf("offline", "root", "--to", tmp_path / "second", "--json").record == {
        "role": "root",
        "file": str(tmp_path / "second" / "root.pem"),
    }
    refused(tuf("offline", "root", "--to", tmp_path / "third"), "already moved offline")


def test_a_role_is_rotated_with_the_current_root_key_only(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    assert tuf("rotate", "root", "--json").record == {"role": "root", "root": 2}
    RoleKeys(tmp_path / "other").create("root")
    (no_key := tmp_path / "no.pem").write_bytes(b"no key")
    for key in (registry.keys.previous_path("root"), tmp_path / "other" / "root.pem"):
        refused(tuf("rotate", "timestamp", "--root-key", key), "current root key")
    refused(tuf("rotate", "timestamp", "--root-key", no_key), "cannot be read as a private key")
    refused(tuf("rotate", "mirrors"), "no role 'mirrors'")
    assert registry.versions()["root"] == 2
    assert tuf("rotate", "timestamp", "--root-key", registry.keys.path("root")).code == 0
    assert registry.versions()["root"] == 3


def test_an_offline_key_is_replaced_in_the_directory_for_it(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    for role in ("root", "targets"):
        assert tuf("offline", role, "--to", tmp_path / "stick").code == 0
    root_key = tmp_path / "stick" / "root.pem"
    refused(tuf("rotate", "targets"), "--root-key")
    refused(tuf("rotate", "targets", "--root-key", root_key), "--to")
    assert tuf("rotate", "targets", "--root-key", root_key, "--to", tmp_path / "stick").code == 0
    assert not registry.keys.path("targets").exists()
    listed = registry.document("root").signed.roles["targets"].keyids
    assert listed == [read_signer(tmp_path / "stick" / "targets.pem").public_key.keyid]


def test_a_recovered_registry_has_higher_versions_and_another_id(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    with registry.sessions.begin() as session:
        before = revision.registry_id(session)
    record = tuf("recover", "--json").record
    assert record == {"versions": registry.versions(), "waiting": []}
    assert record["versions"]["root"] == 1 + 10
    assert min(record["versions"][role] for role in ("targets", "snapshot", "timestamp")) > 1_000_000
    with registry.sessions.begin() as session:
        assert revision.registry_id(session) != before
    for role in ("root", "targets"):
        assert tuf("offline", role, "--to", tmp_path / "stick").code == 0
    messages = tuf("recover").err
    assert "run this again with --root-key" in messages
    assert "targets waits for its key" in messages
    key = tmp_path / "stick" / "root.pem"
    refused(
        tuf("recover", "--root-key", tmp_path / "stick" / "targets.pem"), "none of the keys is the root key"
    )
    assert "run this again" not in tuf("recover", "--root-key", key, "--roots", "2").err
    assert registry.versions()["root"] == 1 + 10 + 2


def test_a_document_is_signed_offline_and_published_once(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    file, key = tmp_path / "targets.json", tmp_path / "stick" / "targets.pem"
    tuf("offline", "targets", "--to", key.parent)
    registry.export(b"second")
    assert tuf("prepare", file, "--json").record["then"] == f"trivium tuf sign {file} --key targets.pem"
    refused(tuf("submit", file), "valid signature")
    assert tuf("sign", file, "--key", key, "--json").record["then"] == f"trivium tuf submit {file}"
    assert tuf("submit", file, "--json").record == {"targets": 2}
    refused(tuf("submit", file), "prepare it again")
    assert registry.versions() == {"root": 1, "targets": 2, "snapshot": 2, "timestamp": 2}


def test_an_expired_or_foreign_document_is_not_published(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    file, key = tmp_path / "targets.json", tmp_path / "stick" / "targets.pem"
    tuf("offline", "targets", "--to", key.parent)
    registry.export(b"second")
    tuf("prepare", file)
    document = Metadata[Targets].from_bytes(file.read_bytes())
    document.signed.expires = document.signed.expires.replace(year=2020)
    document.sign(read_signer(key))
    document.to_file(str(file))
    refused(tuf("submit", file), "prepare it again")
    RoleKeys(tmp_path / "other").create("targets")
    tuf("prepare", file)
    assert tuf("sign", file, "--key", tmp_path / "other" / "targets.pem").code == 0
    refused(tuf("submit", file), "valid signature")
    assert registry.versions()["targets"] == 1


def test_only_a_prepared_document_is_signed_and_a_refused_one_is_unchanged(
    tuf: Tuf, registry: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "document.json"
    for content in (registry.first_root(), b"no document"):
        file.write_bytes(content)
        refused(tuf("sign", file, "--key", registry.keys.path("root")), "not a targets document")
        assert file.read_bytes() == content
    tuf("prepare", file)
    refused(tuf("sign", file, "--key", tmp_path / "missing.pem"), "cannot be read as a private key")


@pytest.mark.parametrize(
    "arguments", [("status",), ("prepare", "targets.json"), ("rotate", "root"), ("root",)], ids=str
)
def test_before_the_first_export_there_is_nothing_to_sign(
    trivium: Callable[..., CommandResult],
    registry: Registry,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    registry.home.chmod(0o700)
    result = trivium("tuf", *arguments, env={"TRIVIUM_HOME": str(registry.home)})
    assert (result.code, result.out) == (1, "")
    assert "nothing has been exported yet" in result.err or "1.root.json" in result.err
    assert not (tmp_path / "targets.json").exists()
    assert not registry.keys.directory.exists()


def test_a_registry_without_exports_gets_another_id_when_it_is_recovered(
    trivium: Callable[..., CommandResult], registry: Registry
) -> None:
    registry.home.chmod(0o700)
    with registry.sessions.begin() as session:
        before = revision.registry_id(session)
    result = trivium("tuf", "recover", env={"TRIVIUM_HOME": str(registry.home)})
    assert (result.code, "nothing is signed yet" in result.err) == (0, True)
    with registry.sessions.begin() as session:
        assert revision.registry_id(session) != before
    assert not registry.keys.directory.exists()


def test_an_outdated_database_names_the_command_to_run(
    trivium: Callable[..., CommandResult], tmp_path: Path
) -> None:
    (home := tmp_path / "home").mkdir(mode=0o700)
    result = trivium("tuf", "status", env={"TRIVIUM_HOME": str(home)})
    assert result.code == 1
    assert "trivium migrate" in result.err
