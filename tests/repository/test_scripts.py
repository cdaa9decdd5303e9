from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.repository.tree import ROOT

SCRIPTS = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and not path.suffix]
SCRIPTS.append(ROOT / ".ci/run")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / script, *arguments], cwd="/", capture_output=True, text=True)


def test_the_scripts_a_newcomer_is_told_of_are_there() -> None:
    assert {"setup", "demo", "serve", "test", "check", "bench"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_executable_stops_at_the_first_error_and_says_what_it_does(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_what_a_user_starts_sets_itself_up(name: str) -> None:
    assert "scripts/setup" in (ROOT / "scripts" / name).read_text().splitlines()


@pytest.mark.parametrize("name", ["test", "check", "bench"])
def test_what_a_developer_starts_brings_its_tools(name: str) -> None:
    assert "scripts/setup --dev" in (ROOT / "scripts" / name).read_text().splitlines()


def test_check_reads_lint_format_types_and_imports() -> None:
    commands = (ROOT / "scripts/check").read_text()
    assert all(
        f".venv/bin/{tool}" in commands
        for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports")
    )


def test_ci_checks_then_tests() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-2:] == ["scripts/check", "scripts/test"]


def test_bench_without_a_name_lists_the_benchmarks() -> None:
    listed = run("scripts/bench")
    expected = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
    assert (listed.returncode, listed.stdout.split()) == (0, expected)


def test_bench_refuses_a_name_it_does_not_have() -> None:
    refused = run("scripts/bench", "no-such-benchmark")
    assert refused.returncode == 2
    assert "no-such-benchmark" in refused.stderr
