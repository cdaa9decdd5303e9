"""Commands that work on this machine's data directory: `trivium serve`, `worker`, `migrate` and `gc`."""

from __future__ import annotations

from typing import Annotated

from typer import Exit, Option

from service import startup
from service.cli.connection import read_settings
from service.cli.options import Json
from service.cli.output import print_message, print_record

Host = Annotated[str | None, Option(help="The address to bind (default: TRIVIUM_HOST, else 127.0.0.1).")]
Port = Annotated[
    int | None,
    Option(min=0, max=65535, help="The port; 0 takes a free one (default: TRIVIUM_PORT, else 8080)."),
]

GrpcPort = Annotated[
    int | None,
    Option(min=0, max=65535, help="The port for gRPC (default: TRIVIUM_GRPC_PORT, else none)."),
]


def serve(
    host: Host = None,
    port: Port = None,
    grpc_port: GrpcPort = None,
    workers: Annotated[int, Option(min=1, help="Number of web processes.")] = 1,
    no_worker: Annotated[bool, Option("--no-worker", help="Start no worker for jobs.")] = False,
) -> None:
    """Serve the API until Ctrl-C or SIGTERM."""
    startup.pause_collector()
    from service.serve import serve as run

    settings = read_settings(host=host, port=port, grpc_port=grpc_port)
    raise Exit(run(settings, workers=workers, worker=not no_worker))


def worker() -> None:
    """Run jobs until Ctrl-C or SIGTERM.

    `trivium serve` starts one worker itself; several workers share the jobs.
    """
    from service.builds.process_signals import stop_signal
    from service.telemetry import configure_logging
    from service.worker.process import run

    configure_logging()
    run(read_settings(), stop_signal())


def migrate(json: Json = False) -> None:
    """Upgrade the database schema to this version."""
    from registry import db

    settings = read_settings()
    engine = db.connect(settings.url)
    before = db.schema_revision(engine)
    db.migrate(engine, settings.home)
    after = db.schema_revision(engine)
    engine.dispose()
    result = "was current" if before == after else f"was upgraded from {before or 'empty'} to {after}"
    print_record(json, {"before": before, "after": after}, lambda: print_message(f"the database {result}"))


def collect_garbage(
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be deleted, delete nothing.")] = False,
    json: Json = False,
) -> None:
    """Delete unreferenced files older than a day."""
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
    print_record(
        json,
        collected,
        lambda: print_message(f"{verb} {len(collected.blobs)} blobs ({size}), keeping {collected.kept}"),
    )
