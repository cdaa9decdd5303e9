"""scripts/setup, run for real in copies of this repository whose locks are cut down to the build backend:
each run lasts a second."""

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
NAMEX = "namex"  # stands for TensorFlow, which needs it


def cut(lock: str, names: tuple[str, ...]) -> str:
    entries = re.split(r"(?m)^(?=[a-z0-9])", (ROOT / lock).read_text())
    chosen = "".join(entry for entry in entries if entry.split("==")[0] in names)
    return re.sub(r"(?m) ; .*(?= \\$)", "", chosen)  # markers: TensorFlow is not for every Python


def copy_to(place: Path) -> Path:
    for path in sources():
        target = place / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    (place / "requirements.txt").write_text(cut("requirements.txt", BACKEND))
    (place / "requirements-keras.txt").write_text(cut("requirements-keras.txt", (*BACKEND, NAMEX)))
    (place / "requirements-dev.txt").write_text(cut("requirements-dev.txt", (*BACKEND, NAMEX, "iniconfig")))
    return place


def run_setup(repository: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs it from another directory, with the uv that set this repository up on PATH."""
    environment = {**os.environ, "PATH": path or f"{os.environ['PATH']}:{ROOT / '.venv/bootstrap/bin'}"}
    return subprocess.run(
        [repository / "scripts/setup", *arguments], cwd="/", env=environment, capture_output=True, text=True
    )


def holds(repository: Path, module: str) -> bool:
    asked = subprocess.run(
        [repository / ".venv/bin/python", "-c", f"import {module}"], cwd="/", capture_output=True
    )
    return asked.returncode == 0


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    place = copy_to(tmp_path / "a path with spaces")
    yield place
    shutil.rmtree(place / ".venv", ignore_errors=True)


def test_it_makes_an_environment_that_runs_this_code_from_any_directory(repository: Path) -> None:
    done = run_setup(repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (repository / ".venv/bin/trivium").exists()
    asked = subprocess.run(
        [repository / ".venv/bin/python", "-c", "import registry; print(registry.__file__)"],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(asked.stdout.strip()) == repository / "registry/__init__.py"


def test_a_second_run_does_nothing_and_takes_less_than_a_second(repository: Path) -> None:
    run_setup(repository).check_returncode()
    before = (repository / ".venv/trivium-setup").stat().st_mtime_ns
    started = time.monotonic()
    again = run_setup(repository)
    assert time.monotonic() - started < 1
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (repository / ".venv/trivium-setup").stat().st_mtime_ns == before


def test_development_tools_come_when_asked_for_and_stay(repository: Path) -> None:
    run_setup(repository).check_returncode()
    assert not holds(repository, "iniconfig")
    run_setup(repository, "--dev").check_returncode()
    assert holds(repository, "iniconfig")
    assert run_setup(repository).stderr == ""
    with (repository / "pyproject.toml").open("a") as pyproject:
        pyproject.write("# changed\n")
    assert run_setup(repository).stderr != ""
    assert holds(repository, "iniconfig")


def test_tensorflow_comes_when_asked_for_and_stays(repository: Path) -> None:
    run_setup(repository).check_returncode()
    assert not holds(repository, NAMEX)
    run_setup(repository, "--keras").check_returncode()
    assert holds(repository, NAMEX)
    assert not holds(repository, "iniconfig")
    assert [run_setup(repository, *more).stderr for more in ((), ("--keras",))] == ["", ""]
    run_setup(repository, "--dev").check_returncode()
    assert holds(repository, NAMEX)
    assert holds(repository, "iniconfig")
    assert [run_setup(repository, *more).stderr for more in ((), ("--keras",), ("--dev",))] == ["", "", ""]


def test_two_at_once_leave_a_whole_environment(repository: Path) -> None:
    command = [repository / "scripts/setup"]
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{ROOT / '.venv/bootstrap/bin'}"}
    both = [subprocess.Popen([*command, *more], env=environment) for more in ([], ["--dev"])]
    assert [one.wait() for one in both] == [0, 0]
    assert holds(repository, "registry")
    assert holds(repository, "iniconfig")


def test_a_repository_that_was_moved_gets_a_new_environment(repository: Path) -> None:
    run_setup(repository).check_returncode()
    moved = repository.rename(repository.with_name("moved"))
    try:
        assert run_setup(moved).returncode == 0
        assert (moved / ".venv/bin/hatchling").read_text().splitlines()[0].endswith("python")
        assert subprocess.run([moved / ".venv/bin/hatchling", "--help"], capture_output=True).returncode == 0
    finally:
        shutil.rmtree(moved / ".venv")


def test_an_environment_whose_python_is_gone_is_made_anew(repository: Path) -> None:
    run_setup(repository).check_returncode()
    (repository / ".venv/bin/python").unlink()
    (repository / ".venv/bin/python").symlink_to("/nowhere/python3")
    assert run_setup(repository).returncode == 0
    assert holds(repository, "registry")


def test_without_python_and_without_uv_it_names_the_package_to_install(
    repository: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "cat", "sha256sum", "shasum", "cut", "rm"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    done = run_setup(repository, path=str(tools))
    assert done.returncode == 1
    assert "there is no Python 3.11" in done.stderr
    assert "install" in done.stderr.splitlines()[-2]
    assert not (repository / ".venv").exists()


def test_an_unknown_argument_is_refused(repository: Path) -> None:
    assert run_setup(repository, "--development").returncode == 2


def test_this_environment_was_made_for_a_python_the_locks_have_wheels_for() -> None:
    assert (3, 11) <= sys.version_info < (3, 15)
