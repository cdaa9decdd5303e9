"""The `trivium` command. Data goes to stdout, messages to stderr; see EPILOG for the exit codes.

`--help` must stay quick: nothing heavier than typer is imported until a command runs, so the client,
rich, the settings and the server are imported inside the functions that need them.
"""

from __future__ import annotations

import sys

from typer import Exit, Option, Typer, echo

from service.cli import (
    aliases,
    batch,
    doctor,
    exports,
    jobs,
    keys,
    list_by_default,
    models,
    predict,
    publish,
    schedules,
    server,
    train,
    tuf,
)
from service.cli.error_messages import explain

EPILOG = """\b
Every command but serve and worker takes --json: the API's own record(s) on stdout.
Models are written name, name@alias or name:version.

\b
Environment:
  TRIVIUM_URL      the server (default http://127.0.0.1:8080)
  TRIVIUM_API_KEY  the key; else admin.key in the data directory
  TRIVIUM_HOME     the data directory (default ./.trivium)

\b
Exit codes:
  0    done
  1    refused by the server, not found, rejected by the build, a job that failed, or unhealthy
  2    wrong usage
  3    the server cannot be reached
  130  interrupted
"""

app = Typer(
    name="trivium",
    help="One model registry, three roads to production: online, batch, edge.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
keys_app = Typer(help="API keys: create, list, revoke, rotate.", no_args_is_help=True, rich_markup_mode=None)
tuf_app = Typer(
    help="Signed edge delivery: keys, rotation, offline signatures.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
exports_app = Typer(
    help="Exports: list a model's (`trivium exports NAME`), show one with its report.",
    cls=list_by_default.ListByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
)
batch_app = Typer(
    help="Scoring of files, however large, in the background.", no_args_is_help=True, rich_markup_mode=None
)
jobs_app = Typer(
    help="Jobs: list (`trivium jobs` alone), show, watch, cancel, resume, fetch what they made.",
    cls=list_by_default.ListByDefault,
    rich_markup_mode=None,
)
schedules_app = Typer(
    help="Schedules: list (`trivium schedules` alone), create, show, edit, pause, resume, run, history, "
    "delete.",
    cls=list_by_default.ListByDefault,
    rich_markup_mode=None,
)

app.command("serve")(server.serve)
app.command("worker")(server.worker)
app.command("publish")(publish.publish)
app.command("predict")(predict.predict)
app.command("models")(models.models)
app.command("versions")(models.versions)
app.command("show")(models.show)
app.command("edit")(models.edit)
app.command("archive")(models.archive)
app.command("unarchive")(models.unarchive)
app.command("delete")(models.delete)
app.command("export")(exports.export)
app.add_typer(exports_app, name="exports")
exports_app.command(list_by_default.LIST)(exports.list_exports)
exports_app.command("show")(exports.show)
app.add_typer(batch_app, name="batch")
batch_app.command("score")(batch.score)
app.command("train")(train.train)
app.add_typer(jobs_app, name="jobs")
jobs_app.command(list_by_default.LIST)(jobs.list_jobs)
jobs_app.command("show")(jobs.show)
jobs_app.command("watch")(jobs.watch)
jobs_app.command("cancel")(jobs.cancel)
jobs_app.command("resume")(jobs.resume)
jobs_app.command("output")(jobs.output)
jobs_app.command("errors")(jobs.errors)
app.add_typer(schedules_app, name="schedules")
schedules_app.command(list_by_default.LIST)(schedules.list_schedules)
schedules_app.command("create")(schedules.create)
schedules_app.command("show")(schedules.show)
schedules_app.command("edit")(schedules.edit)
schedules_app.command("pause")(schedules.pause)
schedules_app.command("resume")(schedules.resume)
schedules_app.command("run")(schedules.run)
schedules_app.command("history")(schedules.history)
schedules_app.command("delete")(schedules.delete)
app.command("promote")(aliases.promote)
app.command("rollback")(aliases.rollback)
app.command("history")(aliases.history)
app.add_typer(keys_app, name="keys")
keys_app.command("create")(keys.create)
keys_app.command("list")(keys.list_keys)
keys_app.command("revoke")(keys.revoke)
keys_app.command("rotate")(keys.rotate)
app.add_typer(tuf_app, name="tuf")
for _command in (tuf.status, tuf.root, tuf.offline, tuf.rotate, tuf.prepare, tuf.sign, tuf.submit):
    tuf_app.command(_command.__name__)(_command)
app.command("migrate")(server.migrate)
app.command("gc")(server.collect_garbage)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        echo(f"trivium {version('trivium')}")
        raise Exit()


@app.callback()
def _root(
    version: bool = Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    try:
        app(prog_name="trivium")
    except KeyboardInterrupt:  # before or after typer's own handling
        sys.exit(130)
    except Exception as error:
        code, lines = explain(error)
        for line in lines:
            echo(line, err=True)
        sys.exit(code)
