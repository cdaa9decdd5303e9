"""What the command says about itself, and how quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from service.cli import app

HEAVY = ("httpx", "rich", "fastapi", "starlette", "pydantic", "sqlalchemy", "numpy", "onnxruntime", "sklearn")


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
    look = (
        "import sys; sys.argv = ['trivium', '--help']; import service.cli\n"
        "try: service.cli.main()\n"
        f"except SystemExit: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True)
    assert ran.stderr.strip() == "[]"


def test_help_documents_the_exit_codes_and_the_environment(trivium):
    shown = trivium("--help")
    assert shown.code == 0
    for said in ("Exit codes", "TRIVIUM_URL", "TRIVIUM_API_KEY", "TRIVIUM_HOME", "name@alias", "130"):
        assert said in shown.out


@pytest.mark.parametrize(
    "group", [(), *((name,) for name in GROUPS)], ids=lambda group: " ".join(group) or "app"
)
def test_no_summary_is_cut_at_80_columns(trivium, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    shown = trivium(*group, "--help")
    summaries = shown.out.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(summaries) == len(group_commands(*group))
    assert [line for line in summaries if line.endswith("...") or len(line) > 80] == []


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_says_what_it_does_and_takes_json(command):
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
        ["delete", "name"],  # nobody there to ask
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_says_so_on_stderr(trivium, args):
    ran = trivium(*args)
    assert (ran.code, ran.out) == (2, "")
    assert "Error" in ran.err


@pytest.mark.parametrize(
    ("group", "typed", "meant"), [("jobs", "sho", "show"), ("schedules", "paus", "pause")]
)
def test_a_command_of_a_group_that_is_mistyped_is_suggested(trivium, group, typed, meant):
    ran = trivium(group, typed, "1")
    assert (ran.code, ran.out) == (2, "")
    assert f"Did you mean '{meant}'?" in " ".join(ran.err.split())
