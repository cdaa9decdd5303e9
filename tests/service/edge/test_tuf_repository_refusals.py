"""What the TUF repository signs and what it refuses: keys, versions and expiry dates."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import event
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Targets

from registry import aliases, tuf_documents
from registry.errors import Conflict, Invalid
from registry.tuf_documents import ROLES
from service.edge.tuf_keys import RoleKeys, read_signer
from service.edge.tuf_repository import LIFETIME, TufRepository, sign_targets
from tests.service.edge.tuf_registry import NAME, Registry

NOW = datetime.now(UTC).replace(microsecond=0)
SECOND = timedelta(seconds=1)


@pytest.fixture
def signed(registry: Registry) -> Registry:
    """A registry with an export and signed documents, each at version 1."""
    registry.export(b"first")
    assert registry.sign()
    return registry


def rotate(registry: Registry, role: str, *arguments: Any) -> int:
    with registry.sessions.begin() as session:
        return TufRepository(session, registry.keys).rotate(role, *arguments)


def prepare(registry: Registry) -> bytes:
    with registry.sessions.begin() as session:
        return TufRepository(session, registry.keys).prepare()


def submit(registry: Registry, content: bytes) -> int:
    with registry.sessions.begin() as session:
        return TufRepository(session, registry.keys).submit(content)


def pending(registry: Registry) -> list[str]:
    with registry.sessions.begin() as session:
        return TufRepository(session, registry.keys).status().pending


def keyids(registry: Registry, role: str) -> list[str]:
    """Return the keys that the newest root lists for `role`."""
    ids: list[str] = registry.document("root").signed.roles[role].keyids
    return ids


def signers(registry: Registry, role: str) -> list[str]:
    """Return the keys that signed the newest document of `role`."""
    return list(registry.document(role).signatures)


# ---- validity ----


def test_documents_are_valid_for_a_day_a_week_three_months_or_a_year() -> None:
    days = {role: lifetime / timedelta(days=1) for role, lifetime in LIFETIME.items()}
    assert days == {"root": 365, "targets": 90, "snapshot": 7, "timestamp": 1}


def test_the_lock_of_the_signers_is_taken_before_anything_is_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[str] = []
    read_before: list[list[str]] = []
    lock = tuf_documents.lock

    def record(session: Session) -> None:
        read_before.append([s for s in statements if "tuf_metadata" in s])
        lock(session)

    monkeypatch.setattr(tuf_documents, "lock", record)
    event.listen(registry.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    registry.export(b"model")
    assert registry.sign()
    assert read_before == [[]]
    assert any("tuf_metadata" in statement for statement in statements)


@pytest.mark.parametrize("role", ROLES)
def test_a_document_is_signed_again_one_second_after_half_of_its_validity(
    registry: Registry, role: str
) -> None:
    registry.export(b"model")
    assert registry.sign(NOW)
    assert registry.document(role).signed.expires == NOW + LIFETIME[role]
    half = NOW + LIFETIME[role] / 2
    registry.sign(half)
    assert registry.versions()[role] == 1
    assert registry.sign(half + SECOND)
    assert registry.versions()[role] == 2
    assert registry.document(role).signed.expires == half + SECOND + LIFETIME[role]
    assert signers(registry, role) == keyids(registry, role), "no signature of the former version is left"
    assert not registry.sign(half + SECOND)


def test_a_root_that_is_signed_again_alone_counts_as_a_change(signed: Registry) -> None:
    due = signed.document("root").signed.expires - LIFETIME["root"] / 2 + SECOND
    signed.sign(due - SECOND)
    before = signed.versions()
    assert signed.sign(due)
    assert signed.versions() == before | {"root": 2}


def test_documents_refer_to_the_newest_versions_of_each_other(signed: Registry) -> None:
    signed.export(b"second")
    assert signed.sign()
    assert signed.versions() == {"root": 1, "targets": 2, "snapshot": 2, "timestamp": 2}
    assert signed.document("snapshot").signed.meta["targets.json"].version == 2
    assert signed.document("timestamp").signed.snapshot_meta.version == 2
    assert not signed.sign()


def test_existing_keys_are_used_in_the_first_root(registry: Registry) -> None:
    created = registry.keys.create("root").public_key.keyid
    registry.export(b"model")
    registry.sign()
    assert keyids(registry, "root") == signers(registry, "root") == [created]
    assert len({keyid for role in ROLES for keyid in keyids(registry, role)}) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda repository: repository.status(),
        lambda repository: repository.prepare(),
        lambda repository: repository.submit(b"{}"),
        lambda repository: repository.rotate("root"),
    ],
    ids=["status", "prepare", "submit", "rotate"],
)
def test_nothing_can_be_done_before_the_first_export(
    registry: Registry, call: Callable[[TufRepository], object]
) -> None:
    with registry.sessions.begin() as session, pytest.raises(Conflict, match="nothing has been exported yet"):
        call(TufRepository(session, registry.keys))


# ---- rotation ----


@pytest.fixture(params=["former root key", "key of another registry", "key of another role"])
def wrong_root_key(request: pytest.FixtureRequest, signed: Registry, tmp_path: Path) -> CryptoSigner:
    if request.param == "former root key":
        rotate(signed, "root")
        return read_signer(signed.keys.previous_path("root"))
    if request.param == "key of another registry":
        return RoleKeys(tmp_path / "other").create("root")
    return read_signer(signed.keys.path("targets"))


def test_a_key_that_is_not_the_current_root_key_rotates_nothing(
    signed: Registry, wrong_root_key: CryptoSigner
) -> None:
    before, keys = signed.versions(), {r: signed.keys.path(r).read_bytes() for r in ROLES}
    for role in ROLES:
        with pytest.raises(Conflict, match="must be signed with the current root key"):
            rotate(signed, role, wrong_root_key)
    assert (signed.versions(), {r: signed.keys.path(r).read_bytes() for r in ROLES}) == (before, keys)


def test_a_role_without_a_key_cannot_be_rotated(signed: Registry) -> None:
    with pytest.raises(Invalid, match="'mirrors'; the roles are root, targets, snapshot, timestamp"):
        rotate(signed, "mirrors")
    assert signed.versions()["root"] == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_rotation_replaces_the_key_of_its_role_only(signed: Registry, role: str) -> None:
    before = {r: keyids(signed, r) for r in ROLES}
    assert rotate(signed, role) == 2
    created = read_signer(signed.keys.path(role)).public_key.keyid
    assert {r: keyids(signed, r) for r in ROLES} == before | {role: [created]}
    assert set(signed.document("root").signed.keys) == {k for r in ROLES for k in keyids(signed, r)}
    root_signers = [*before["root"], created] if role == "root" else before["root"]
    assert signers(signed, "root") == root_signers
    assert signers(signed, role)[-1] == created
    expected = {
        "root": (1, 1, 1),
        "targets": (2, 2, 2),
        "snapshot": (1, 2, 2),
        "timestamp": (1, 2, 2),
    }
    versions = signed.versions()
    assert (versions["targets"], versions["snapshot"], versions["timestamp"]) == expected[role]
    assert not signed.sign(), "all documents are current"


@pytest.mark.parametrize("role", ROLES)
def test_a_rotation_that_is_not_committed_leaves_the_listed_key_in_use(signed: Registry, role: str) -> None:
    """As after a crash between the new key file and the commit."""
    with signed.sessions() as session:
        TufRepository(session, signed.keys).rotate(role)
    assert read_signer(signed.keys.path(role)).public_key.keyid not in keyids(signed, role)
    signed.export(b"second")
    due = signed.document("root").signed.expires - LIFETIME["root"] / 2 + SECOND
    assert signed.sign(due)
    assert signers(signed, role) == keyids(signed, role)
    assert rotate(signed, role) == 3


def test_a_new_key_is_created_in_the_directory_for_it(signed: Registry, tmp_path: Path) -> None:
    online = signed.keys.path("targets").read_bytes()
    rotate(signed, "targets", None, RoleKeys(tmp_path / "stick"))
    assert signed.keys.path("targets").read_bytes() == online
    assert keyids(signed, "targets") == [read_signer(tmp_path / "stick" / "targets.pem").public_key.keyid]
    with signed.sessions.begin() as session:
        online_roles = {r.role: r.online for r in TufRepository(session, signed.keys).status().roles}
    assert online_roles == {"root": True, "targets": False, "snapshot": True, "timestamp": True}


# ---- documents signed offline ----


@pytest.fixture
def offline_key(signed: Registry, tmp_path: Path) -> CryptoSigner:
    """The key of targets, which is no longer in the data directory; a promotion waits for it."""
    key = read_signer(signed.keys.move_offline("targets", tmp_path / "stick"))
    signed.export(b"second")
    assert not signed.sign()
    return key


def changed(content: bytes, signer: CryptoSigner, **fields: Any) -> bytes:
    """Change fields of a prepared document and sign it."""
    document = Metadata[Targets].from_bytes(content)
    for name, value in fields.items():
        setattr(document.signed, name, value)
    document.sign(signer)
    return document.to_bytes()


def test_a_submitted_document_is_published_with_a_new_snapshot_and_timestamp(
    signed: Registry, offline_key: CryptoSigner
) -> None:
    assert submit(signed, sign_targets(prepare(signed), offline_key)) == 2
    assert signed.versions() == {"root": 1, "targets": 2, "snapshot": 2, "timestamp": 2}
    assert signed.document("snapshot").signed.meta["targets.json"].version == 2
    assert signed.document("targets").signed.expires > datetime.now(UTC) + LIFETIME["targets"] - 60 * SECOND
    assert (pending(signed), signed.sign()) == ([], False)


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=1)], ids=["now", "a day ago"])
def test_an_expired_document_is_refused(signed: Registry, offline_key: CryptoSigner, age: timedelta) -> None:
    expires = datetime.now(UTC).replace(microsecond=0) - age
    with pytest.raises(Conflict, match="prepare it again"):
        submit(signed, changed(prepare(signed), offline_key, expires=expires))
    assert signed.versions() == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}
    assert submit(signed, changed(prepare(signed), offline_key, expires=NOW + timedelta(days=1))) == 2


@pytest.mark.parametrize("version", [1, 3])
def test_a_document_with_another_than_the_next_version_is_refused(
    signed: Registry, offline_key: CryptoSigner, version: int
) -> None:
    with pytest.raises(Conflict, match=f"version {version}, the next version is 2; prepare it again"):
        submit(signed, changed(prepare(signed), offline_key, version=version))
    assert signed.versions()["targets"] == 1


def test_a_document_for_other_files_than_the_current_ones_is_refused(
    signed: Registry, offline_key: CryptoSigner
) -> None:
    document = sign_targets(prepare(signed), offline_key)
    signed.export(b"third")
    with pytest.raises(Conflict, match="files for devices have changed"):
        submit(signed, document)
    assert signed.versions()["targets"] == 1


def test_a_document_whose_signature_is_not_of_the_current_targets_key_is_refused(
    signed: Registry, offline_key: CryptoSigner, tmp_path: Path
) -> None:
    prepared = prepare(signed)
    other = RoleKeys(tmp_path / "other").create("targets")
    root_key = read_signer(signed.keys.path("root"))
    for content in (prepared, sign_targets(prepared, other), sign_targets(prepared, root_key)):
        with pytest.raises(Invalid, match="valid signature"):
            submit(signed, content)
    document = json.loads(sign_targets(prepared, offline_key))
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    with pytest.raises(Invalid, match="valid signature"):
        submit(signed, json.dumps(document).encode())
    rotate(signed, "targets", None, RoleKeys(tmp_path / "new"))
    with pytest.raises(Invalid, match="valid signature"):
        submit(signed, sign_targets(prepare(signed), offline_key))
    assert signed.versions()["targets"] == 2, "of the rotation"


def test_only_a_targets_document_is_accepted(signed: Registry, offline_key: CryptoSigner) -> None:
    snapshot = signed.document("snapshot")
    snapshot.sign(offline_key)
    for content in (b"", b"{}", b"no document", b"\xff\xfe", snapshot.to_bytes()):
        with pytest.raises(Invalid, match="not a targets document"):
            submit(signed, content)
    assert signed.versions()["targets"] == 1


def test_only_a_targets_document_is_signed_offline(signed: Registry, offline_key: CryptoSigner) -> None:
    """Whoever controls the server can pass any root document to the machine that holds the root key."""
    for content in (b"", b"{}", b"\xff", *(signed.document(r).to_bytes() for r in ROLES if r != "targets")):
        with pytest.raises(Invalid, match="not a targets document"):
            sign_targets(content, offline_key)


def test_removed_files_wait_for_the_offline_key(signed: Registry, offline_key: CryptoSigner) -> None:
    submit(signed, sign_targets(prepare(signed), offline_key))
    with signed.sessions.begin() as session:
        aliases.remove(session, "m", "champion", by="test")
    assert pending(signed) == [NAME]
    submit(signed, sign_targets(prepare(signed), offline_key))
    assert signed.document("targets").signed.targets == {}
    assert pending(signed) == []


def test_no_document_is_signed_again_while_its_key_is_offline(
    signed: Registry, offline_key: CryptoSigner, tmp_path: Path
) -> None:
    signed.keys.move_offline("root", tmp_path / "stick")
    assert signed.sign(NOW + LIFETIME["root"])
    assert signed.versions() == {"root": 1, "targets": 1, "snapshot": 2, "timestamp": 2}
