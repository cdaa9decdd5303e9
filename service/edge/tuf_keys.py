"""Private keys of the TUF roles: PEM files with mode 0600, in the data directory or offline elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from registry.artifacts import create_directory, fsync_directory, write_durably
from registry.errors import Conflict, Invalid, invalid_field

OFFLINE_ROLES = ("root", "targets")
"""Roles whose key may be moved offline. The server itself signs for the other two, every day."""


class RoleKeys:
    """A directory with one key file per role."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, role: str) -> Path:
        return self.directory / f"{role}.pem"

    def previous_path(self, role: str) -> Path:
        return self.directory / f"{role}.previous.pem"

    def load(self, role: str) -> list[CryptoSigner]:
        """Load the signers of `role` in this directory, the newest first. The root decides which is valid."""
        paths = (self.path(role), self.previous_path(role))
        return [read_signer(path) for path in paths if path.exists()]

    def create(self, role: str, valid_keyids: Collection[str] = ()) -> CryptoSigner:
        """Create a key. The existing one is kept as the previous key if it is one of `valid_keyids`.

        It is still needed when the process crashes before the new root is committed. Any other existing key
        is from a rotation that was not committed: it must not replace the previous key, which is still valid.
        """
        signer = CryptoSigner.generate_ed25519()
        create_directory(self.directory, 0o700)
        existing = self.path(role)
        if existing.exists() and read_signer(existing).public_key.keyid in valid_keyids:
            existing.replace(self.previous_path(role))
        _write(self.path(role), signer.private_bytes)
        return signer

    def move_offline(self, role: str, directory: Path, valid_keyids: Collection[str] | None = None) -> Path:
        """Move the role's key to another directory, and return its new path.

        `valid_keyids`: the key must be one of them; by default the newest key is moved. Raises `Invalid` for
        a role whose key must stay online, and `Conflict` when the key is not in this directory or the target
        file exists.
        """
        if role not in OFFLINE_ROLES:
            raise invalid_field(
                "role",
                "its key must stay online",
                " or ".join(OFFLINE_ROLES),
                detail=f"the key of {role} signs every day and cannot be moved offline",
            )
        source = self._find(role, valid_keyids)
        if source is None:
            raise Conflict(f"the key of {role} is not in {self.directory}; it was already moved offline")
        target = directory / f"{role}.pem"
        if target.exists():
            raise Conflict(f"the file {target} already exists; choose another directory")
        create_directory(directory, 0o700)
        _write(target, source.read_bytes())
        self.path(role).unlink(missing_ok=True)
        self.previous_path(role).unlink(missing_ok=True)
        fsync_directory(self.directory)
        return target

    def _find(self, role: str, valid_keyids: Collection[str] | None) -> Path | None:
        """Return the file of the newest key that is valid, or None."""
        for path in (self.path(role), self.previous_path(role)):
            if path.exists() and (valid_keyids is None or read_signer(path).public_key.keyid in valid_keyids):
                return path
        return None


def read_signer(path: Path) -> CryptoSigner:
    """Read a PEM file. Raises `Invalid` when it does not contain an Ed25519 private key."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise Invalid(f"{path} cannot be read as a private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid(f"{path} is not an Ed25519 key")
    return CryptoSigner(key)


def _write(path: Path, content: bytes) -> None:
    """Write a key file that only its owner may read: no other copy of the key may exist."""
    write_durably(path, content, path.with_suffix(".partial"), 0o600)
