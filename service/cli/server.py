"""The commands that work on this machine's data directory: serve, worker, migrate, gc."""

from __future__ import annotations

import gc
from typing import Annotated

from typer import Exit, Option

from service.cli.shared import Json, emit, read_settings, say

Host = Annotated[str | None, Option(help="The address to bind (127.0.0.1, or TRIVIUM_HOST).")]
Port = Annotated[
    int | None, Option(min=0, max=65535, help="The port; 0 takes a free one (8080, or TRIVIUM_PORT).")
]


def serve(
    host: Host = None,
    port: Port = None,
    workers: Annotated[int, Option(min=1, help="Web processes.")] = 1,
    no_worker: Annotated[bool, Option("--no-worker", help="Start no worker child.")] = False,
) -> None:
    """Serve the API until Ctrl-C or SIGTERM."""
    gc.disable()  # until it serves, see run_web: nothing that a start makes is garbage
    from service.serve import serve as run

    raise Exit(run(read_settings(host=host, port=port), workers=workers, worker=not no_worker))


def worker() -> None:
    """Work on batch jobs in a process of its own, until Ctrl-C or SIGTERM; several share the work."""
    from service.builds.child_process import stop_signal
    from service.telemetry import configure_logging
    from service.worker.process import run

    configure_logging()
    run(read_settings(), stop_signal())


def migrate(json: Json = False) -> None:
    """Bring the database to this version's schema."""
    from registry import db

    settings = read_settings()
    engine = db.connect(settings.url)
    before = db.schema_revision(engine)
    db.migrate(engine, settings.home)
    after = db.schema_revision(engine)
    engine.dispose()
    done = "was current" if before == after else f"went from {before or 'empty'} to {after}"
    emit(json, {"before": before, "after": after}, lambda: say(f"the database {done}"))


def collect_garbage(
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would go.")] = False,
    json: Json = False,
) -> None:
    """Delete blobs that nothing refers to any more, once they are older than a day."""
    from registry import db
    from registry.artifacts import Store
    from registry.garbage import collect

    settings = read_settings()
    engine = db.connect(settings.url)
    db.require_current(engine)
    with db.sessions(engine).begin() as session:
        collected = collect(session, Store(settings.blobs), dry_run=dry_run)
    engine.dispose()
    verb = "would delete" if dry_run else "deleted"
    size = f"{collected.bytes / 1e6:.1f} MB"
    emit(
        json,
        collected,
        lambda: say(f"{verb} {len(collected.blobs)} blobs ({size}), keeping {collected.kept}"),
    )
