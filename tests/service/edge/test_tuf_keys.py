"""Key files of the TUF roles: created, kept, moved offline and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from registry.errors import Conflict, Invalid
from registry.tuf_documents import ROLES
from service.edge.tuf_keys import RoleKeys, read_signer


@pytest.fixture
def keys(tmp_path: Path) -> RoleKeys:
    return RoleKeys(tmp_path / "home" / "tuf")


def keyid(path: Path) -> str:
    identifier: str = read_signer(path).public_key.keyid
    return identifier


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()} if directory.exists() else {}


def test_the_newest_key_is_loaded_first_and_the_previous_valid_one_is_kept(keys: RoleKeys) -> None:
    assert keys.load("root") == []
    valid = keys.create("root").public_key.keyid
    newest = keys.create("root", [valid]).public_key.keyid
    assert [signer.public_key.keyid for signer in keys.load("root")] == [newest, valid]
    newest = keys.create("root", [valid]).public_key.keyid
    keys.create("targets")
    assert [signer.public_key.keyid for signer in keys.load("root")] == [newest, valid]
    assert sorted(files(keys.directory)) == ["root.pem", "root.previous.pem", "targets.pem"]


def test_the_previous_key_is_loaded_when_the_new_one_was_not_written(keys: RoleKeys) -> None:
    """After a crash in `create`."""
    created = keys.create("root").public_key.keyid
    keys.path("root").replace(keys.previous_path("root"))
    assert [signer.public_key.keyid for signer in keys.load("root")] == [created]


def test_keys_are_readable_only_by_their_owner(keys: RoleKeys, tmp_path: Path) -> None:
    keys.create("root")
    moved = keys.move_offline("root", tmp_path / "stick" / "keys")
    for path, mode in ((keys.directory, 0o700), (moved, 0o600), (moved.parent, 0o700)):
        assert path.stat().st_mode & 0o777 == mode, path


def test_a_key_is_written_over_the_rest_of_an_interrupted_write(keys: RoleKeys) -> None:
    keys.directory.mkdir(parents=True)
    (keys.directory / "root.partial").write_bytes(b"x" * 1000)
    assert keys.create("root").public_key.keyid == keyid(keys.path("root"))
    assert list(files(keys.directory)) == ["root.pem"]


@pytest.mark.parametrize("role", ["root", "targets"])
def test_a_key_that_was_moved_offline_is_only_in_the_new_directory(
    keys: RoleKeys, tmp_path: Path, role: str
) -> None:
    created = keys.create(role, [keys.create(role).public_key.keyid]).public_key.keyid
    assert keys.previous_path(role).exists()
    moved = keys.move_offline(role, tmp_path / "stick")
    assert (moved, keyid(moved)) == (tmp_path / "stick" / f"{role}.pem", created)
    assert files(keys.directory) == {}, "the previous key is deleted, too"
    with pytest.raises(Conflict, match="was already moved offline"):
        keys.move_offline(role, tmp_path / "second stick")
    assert not (tmp_path / "second stick").exists()


@pytest.mark.parametrize("role", [*sorted(set(ROLES) - {"root", "targets"}), "mirrors"])
def test_the_key_of_another_role_cannot_be_moved_offline(keys: RoleKeys, tmp_path: Path, role: str) -> None:
    keys.create(role)
    with pytest.raises(Invalid, match=f"the key of {role} signs every day") as refusal:
        keys.move_offline(role, tmp_path / "stick")
    assert (refusal.value.errors[0].field, refusal.value.errors[0].expected) == ("role", "root or targets")
    assert list(files(keys.directory)) == [f"{role}.pem"]
    assert files(tmp_path / "stick") == {}


def test_a_moved_key_never_replaces_another_file(keys: RoleKeys, tmp_path: Path) -> None:
    keys.create("root")
    before = files(keys.directory)
    (tmp_path / "root.pem").write_bytes(b"of another registry")
    with pytest.raises(Conflict, match=r"root\.pem already exists"):
        keys.move_offline("root", tmp_path)
    assert files(keys.directory) == before
    assert (tmp_path / "root.pem").read_bytes() == b"of another registry"


def pem(key: PrivateKeyTypes, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a private key"),
        (b"", "cannot be read as a private key"),
        (
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "cannot be read as a private key",
        ),
        (
            Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "cannot be read as a private key",
        ),
        (
            pem(Ed25519PrivateKey.generate(), b"secret"),
            "cannot be read as a private key",
        ),
        (pem(generate_private_key(SECP256R1())), "is not an Ed25519 key"),
    ],
    ids=["missing", "empty", "damaged", "public", "encrypted", "another algorithm"],
)
def test_only_a_private_ed25519_key_is_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "key.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Invalid, match=message) as refusal:
        read_signer(file)
    assert str(refusal.value).startswith(str(file))
