"""scripts/setup, run in copies of this repository.

Their locks contain only the build backend, so that a run lasts a second.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, sources

BACKEND = ("hatchling", "packaging", "pathspec", "pluggy", "trove-classifiers")
NAMEX = "namex"
"""A small dependency of TensorFlow that stands for it."""


def reduce_lock(lock: str, names: tuple[str, ...]) -> str:
    """Return the entries of `names`, without markers: TensorFlow's exclude some versions of Python."""
    entries = re.split(r"(?m)^(?=[a-z0-9])", (ROOT / lock).read_text())
    chosen = "".join(entry for entry in entries if entry.split("==")[0] in names)
    return re.sub(r"(?m) ; .*(?= \\$)", "", chosen)


def copy_repository(copy: Path) -> Path:
    """Copy this repository to `copy`, with reduced locks."""
    for path in sources():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    (copy / "requirements.txt").write_text(reduce_lock("requirements.txt", BACKEND))
    (copy / "requirements-keras.txt").write_text(reduce_lock("requirements-keras.txt", (*BACKEND, NAMEX)))
    dev = reduce_lock("requirements-dev.txt", (*BACKEND, NAMEX, "iniconfig"))
    (copy / "requirements-dev.txt").write_text(dev)
    return copy


def run_setup(repository: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup from another directory, with this repository's uv on PATH."""
    environment = {**os.environ, "PATH": path or f"{os.environ['PATH']}:{ROOT / '.venv/bootstrap/bin'}"}
    return subprocess.run(
        [repository / "scripts/setup", *arguments], cwd="/", env=environment, capture_output=True, text=True
    )


def can_import(repository: Path, module: str) -> bool:
    process = subprocess.run(
        [repository / ".venv/bin/python", "-c", f"import {module}"], cwd="/", capture_output=True
    )
    return process.returncode == 0


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    copy = copy_repository(tmp_path / "a path with spaces")
    yield copy
    shutil.rmtree(copy / ".venv", ignore_errors=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy in which scripts/setup ran once."""
    copy = copy_repository(tmp_path_factory.mktemp("installed") / "a path with spaces")
    setup = run_setup(copy)
    assert setup.returncode == 0, setup.stderr
    assert setup.stdout == ""
    yield copy
    shutil.rmtree(copy / ".venv")


def test_setup_creates_an_environment_that_works_from_any_directory(installed: Path) -> None:
    assert (installed / ".venv/bin/trivium").exists()
    process = subprocess.run(
        [installed / ".venv/bin/python", "-c", "import registry; print(registry.__file__)"],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(process.stdout.strip()) == installed / "registry/__init__.py"


def test_a_second_run_does_nothing_and_takes_less_than_a_second(installed: Path) -> None:
    before = (installed / ".venv/trivium-setup").stat().st_mtime_ns
    started = time.monotonic()
    again = run_setup(installed)
    assert time.monotonic() - started < 1
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (installed / ".venv/trivium-setup").stat().st_mtime_ns == before


def test_the_keras_and_dev_options_add_packages_that_stay(installed: Path) -> None:
    assert not can_import(installed, NAMEX)
    assert not can_import(installed, "iniconfig")
    run_setup(installed, "--keras").check_returncode()
    assert can_import(installed, NAMEX)
    assert not can_import(installed, "iniconfig")
    assert [run_setup(installed, *options).stderr for options in ((), ("--keras",))] == ["", ""]
    run_setup(installed, "--dev").check_returncode()
    assert can_import(installed, NAMEX)
    assert can_import(installed, "iniconfig")
    for options in ((), ("--keras",), ("--dev",)):
        assert run_setup(installed, *options).stderr == ""
    with (installed / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# changed\n")
    assert run_setup(installed).stderr != ""
    assert can_import(installed, "iniconfig")


def test_two_runs_at_once_leave_a_complete_environment(repository: Path) -> None:
    command = [repository / "scripts/setup"]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{ROOT / '.venv/bootstrap/bin'}"}
    runs = [subprocess.Popen([*command, *options], env=environment) for options in ([], ["--dev"])]
    assert [run.wait() for run in runs] == [0, 0]
    assert can_import(repository, "registry")
    assert can_import(repository, "iniconfig")


def test_a_moved_repository_gets_a_new_environment(repository: Path) -> None:
    run_setup(repository).check_returncode()
    moved_repository = repository.rename(repository.with_name("moved"))
    try:
        assert run_setup(moved_repository).returncode == 0
        assert (moved_repository / ".venv/bin/hatchling").read_text().splitlines()[0].endswith("python")
        assert (
            subprocess.run(
                [moved_repository / ".venv/bin/hatchling", "--help"], capture_output=True
            ).returncode
            == 0
        )
    finally:
        shutil.rmtree(moved_repository / ".venv")


def test_an_environment_whose_python_was_removed_is_created_again(repository: Path) -> None:
    run_setup(repository).check_returncode()
    (repository / ".venv/bin/python").unlink()
    (repository / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert run_setup(repository).returncode == 0
    assert can_import(repository, "registry")


def test_without_python_and_uv_the_message_names_the_package_to_install(
    repository: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "cat", "sha256sum", "shasum", "cut", "rm"):
        if executable := shutil.which(tool):
            (tools / tool).symlink_to(executable)
    setup = run_setup(repository, path=str(tools))
    assert setup.returncode == 1
    assert "neither Python 3.11" in setup.stderr
    assert "install" in setup.stderr.splitlines()[-2]
    assert not (repository / ".venv").exists()


def test_an_unknown_argument_is_rejected(repository: Path) -> None:
    assert run_setup(repository, "--development").returncode == 2


def test_this_environment_has_a_python_for_which_the_locks_have_wheels() -> None:
    assert (3, 11) <= sys.version_info < (3, 15)
