"""The TUF repository: what each alias offers its devices, signed so that a device need not trust the server.

The Update Framework, https://theupdateframework.github.io/specification/ : `root` names the keys,
`targets` the files with length, sha256, version and minimum runtime, `snapshot` which targets document
is the newest, `timestamp` that this is still so today. The documents are made with python-tuf from the
registry's own rows, and kept there (`registry/tuf_documents.py`); the files are the exports' blobs.

This module signs. It serves nothing (`tuf_routes.py`) and holds no key (`tuf_keys.py`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from securesystemslib.signer import CryptoSigner, Signer
from sqlalchemy.orm import Session
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from registry import exports, tuf_documents
from registry.errors import Conflict, Invalid
from registry.exports import DeviceFile
from registry.tuf_documents import ROLES
from service.edge.tuf_keys import KeyFiles

LIFETIME = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=1),
}
"""How long a document is good for. It is signed again when half of that has passed: a device that is
shown an old one is frozen for no longer than a timestamp lives."""


class RoleState(msgspec.Struct, frozen=True):
    role: str
    version: int
    expires: datetime
    online: bool  # its key is in the data directory


class Status(msgspec.Struct, frozen=True):
    roles: list[RoleState]
    pending: list[str]  # target names whose change waits for the offline targets key


class Current(NamedTuple):
    root: Metadata[Root]
    targets: Metadata[Targets] | None
    snapshot: Metadata[Snapshot] | None
    timestamp: Metadata[Timestamp] | None


class Repository:
    """Reads and signs within the caller's transaction."""

    def __init__(self, session: Session, keys: KeyFiles) -> None:
        self._session = session
        self._keys = keys
        tuf_documents.lock(session)

    def refresh(self, moment: datetime | None = None) -> bool:
        """Sign what changed or grows old. True when something was signed.

        Does nothing before the first export is offered. Roles whose keys are elsewhere stay as they are.
        """
        moment = moment or _now()
        offered = exports.device_files(self._session)
        if not self._begun():
            if not offered:
                return False
            self._begin(moment)
        now = self._current()
        root_signed = self._renew_root(now.root, moment)
        targets_signed = self._sign_targets(now, offered, moment)
        return self._follow(moment, force=targets_signed) or root_signed or targets_signed

    def status(self) -> Status:
        """Raises `Conflict` before the first export is offered."""
        now = self._current()
        found = [
            RoleState(
                role,
                document.signed.version,
                document.signed.expires,
                self._signer(now.root, role) is not None,
            )
            for role, document in zip(ROLES, now, strict=True)
            if document is not None
        ]
        wanted, signed = _targets(exports.device_files(self._session)), _signed_targets(now.targets)
        pending = sorted(n for n in wanted.keys() | signed.keys() if wanted.get(n) != signed.get(n))
        return Status(found, pending)

    def prepare(self) -> bytes:
        """The next targets document without a signature, to be signed where its key is."""
        return self._next_targets(self._current(), exports.device_files(self._session), _now()).to_bytes()

    def submit(self, content: bytes) -> int:
        """Take a targets document that was signed elsewhere; its version.

        Raises `Invalid` when it is not validly signed, `Conflict` when it is not about what is offered now.
        """
        now = self._current()
        try:
            given: Metadata[Targets] = Metadata.from_bytes(content)
            if not isinstance(given.signed, Targets):
                raise Invalid("this is no targets document")
            now.root.signed.verify_delegate(Targets.type, given.signed_bytes, given.signatures)
        except (RepositoryError, ValueError) as error:
            raise Invalid(f"this is no targets document with a valid signature: {error}") from error
        version = 1 + (now.targets.signed.version if now.targets else 0)
        if given.signed.version != version or given.signed.is_expired():
            raise Conflict(
                f"the document is version {given.signed.version}, the next is {version}; prepare it again"
            )
        if given.signed.targets != _targets(exports.device_files(self._session)):
            raise Conflict("what is offered has changed since the document was prepared; prepare it again")
        tuf_documents.add(self._session, "targets", version, content.decode())
        self._follow(_now(), force=True)
        return version

    def rotate(self, role: str, root_signer: Signer | None = None, to: KeyFiles | None = None) -> int:
        """Give `role` a new key and sign a new root with the old root key; the new root's version.

        `root_signer` is needed when the root key is offline, and `to`, the new key's place, when the role's
        key is: it does not come back by itself. Raises `Conflict` without them.
        """
        now = self._current()
        root, old = now.root, root_signer or self._signer(now.root, "root")
        if old is None or old.public_key.keyid not in root.signed.roles["root"].keyids:
            raise Conflict("a new root must be signed by the present root key: give its file")
        if to is None and self._signer(root, role) is None:
            raise Conflict(f"the key of {role} is kept elsewhere: say where the new one goes (--to)")
        for keyid in list(root.signed.roles[role].keyids):
            root.signed.revoke_key(keyid, role)
        fresh = (to or self._keys).create(role)
        root.signed.add_key(fresh.public_key, role)
        signers = [old, fresh] if role == "root" else [old]
        version = self._sign_root(root, signers, _now())
        if role == "targets":
            self._add(
                "targets", self._next_targets(now, exports.device_files(self._session), _now()), [fresh]
            )
        if role != "root":
            self._follow(_now(), force=True)
        return version

    def _begun(self) -> bool:
        return tuf_documents.newest(self._session, "root") is not None

    def _begin(self, moment: datetime) -> None:
        """The first root, with keys of this data directory, which are made where there are none."""
        root = Metadata(Root(consistent_snapshot=True))
        signers = {role: next(iter(self._keys.load(role)), None) or self._keys.create(role) for role in ROLES}
        for role, signer in signers.items():
            root.signed.add_key(signer.public_key, role)
        root.signed.version = 0
        self._sign_root(root, [signers["root"]], moment)

    def _current(self) -> Current:
        if not self._begun():
            raise Conflict("nothing has been exported yet, so there is nothing to sign")
        found = [tuf_documents.newest(self._session, role) for role in ROLES]
        return Current(*(None if f is None else Metadata.from_bytes(f.encode()) for f in found))  # type: ignore[arg-type]

    def _renew_root(self, root: Metadata[Root], moment: datetime) -> bool:
        signer = self._signer(root, "root")
        if signer is None or not _grows_old(root.signed, moment):
            return False
        self._sign_root(root, [signer], moment)
        return True

    def _sign_root(self, root: Metadata[Root], signers: list[Signer], moment: datetime) -> int:
        root.signed.version += 1
        root.signed.expires = moment + LIFETIME["root"]
        self._add("root", root, signers)
        return root.signed.version

    def _sign_targets(self, now: Current, offered: list[DeviceFile], moment: datetime) -> bool:
        current = now.targets is not None and _signed_targets(now.targets) == _targets(offered)
        if current and now.targets is not None and not _grows_old(now.targets.signed, moment):
            return False
        signer = self._signer(now.root, "targets")
        if signer is None:  # taken offline: `trivium tuf` signs
            return False
        self._add("targets", self._next_targets(now, offered, moment), [signer])
        return True

    def _next_targets(self, now: Current, offered: list[DeviceFile], moment: datetime) -> Metadata[Targets]:
        version = 1 + (now.targets.signed.version if now.targets else 0)
        return Metadata(Targets(version, expires=moment + LIFETIME["targets"], targets=_targets(offered)))

    def _follow(self, moment: datetime, force: bool) -> bool:
        """Sign snapshot and timestamp where targets changed or they grow old."""
        now = self._current()
        if now.targets is None:
            return False
        snapshot, signed = now.snapshot, False
        if force or snapshot is None or _grows_old(snapshot.signed, moment):
            version = 1 + (snapshot.signed.version if snapshot else 0)
            meta = {"targets.json": MetaFile(now.targets.signed.version)}
            snapshot = Metadata(Snapshot(version, expires=moment + LIFETIME["snapshot"], meta=meta))
            signed = self._add_if_possible(now.root, "snapshot", snapshot)
        timestamp = now.timestamp
        if signed or timestamp is None or _grows_old(timestamp.signed, moment):
            version = 1 + (timestamp.signed.version if timestamp else 0)
            about = MetaFile(snapshot.signed.version)
            fresh = Metadata(Timestamp(version, expires=moment + LIFETIME["timestamp"], snapshot_meta=about))
            signed = self._add_if_possible(now.root, "timestamp", fresh) or signed
        return signed

    def _add_if_possible(self, root: Metadata[Root], role: str, document: Metadata[Any]) -> bool:
        signer = self._signer(root, role)
        if signer is not None:
            self._add(role, document, [signer])
        return signer is not None

    def _add(self, role: str, document: Metadata[Any], signers: list[Signer]) -> None:
        document.signatures.clear()
        for signer in signers:
            document.sign(signer, append=True)
        tuf_documents.add(self._session, role, document.signed.version, document.to_bytes().decode())

    def _signer(self, root: Metadata[Root], role: str) -> CryptoSigner | None:
        """The role's key if it is here and root still knows it."""
        known = root.signed.roles[role].keyids
        return next((s for s in self._keys.load(role) if s.public_key.keyid in known), None)


def sign(content: bytes, signer: Signer) -> bytes:
    """A prepared targets document with a signature: what the machine with the offline key does."""
    try:
        document: Metadata[Targets] = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise Invalid(f"this is no targets document: {error}") from error
    document.sign(signer)
    return document.to_bytes()


def _targets(offered: list[DeviceFile]) -> dict[str, TargetFile]:
    return {
        o.name: TargetFile(o.bytes, {"sha256": o.sha256}, o.name, {"custom": _custom(o)}) for o in offered
    }


def _custom(offered: DeviceFile) -> dict[str, object]:
    custom: dict[str, object] = {"version": offered.version, "min_runtime": offered.min_runtime}
    return custom if offered.percent is None else custom | {"percent": offered.percent}


def _signed_targets(targets: Metadata[Targets] | None) -> dict[str, TargetFile]:
    return {} if targets is None else targets.signed.targets


def _grows_old(signed: Signed, moment: datetime) -> bool:
    return signed.expires - moment < LIFETIME[signed.type] / 2


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
