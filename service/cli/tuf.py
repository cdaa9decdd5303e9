"""`trivium tuf`: the keys and documents that sign files for devices (TUF, The Update Framework).

The commands work on this machine's data directory, except `sign`: it needs only the document and the key, and
runs on the machine that has the offline key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, echo

from service.cli.connection import read_settings
from service.cli.options import Json
from service.cli.output import print_message, print_record, print_table

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.edge.tuf_repository import TufRepository

Role = Annotated[
    str, Argument(metavar="ROLE", show_default=False, help="root, targets, snapshot or timestamp.")
]
OfflineRole = Annotated[str, Argument(metavar="ROLE", show_default=False, help="root or targets.")]
TargetsFile = Annotated[
    Path, Argument(metavar="FILE", show_default=False, help="The file of the targets document.")
]


def status(json: Json = False) -> None:
    """Show roles, expiry dates, keys and pending signatures."""
    with _repository() as repository:
        state = repository.status()
    rows = [[r.role, r.version, r.expires.date(), "here" if r.online else "elsewhere"] for r in state.roles]

    def print_status() -> None:
        print_table(("role", "version", "expires", "key"), rows, "nothing is signed yet")
        for name in state.pending:
            print_message(f"waits for the targets key: {name}")

    print_record(json, state, print_status)


def root(json: Json = False) -> None:
    """Print the first root document, always as JSON.

    Install it on a device, which then trusts it.
    """
    import msgspec

    from registry import db, tuf_documents

    settings = read_settings()
    engine = db.connect(settings.url)
    try:
        with db.reading(db.sessions(engine)) as session:
            document = tuf_documents.get(session, "root", 1)
    finally:
        engine.dispose()
    print_record(json, msgspec.json.decode(document), lambda: echo(document))  # the bytes that were signed


def offline(
    role: OfflineRole,
    to: Annotated[Path, Option("--to", help="The directory for the key, for example on a USB stick.")],
    json: Json = False,
) -> None:
    """Move the key of root or targets to another directory."""
    with _repository() as repository:
        file = repository.move_offline(role, to)
    record = {"role": role, "file": str(file)}
    print_record(json, record, lambda: print_message(f"the key of {role} is now {file}, and only there"))


def rotate(
    role: Role,
    root_key: Annotated[
        Path | None, Option("--root-key", help="The root key, if it is not in the data directory.")
    ] = None,
    to: Annotated[
        Path | None,
        Option("--to", help="The directory for the new key, if the role's key is not in the data directory."),
    ] = None,
    json: Json = False,
) -> None:
    """Replace a role's key.

    Devices accept the new key by themselves.
    """
    from service.edge.tuf_keys import RoleKeys, read_signer

    with _repository() as repository:
        signer, directory = read_signer(root_key) if root_key else None, RoleKeys(to) if to else None
        version = repository.rotate(role, signer, directory)
    record = {"role": role, "root": version}
    print_record(json, record, lambda: print_message(f"{role} has a new key; root is version {version}"))


def recover(
    root_key: Annotated[
        list[Path] | None,
        Option("--root-key", help="Root keys outside the data directory; the newest first."),
    ] = None,
    roots: Annotated[
        int, Option("--roots", min=1, max=100, help="More than the versions of root since the backup.")
    ] = 10,
    json: Json = False,
) -> None:
    """Let devices go on after a restore from a backup.

    Signs documents with versions above those that devices have seen, and gives the registry a new identity,
    so that no cache takes its answers for those from before. Run it once, after each restore.
    """
    import msgspec

    from registry import revision, tuf_documents
    from service.edge.tuf_keys import read_signer
    from service.edge.tuf_repository import Recovery

    with _transaction() as (session, repository):
        revision.renew_registry_id(session)
        recovery = Recovery({}, [])
        if tuf_documents.newest(session, "root") is not None:
            recovery = repository.recover([read_signer(key) for key in root_key or ()], roots)
    versions = ", ".join(f"{role} {version}" for role, version in recovery.versions.items())

    def print_recovery() -> None:
        print_message(f"documents in force: {versions}" if versions else "nothing is signed yet")
        if "root" in recovery.waiting:
            print_message(
                "root is the one of the backup, because its key is not here; if root was signed after the "
                "backup, run this again with --root-key"
            )
        if "targets" in recovery.waiting:
            print_message("targets waits for its key: trivium tuf prepare, sign and submit")

    print_record(json, msgspec.to_builtins(recovery), print_recovery)


def prepare(file: TargetsFile, json: Json = False) -> None:
    """Write the targets document for offline signing."""
    with _repository() as repository:
        file.write_bytes(repository.prepare())
    command = f"trivium tuf sign {file} --key targets.pem"
    record = {"file": str(file), "then": command}
    print_record(json, record, lambda: print_message(f"sign it where the key is: {command}"))


def sign(
    file: TargetsFile,
    key: Annotated[Path, Option("--key", help="The offline key of targets.")],
    json: Json = False,
) -> None:
    """Sign a prepared targets document.

    Needs the document and the key, no registry.
    """
    from service.edge.tuf_keys import read_signer
    from service.edge.tuf_repository import sign_targets as sign_document

    file.write_bytes(sign_document(file.read_bytes(), read_signer(key)))
    command = f"trivium tuf submit {file}"
    record = {"file": str(file), "then": command}
    print_record(json, record, lambda: print_message(f"return it to the server: {command}"))


def submit(file: TargetsFile, json: Json = False) -> None:
    """Publish a signed targets document to devices."""
    with _repository() as repository:
        version = repository.submit(file.read_bytes())
    print_record(json, {"targets": version}, lambda: print_message(f"targets version {version} is in force"))


@contextmanager
def _repository() -> Iterator[TufRepository]:
    with _transaction() as (_, repository):
        yield repository


@contextmanager
def _transaction() -> Iterator[tuple[Session, TufRepository]]:
    """Yield the TUF repository of the data directory, locked, and the session of its transaction."""
    from registry import db
    from service.edge.tuf_keys import RoleKeys
    from service.edge.tuf_repository import TufRepository

    settings = read_settings()
    engine: Any = db.connect(settings.url)
    try:
        db.require_current(engine)
        with db.locked(settings.home / "tuf.lock"), db.sessions(engine).begin() as session:
            yield session, TufRepository(session, RoleKeys(settings.home / "tuf"))
    finally:
        engine.dispose()
