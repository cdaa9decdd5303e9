"""The command's help texts and their imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from service.cli import app

HEAVY_LIBRARIES = (
    "httpx",
    "rich",
    "fastapi",
    "starlette",
    "pydantic",
    "sqlalchemy",
    "numpy",
    "onnxruntime",
    "sklearn",
)


def group_commands(*path: str) -> dict[str, object]:
    group = typer.main.get_command(app)
    for name in path:
        group = group.commands[name]
    return group.commands


GROUPS = [name for name, command in group_commands().items() if hasattr(command, "commands")]


def commands(group=None, prefix=()):
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield pytest.param(command, id=" ".join((*prefix, name)))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['trivium', '--help']; import service.cli\n"
        "try: service.cli.main()\n"
        f"except SystemExit: print([m for m in {HEAVY_LIBRARIES!r} if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stderr.strip() == "[]"


def test_help_documents_the_exit_codes_and_the_environment(trivium):
    help_output = trivium("--help")
    assert help_output.code == 0
    for text in ("Exit codes", "TRIVIUM_URL", "TRIVIUM_API_KEY", "TRIVIUM_HOME", "name@alias", "130"):
        assert text in help_output.out


@pytest.mark.parametrize(
    "group", [(), *((name,) for name in GROUPS)], ids=lambda group: " ".join(group) or "app"
)
def test_no_summary_is_cut_at_80_columns(trivium, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    help_output = trivium(*group, "--help")
    summaries = help_output.out.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(summaries) == len(group_commands(*group))
    assert [line for line in summaries if line.endswith("...") or len(line) > 80] == []


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_has_a_help_text_and_takes_json(command):
    assert command.help
    options = {name for parameter in command.params for name in parameter.opts}
    assert "--json" in options or command.name in ("serve", "worker")


def test_the_version_is_the_packages_own(trivium):
    from importlib.metadata import version

    assert trivium("--version").out == f"trivium {version('trivium')}\n"


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["models", "--nonsense"],
        ["show", "name:latest"],
        ["promote", "name"],
        ["rollback", "name:1"],
        ["edit", "name:1"],
        ["edit", "name:1", "--tag", "novalue"],
        ["predict", "name", "/nowhere.json"],
        ["keys", "create"],
        ["delete", "name"],  # cannot be confirmed without a terminal
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_and_an_error_on_stderr(trivium, args):
    result = trivium(*args)
    assert (result.code, result.out) == (2, "")
    assert "Error" in result.err


@pytest.mark.parametrize(
    ("group", "typed", "suggestion"), [("jobs", "sho", "show"), ("schedules", "paus", "pause")]
)
def test_a_mistyped_command_of_a_group_gets_a_suggestion(trivium, group, typed, suggestion):
    result = trivium(group, typed, "1")
    assert (result.code, result.out) == (2, "")
    assert f"Did you mean '{suggestion}'?" in " ".join(result.err.split())
