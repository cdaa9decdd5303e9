"""The TUF repository: signs which files each alias provides, so that devices need not trust the server.

The Update Framework, https://theupdateframework.github.io/specification/ : `root` lists the keys, `targets`
the files with length, sha256, version and minimum runtime, `snapshot` the current version of targets, and
`timestamp` confirms the snapshot every day. python-tuf builds the documents from the registry's rows, and
`registry/tuf_documents.py` stores them. The files are the blobs of exports.

This module signs. Serving the documents (`tuf_routes.py`) and storing keys (`tuf_keys.py`) are not part of
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
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
from service.edge.tuf_keys import RoleKeys

LIFETIME = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=7),
    "timestamp": timedelta(days=1),
}
"""Validity of a document by role. It is signed again after half of it. An attacker who replays old documents
can freeze a device only until the timestamp expires."""
RECOVERED_VERSIONS_SINCE = datetime(2020, 1, 1, tzinfo=UTC)
"""A recovered registry continues with the seconds since then as version numbers, which are above all that
devices have seen: fewer documents are signed than seconds pass."""
RECOVERED_ROOTS = 10
"""Versions of root that `recover` signs. Devices verify all of them in turn, so these cannot be skipped."""
MAX_SIGNED_WHILE_PREPARED = 1000
"""Versions of snapshot that may be signed between `prepare` and `submit`, for which 90 days remain. `recover`
raises them by more, so that a document prepared before it is refused: devices have seen newer ones."""
ONLINE_ROLES = ("snapshot", "timestamp")


class RoleStatus(msgspec.Struct, frozen=True):
    role: str
    version: int
    expires: datetime
    online: bool  # its key is in the data directory


class TufStatus(msgspec.Struct, frozen=True):
    roles: list[RoleStatus]
    pending: list[str]  # names of targets whose change waits for a signature with the offline key


class Recovery(msgspec.Struct, frozen=True):
    versions: dict[str, int]  # by role
    waiting: list[str]  # roles whose keys are offline: their documents are those of the backup


class CurrentDocuments(NamedTuple):
    root: Metadata[Root]
    targets: Metadata[Targets] | None
    snapshot: Metadata[Snapshot] | None
    timestamp: Metadata[Timestamp] | None


class TufRepository:
    """Reads and signs documents in the caller's transaction, which holds the signers' lock."""

    def __init__(self, session: Session, keys: RoleKeys) -> None:
        self._session = session
        self._keys = keys
        self._lowest_version = 0  # of new documents, except root
        tuf_documents.lock(session)

    def refresh(self, now: datetime | None = None) -> bool:
        """Sign documents that changed or that are past half of their validity; return whether any was signed.

        Does nothing before the first export is available. Documents of roles with an offline key stay as they
        are.
        """
        now = now or _utc_now()
        files = exports.device_files(self._session)
        if not self._has_root():
            if not files:
                return False
            self._create_root(now)
        current = self._current()
        root_signed = self._renew_root(current.root, now)
        targets_signed = self._sign_targets(current, files, now)
        return self._sign_snapshot_and_timestamp(now, force=targets_signed) or root_signed or targets_signed

    def status(self) -> TufStatus:
        """Return the state of each role. Raises `Conflict` before the first export is available."""
        current = self._current()
        roles = [
            RoleStatus(
                role,
                document.signed.version,
                document.signed.expires,
                self._signer(current.root, role) is not None,
            )
            for role, document in zip(ROLES, current, strict=True)
            if document is not None
        ]
        available = _target_files(exports.device_files(self._session))
        signed = _signed_target_files(current.targets)
        names = available.keys() | signed.keys()
        return TufStatus(roles, sorted(n for n in names if available.get(n) != signed.get(n)))

    def prepare(self) -> bytes:
        """Return the next targets document without a signature, for signing with the offline key."""
        files = exports.device_files(self._session)
        return self._next_targets(self._current(), files, _utc_now()).to_bytes()

    def submit(self, content: bytes) -> int:
        """Store a targets document that was signed offline, and return its version.

        Raises `Invalid` when its signature is not valid, and `Conflict` when it is outdated: expired, not the
        next version, or for other files than those available now.
        """
        current = self._current()
        document = _verify_targets(content, current.root)
        version, next_version = document.signed.version, self._next_targets_version(current)
        newest = current.targets.signed.version if current.targets else 0
        newest = max(newest, next_version - MAX_SIGNED_WHILE_PREPARED)
        if not newest < version <= next_version or document.signed.is_expired():
            raise Conflict(
                f"the document is version {version}, the next version is {next_version}; prepare it again"
            )
        if document.signed.targets != _target_files(exports.device_files(self._session)):
            raise Conflict(
                "the files for devices have changed since the document was prepared; prepare it again"
            )
        tuf_documents.add(self._session, "targets", version, content.decode())
        self._sign_snapshot_and_timestamp(_utc_now(), force=True)
        return version

    def rotate(self, role: str, root_signer: Signer | None = None, new_keys: RoleKeys | None = None) -> int:
        """Replace the key of `role`, sign a new root with the current root key, and return its version.

        `root_signer` is required when the root key is offline. `new_keys`, the directory for the new key, is
        required when the role's key is offline: the new one must not be stored online by accident. Raises
        `Conflict` without them, and `Invalid` for an unknown role.
        """
        if role not in ROLES:
            raise Invalid(f"there is no role {role!r}; the roles are {', '.join(ROLES)}")
        current = self._current()
        root, current_signer = current.root, root_signer or self._signer(current.root, "root")
        if current_signer is None or current_signer.public_key.keyid not in root.signed.roles["root"].keyids:
            raise Conflict("a new root must be signed with the current root key; pass its file (--root-key)")
        if new_keys is None and self._signer(root, role) is None:
            raise Conflict(f"the key of {role} is offline; pass a directory for the new key (--to)")
        valid_keyids = list(root.signed.roles[role].keyids)
        new_signer = (new_keys or self._keys).create(role, valid_keyids)
        for keyid in valid_keyids:
            root.signed.revoke_key(keyid, role)
        root.signed.add_key(new_signer.public_key, role)
        signers = [current_signer, new_signer] if role == "root" else [current_signer]
        version = self._sign_root(root, signers, _utc_now())
        if role == "targets":
            files = exports.device_files(self._session)
            self._add("targets", self._next_targets(current, files, _utc_now()), [new_signer])
        if role != "root":
            self._sign_snapshot_and_timestamp(_utc_now(), force=True)
        return version

    def recover(
        self, root_signers: Sequence[Signer] = (), roots: int = RECOVERED_ROOTS, now: datetime | None = None
    ) -> Recovery:
        """Sign documents that devices accept after a restore from a backup.

        Devices refuse versions below those that they have seen. Targets, snapshot and timestamp get versions
        from the clock. Root gets `roots` further versions, which list the newest keys of the data directory;
        `root_signers`, the newest first, are required for that when the root key is offline. Raises
        `Conflict` when they or the online keys are not those that root lists, and when the clock is behind
        the documents.
        """
        now = now or _utc_now()
        current = self._current()
        _require_clock(current, now)
        self._lowest_version = int((now - RECOVERED_VERSIONS_SINCE).total_seconds())
        signers = self._root_signers(current.root, root_signers)
        if signers:
            self._list_newest_keys(current.root, signers[0])
            for _ in range(roots):
                self._sign_root(current.root, signers, now)
        for role in ONLINE_ROLES:
            if self._signer(current.root, role) is None:
                raise Conflict(
                    f"the key of {role} in version {current.root.signed.version} of root is not in "
                    f"{self._keys.directory}; restore it, or pass the root key (--root-key)"
                )
        files = exports.device_files(self._session)
        targets_signed = self._sign_targets(current, files, now, force=True)
        self._sign_snapshot_and_timestamp(now, force=True)
        self._lowest_version = 0
        versions = {d.signed.type: d.signed.version for d in self._current() if d is not None}
        waiting = ([] if signers else ["root"]) + ([] if targets_signed else ["targets"])
        return Recovery(versions, waiting)

    def _root_signers(self, root: Metadata[Root], passed: Sequence[Signer]) -> list[Signer]:
        """Return the root keys at hand, the newest first; none if the root key is offline.

        The keys may be newer than the restored database: then the old and the new key sign, for devices that
        have seen the newer root and for the others.
        """
        signers: list[Signer] = [*passed, *self._keys.load("root")]
        listed = root.signed.roles["root"].keyids
        if any(s.public_key.keyid in listed for s in signers):
            return signers
        if passed:
            raise Conflict(
                f"none of the keys is the root key of version {root.signed.version}; after a rotation, pass "
                "the new and the previous one (--root-key root.pem --root-key root.previous.pem)"
            )
        return []

    def _list_newest_keys(self, root: Metadata[Root], root_signer: Signer) -> None:
        """List `root_signer` and the newest key of each other role; create keys that must be online."""
        _replace_key(root.signed, "root", root_signer)
        for role in (*ONLINE_ROLES, "targets"):
            newest = next(iter(self._keys.load(role)), None)
            if newest is None and role in ONLINE_ROLES:
                newest = self._keys.create(role)
            if newest is not None:
                _replace_key(root.signed, role, newest)

    def move_offline(self, role: str, directory: Path) -> Path:
        """Move the valid key of `role` to another directory, and return its new path.

        A newer key may be in the data directory, from a rotation that was not committed. Raises as
        `RoleKeys.move_offline`.
        """
        roles = self._current().root.signed.roles
        return self._keys.move_offline(role, directory, roles[role].keyids if role in roles else ())

    def _has_root(self) -> bool:
        return tuf_documents.newest(self._session, "root") is not None

    def _create_root(self, now: datetime) -> None:
        """Sign the first root, with the keys of the data directory; missing keys are created."""
        root = Metadata(Root(consistent_snapshot=True))
        signers = {role: next(iter(self._keys.load(role)), None) or self._keys.create(role) for role in ROLES}
        for role, signer in signers.items():
            root.signed.add_key(signer.public_key, role)
        root.signed.version = 0
        self._sign_root(root, [signers["root"]], now)

    def _current(self) -> CurrentDocuments:
        """Load the newest documents. Raises `Conflict` before the first export is available."""
        if not self._has_root():
            raise Conflict("nothing has been exported yet, so there is nothing to sign")
        texts = [tuf_documents.newest(self._session, role) for role in ROLES]
        documents = (None if text is None else Metadata.from_bytes(text.encode()) for text in texts)
        return CurrentDocuments(*documents)  # type: ignore[arg-type]

    def _renew_root(self, root: Metadata[Root], now: datetime) -> bool:
        signer = self._signer(root, "root")
        if signer is None or not _is_due(root.signed, now):
            return False
        self._sign_root(root, [signer], now)
        return True

    def _sign_root(self, root: Metadata[Root], signers: list[Signer], now: datetime) -> int:
        root.signed.version += 1
        root.signed.expires = now + LIFETIME["root"]
        self._add("root", root, signers)
        return root.signed.version

    def _sign_targets(
        self, current: CurrentDocuments, files: list[DeviceFile], now: datetime, force: bool = False
    ) -> bool:
        targets = current.targets
        if targets is not None and not force:
            unchanged = targets.signed.targets == _target_files(files)
            if unchanged and not _is_due(targets.signed, now):
                return False
        signer = self._signer(current.root, "targets")
        if signer is None:  # the key is offline: `trivium tuf prepare`, `sign` and `submit`
            return False
        self._add("targets", self._next_targets(current, files, now), [signer])
        return True

    def _next_targets(
        self, current: CurrentDocuments, files: list[DeviceFile], now: datetime
    ) -> Metadata[Targets]:
        version, expires = self._next_targets_version(current), now + LIFETIME["targets"]
        return Metadata(Targets(version, expires=expires, targets=_target_files(files)))

    def _next_targets_version(self, current: CurrentDocuments) -> int:
        """Not below the snapshot's: `recover` raises that also when the key of targets is offline."""
        lowest = current.snapshot.signed.version if current.snapshot else 0
        return max(lowest, self._next_version(current.targets))

    def _sign_snapshot_and_timestamp(self, now: datetime, force: bool) -> bool:
        """Sign both if they are due or `force` is set. Return whether any was signed."""
        snapshot_signed = self._sign_snapshot(now, force)
        return self._sign_timestamp(now, force=snapshot_signed) or snapshot_signed

    def _sign_snapshot(self, now: datetime, force: bool) -> bool:
        current = self._current()
        if current.targets is None or not (force or _is_missing_or_due(current.snapshot, now)):
            return False
        version = self._next_version(current.snapshot)
        meta = {"targets.json": MetaFile(current.targets.signed.version)}
        snapshot = Metadata(Snapshot(version, expires=now + LIFETIME["snapshot"], meta=meta))
        return self._add_if_key_online(current.root, "snapshot", snapshot)

    def _sign_timestamp(self, now: datetime, force: bool) -> bool:
        current = self._current()
        if current.snapshot is None or not (force or _is_missing_or_due(current.timestamp, now)):
            return False
        version = self._next_version(current.timestamp)
        meta = MetaFile(current.snapshot.signed.version)
        timestamp = Metadata(Timestamp(version, expires=now + LIFETIME["timestamp"], snapshot_meta=meta))
        return self._add_if_key_online(current.root, "timestamp", timestamp)

    def _next_version(self, document: Metadata[Any] | None) -> int:
        return max(self._lowest_version, 1 + (document.signed.version if document else 0))

    def _add_if_key_online(self, root: Metadata[Root], role: str, document: Metadata[Any]) -> bool:
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
        """Return the role's signer, or None when its key is offline or no longer listed in `root`."""
        keyids = root.signed.roles[role].keyids
        return next((s for s in self._keys.load(role) if s.public_key.keyid in keyids), None)


def sign_targets(content: bytes, signer: Signer) -> bytes:
    """Sign a prepared targets document. Runs on the machine that has the offline key.

    Raises `Invalid` for another document: a changed server must not get a root with a valid signature.
    """
    try:
        document: Metadata[Targets] = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise Invalid(f"this is not a targets document: {error}") from error
    if not isinstance(document.signed, Targets):
        raise Invalid("this is not a targets document")
    document.sign(signer)
    return document.to_bytes()


def _verify_targets(content: bytes, root: Metadata[Root]) -> Metadata[Targets]:
    """Parse a targets document and verify its signature. Raises `Invalid`."""
    try:
        document: Metadata[Targets] = Metadata.from_bytes(content)
        if not isinstance(document.signed, Targets):
            raise Invalid("this is not a targets document")
        root.signed.verify_delegate(Targets.type, document.signed_bytes, document.signatures)
    except (RepositoryError, ValueError) as error:
        raise Invalid(f"this is not a targets document with a valid signature: {error}") from error
    return document


def _replace_key(root: Root, role: str, signer: Signer) -> None:
    for keyid in list(root.roles[role].keyids):
        if keyid != signer.public_key.keyid:
            root.revoke_key(keyid, role)
    root.add_key(signer.public_key, role)


def _require_clock(current: CurrentDocuments, now: datetime) -> None:
    """Raises `Conflict` when documents were signed after `now`."""
    signed_at = max(d.signed.expires - LIFETIME[d.signed.type] for d in current if d is not None)
    if now < signed_at:
        raise Conflict(
            f"the clock of this machine shows {now}, before documents were signed at {signed_at}; correct it"
        )


def _target_files(files: list[DeviceFile]) -> dict[str, TargetFile]:
    return {
        file.name: TargetFile(file.bytes, {"sha256": file.sha256}, file.name, {"custom": _custom(file)})
        for file in files
    }


def _custom(file: DeviceFile) -> dict[str, object]:
    custom: dict[str, object] = {"version": file.version, "min_runtime": file.min_runtime}
    return custom if file.percent is None else custom | {"percent": file.percent}


def _signed_target_files(targets: Metadata[Targets] | None) -> dict[str, TargetFile]:
    return {} if targets is None else targets.signed.targets


def _is_missing_or_due(document: Metadata[Any] | None, now: datetime) -> bool:
    return document is None or _is_due(document.signed, now)


def _is_due(signed: Signed, now: datetime) -> bool:
    """Return whether less than half of the document's validity remains."""
    return signed.expires - now < LIFETIME[signed.type] / 2


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
