"""The scripts in scripts/ and .ci/."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.repository.tree import ROOT

SCRIPTS = [path for path in sorted((ROOT / "scripts").iterdir()) if path.is_file() and not path.suffix]
SCRIPTS.append(ROOT / ".ci/run")


def run_script(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / script, *arguments], cwd="/", capture_output=True, text=True)


def test_the_documented_scripts_exist() -> None:
    assert {"setup", "demo", "serve", "test", "check", "bench"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_executable_documented_and_stops_at_the_first_error(script: Path) -> None:
    lines = script.read_text().splitlines()
    assert os.access(script, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_scripts_for_users_run_setup(name: str) -> None:
    assert "scripts/setup" in (ROOT / "scripts" / name).read_text().splitlines()


@pytest.mark.parametrize("name", ["test", "check", "bench"])
def test_scripts_for_developers_install_the_development_tools(name: str) -> None:
    assert "scripts/setup --dev" in (ROOT / "scripts" / name).read_text().splitlines()


def test_check_runs_lint_format_types_and_import_contracts() -> None:
    commands = (ROOT / "scripts/check").read_text()
    assert all(
        f".venv/bin/{tool}" in commands
        for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports")
    )


def test_ci_checks_then_tests() -> None:
    assert (ROOT / ".ci/run").read_text().splitlines()[-2:] == ["scripts/check", "scripts/test"]


def test_bench_without_a_name_lists_the_benchmarks() -> None:
    listing = run_script("scripts/bench")
    expected = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
    assert (listing.returncode, listing.stdout.split()) == (0, expected)


def test_bench_rejects_an_unknown_name() -> None:
    failure = run_script("scripts/bench", "no-such-benchmark")
    assert failure.returncode == 2
    assert "no-such-benchmark" in failure.stderr
