"""The `trivium` command: its groups and commands, and how it exits.

Data goes to stdout, messages to stderr; `EPILOG` lists the exit codes. `trivium --help` must be quick, so
nothing heavier than typer is imported before a command runs: the client, rich, the settings and the server
are imported inside functions.
"""

from __future__ import annotations

import sys
from typing import Any

from typer import Exit, Option, Typer, echo
from typer.core import TyperGroup

from service.cli import (
    aliases,
    batch,
    doctor,
    exports,
    jobs,
    keys,
    models,
    predict,
    predictions,
    publish,
    schedules,
    server,
    traffic,
    train,
    tuf,
    verify,
)
from service.cli.exit_codes import INTERRUPTED, explain_exception

EPILOG = """\b
Models are written name, name@alias or name:version.
Every command except serve and worker takes --json and then prints the result
as JSON on stdout.

\b
Environment:
  TRIVIUM_URL      the server (default http://127.0.0.1:8080)
  TRIVIUM_API_KEY  the API key (default: admin.key in the data directory)
  TRIVIUM_HOME     the data directory (default ./.trivium)

\b
Exit codes:
  0    success
  1    refused by the server, not found, rejected, a failed job, or unhealthy
  2    wrong usage
  3    the server cannot be reached
  130  interrupted
"""
LIST = "list"


class ListByDefault(TyperGroup):
    """A group whose command `list` may be left out.

    `trivium jobs` is `trivium jobs list`, and `trivium exports NAME` is `trivium exports list NAME`. In a
    group whose `list` takes no name, an unknown word is an unknown command.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self._is_list(ctx, args):
            args = [LIST, *args]
        return super().parse_args(ctx, args)

    def _is_list(self, ctx: Any, args: list[str]) -> bool:
        if not args:
            return not self.no_args_is_help
        if args[0] in (*self.commands, *ctx.help_option_names):
            return False
        takes_name = any(p.param_type_name == "argument" for p in self.commands[LIST].params)
        return takes_name or args[0].startswith("-")


app = Typer(
    name="trivium",
    help="Model registry and inference server for scikit-learn and Keras.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
exports_app = Typer(
    help="List exports, or show one with its report.\n\n"
    "`trivium exports MODEL` is short for `trivium exports list MODEL`.",
    cls=ListByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
)
batch_app = Typer(help="Score files of any size as a job.", no_args_is_help=True, rich_markup_mode=None)
jobs_app = Typer(
    help="List jobs, follow and stop them, download their output.\n\n"
    "`trivium jobs` is short for `trivium jobs list`.",
    cls=ListByDefault,
    rich_markup_mode=None,
)
schedules_app = Typer(
    help="Start jobs at regular times.\n\n`trivium schedules` is short for `trivium schedules list`.",
    cls=ListByDefault,
    rich_markup_mode=None,
)
keys_app = Typer(
    help="Create, list, rotate and revoke API keys.", no_args_is_help=True, rich_markup_mode=None
)
tuf_app = Typer(
    help="Manage the keys that sign files for devices.", no_args_is_help=True, rich_markup_mode=None
)

app.command("serve")(server.serve)
app.command("worker")(server.worker)
app.command("publish")(publish.publish)
app.command("predict")(predict.predict)
app.command("predictions")(predictions.predictions)
app.command("prediction-log")(predictions.prediction_log)
app.command("feedback")(predictions.feedback)
app.command("models")(models.list_models)
app.command("versions")(models.list_versions)
app.command("show")(models.show)
app.command("edit")(models.edit)
app.command("archive")(models.archive)
app.command("unarchive")(models.unarchive)
app.command("delete")(models.delete)
app.command("promote")(aliases.promote)
app.command("rollback")(aliases.rollback)
app.command("traffic")(traffic.traffic)
app.command("history")(aliases.history)
app.command("verify")(verify.verify)
app.command("export")(exports.export)
app.add_typer(exports_app, name="exports")
exports_app.command(LIST)(exports.list_exports)
exports_app.command("show")(exports.show)
app.add_typer(batch_app, name="batch")
batch_app.command("score")(batch.score)
app.command("train")(train.train)
app.add_typer(jobs_app, name="jobs")
jobs_app.command(LIST)(jobs.list_jobs)
jobs_app.command("show")(jobs.show)
jobs_app.command("watch")(jobs.watch)
jobs_app.command("cancel")(jobs.cancel)
jobs_app.command("resume")(jobs.resume)
jobs_app.command("output")(jobs.output)
jobs_app.command("errors")(jobs.errors)
app.add_typer(schedules_app, name="schedules")
schedules_app.command(LIST)(schedules.list_schedules)
schedules_app.command("create")(schedules.create)
schedules_app.command("show")(schedules.show)
schedules_app.command("edit")(schedules.edit)
schedules_app.command("pause")(schedules.pause)
schedules_app.command("resume")(schedules.resume)
schedules_app.command("run")(schedules.run)
schedules_app.command("history")(schedules.history)
schedules_app.command("delete")(schedules.delete)
app.add_typer(keys_app, name="keys")
keys_app.command("create")(keys.create)
keys_app.command("list")(keys.list_keys)
keys_app.command("revoke")(keys.revoke)
keys_app.command("rotate")(keys.rotate)
app.add_typer(tuf_app, name="tuf")
for _command in (
    tuf.status,
    tuf.root,
    tuf.offline,
    tuf.rotate,
    tuf.recover,
    tuf.prepare,
    tuf.sign,
    tuf.submit,
):
    tuf_app.command(_command.__name__)(_command)
app.command("migrate")(server.migrate)
app.command("gc")(server.collect_garbage)
app.command("doctor")(doctor.doctor)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        echo(f"trivium {version('trivium')}")
        raise Exit()


@app.callback()
def _root(
    version: bool = Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command and exit the process."""
    try:
        app(prog_name="trivium")
    except KeyboardInterrupt:  # outside of the code in which typer handles it
        sys.exit(INTERRUPTED)
    except Exception as error:
        exit_code, lines = explain_exception(error)
        for line in lines:
            echo(line, err=True)
        sys.exit(exit_code)
