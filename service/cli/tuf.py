"""TUF keys and signatures. Works on this machine's data directory, but for `sign`, which needs no registry:
the machine with the offline key runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option, echo

from service.cli.shared import Json, emit, read_settings, say, table

if TYPE_CHECKING:
    from service.edge.tuf_keys import KeyFiles
    from service.edge.tuf_repository import Repository

Role = Annotated[str, Argument(metavar="ROLE", help="root, targets, snapshot or timestamp.")]
File = Annotated[Path, Argument(metavar="FILE", help="The targets document.")]


def status(json: Json = False) -> None:
    """Show the roles, when their documents expire, which keys are here, and what waits for a signature."""
    with _repository() as (repository, _):
        found = repository.status()
    rows = [[r.role, r.version, r.expires.date(), "here" if r.online else "elsewhere"] for r in found.roles]

    def human() -> None:
        table(("role", "version", "expires", "key"), rows, "nothing is signed yet")
        for name in found.pending:
            say(f"waits for the targets key: {name}")

    emit(json, found, human)


def root(json: Json = False) -> None:
    """Print the first root document: what a device is given when it is set up. Always JSON."""
    import msgspec

    from registry import db, tuf_documents

    settings = read_settings()
    engine = db.connect(settings.url)
    try:
        with db.reading(db.sessions(engine)) as session:
            document = tuf_documents.get(session, "root", 1)
    finally:
        engine.dispose()
    emit(json, msgspec.json.decode(document), lambda: echo(document))  # byte for byte as it was signed


def offline(
    role: Role,
    to: Annotated[Path, Option("--to", help="The directory, for instance on a stick.")],
    json: Json = False,
) -> None:
    """Move the key of root or targets out of the data directory."""
    with _repository() as (_, keys):
        taken = keys.take(role, to)
    emit(
        json,
        {"role": role, "file": str(taken)},
        lambda: say(f"the key of {role} is now {taken}, and only there"),
    )


def rotate(
    role: Role,
    root_key: Annotated[Path | None, Option("--root-key", help="The root key, where it is offline.")] = None,
    to: Annotated[
        Path | None, Option("--to", help="The new key's directory, where the role's key is offline.")
    ] = None,
    json: Json = False,
) -> None:
    """Give a role a new key. Devices follow by themselves."""
    from service.edge.tuf_keys import KeyFiles, read

    with _repository() as (repository, _):
        signer, place = read(root_key) if root_key else None, KeyFiles(to) if to else None
        version = repository.rotate(role, signer, place)
    emit(
        json, {"role": role, "root": version}, lambda: say(f"{role} has a new key; root is version {version}")
    )


def prepare(file: File, json: Json = False) -> None:
    """Write what is offered now as a targets document that waits for a signature."""
    with _repository() as (repository, _):
        file.write_bytes(repository.prepare())
    then = f"trivium tuf sign {file} --key targets.pem"
    emit(json, {"file": str(file), "then": then}, lambda: say(f"sign it where the key is: {then}"))


def sign(
    file: File, key: Annotated[Path, Option("--key", help="The offline targets key.")], json: Json = False
) -> None:
    """Sign a prepared targets document. Needs the file and the key, nothing else."""
    from service.edge.tuf_keys import read
    from service.edge.tuf_repository import sign as signed

    file.write_bytes(signed(file.read_bytes(), read(key)))
    then = f"trivium tuf submit {file}"
    emit(json, {"file": str(file), "then": then}, lambda: say(f"bring it back: {then}"))


def submit(file: File, json: Json = False) -> None:
    """Take a signed targets document: devices get what it names."""
    with _repository() as (repository, _):
        version = repository.submit(file.read_bytes())
    emit(json, {"targets": version}, lambda: say(f"targets version {version} is in force"))


@contextmanager
def _repository() -> Iterator[tuple[Repository, KeyFiles]]:
    from registry import db
    from service.edge.tuf_keys import KeyFiles
    from service.edge.tuf_repository import Repository

    settings = read_settings()
    engine: Any = db.connect(settings.url)
    keys = KeyFiles(settings.home / "tuf")
    try:
        db.require_current(engine)
        with db.locked(settings.home / "tuf.lock"), db.sessions(engine).begin() as session:
            yield Repository(session, keys), keys
    finally:
        engine.dispose()
