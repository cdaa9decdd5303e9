"""The private keys of the TUF roles: PEM files, 0600, in the data directory or wherever they were taken."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from registry.errors import Conflict, Invalid, invalid_field

OFFLINE_ROLES = ("root", "targets")
"""Whose keys may be taken away: the other two sign by themselves, every day."""


class KeyFiles:
    """One directory, one file per role."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, role: str) -> Path:
        return self.directory / f"{role}.pem"

    def previous(self, role: str) -> Path:
        return self.directory / f"{role}.previous.pem"

    def load(self, role: str) -> list[CryptoSigner]:
        """The role's signers that are here, the newest first: root says which of them counts."""
        return [read(path) for path in (self.path(role), self.previous(role)) if path.exists()]

    def create(self, role: str) -> CryptoSigner:
        """Make a key. The one that was there stays as `previous`: a crash before the new root is committed
        must not cost it."""
        signer = CryptoSigner.generate_ed25519()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.path(role).exists():
            self.path(role).replace(self.previous(role))
        _write(self.path(role), signer.private_bytes)
        return signer

    def take(self, role: str, to: Path) -> Path:
        """Move the role's key to the directory `to`, and out of this one. Returns where it is now.

        Raises `Invalid` for a role whose key must stay, `Conflict` when it is not here or there is one.
        """
        if role not in OFFLINE_ROLES:
            raise invalid_field(
                "role",
                "its key must stay online",
                " or ".join(OFFLINE_ROLES),
                detail=f"the key of {role} signs every day and cannot be taken offline",
            )
        if not self.path(role).exists():
            raise Conflict(f"the key of {role} is not here; it was taken already")
        target = to / f"{role}.pem"
        if target.exists():
            raise Conflict(f"there is a file {target} already")
        to.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(target, self.path(role).read_bytes())
        self.path(role).unlink()
        self.previous(role).unlink(missing_ok=True)
        return target


def read(path: Path) -> CryptoSigner:
    """The signer of a PEM file. Raises `Invalid` when it holds no Ed25519 private key."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise Invalid(f"{path} cannot be read as a private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid(f"{path} is no Ed25519 key")
    return CryptoSigner(key)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    partial.rename(path)
