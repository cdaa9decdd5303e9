"""The lock files: exact versions with hashes that satisfy pyproject.toml."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.repository.tree import ROOT, pyproject

LOCKS = sorted(ROOT.glob("requirements*.txt"))
PIN = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)(\[[a-z0-9,_-]+\])?==(?P<version>[^ ]+)( ; [^\\]+)? \\$")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


def pins(lock: str) -> dict[str, Version]:
    matches = [PIN.match(line) for line in (ROOT / lock).read_text().splitlines()]
    return {canonicalize_name(pin["name"]): Version(pin["version"]) for pin in matches if pin}


def requirements(groups: list[str], extras: list[str]) -> list[Requirement]:
    """Return the project's dependencies with those of `extras` and `groups`, including nested groups."""
    project = pyproject()
    names, lines = list(groups), list(project["project"]["dependencies"])
    for extra in extras:
        lines += project["project"]["optional-dependencies"][extra]
    while names:
        for entry in project["dependency-groups"][names.pop()]:
            if isinstance(entry, str):
                lines.append(entry)
            else:
                names.append(entry["include-group"])
    return [Requirement(line) for line in lines]


def test_each_flavour_and_the_installer_have_a_lock() -> None:
    assert [lock.name for lock in LOCKS] == [
        "requirements-dev.txt",
        "requirements-keras.txt",
        "requirements-uv.txt",
        "requirements.txt",
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_is_an_exact_version_or_a_hash(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in lines if not PIN.match(line) and not HASH.match(line)] == []
    assert all(HASH.match(below) for line, below in pairwise(lines) if PIN.match(line))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_contains_no_address_or_path(lock: Path) -> None:
    assert not re.search(r"://|file:|(?<!\w)/\w", lock.read_text())


@pytest.mark.parametrize(
    ("lock", "groups", "extras"),
    [
        ("requirements.txt", ["build"], []),
        ("requirements-keras.txt", ["build"], ["keras"]),
        ("requirements-dev.txt", ["dev"], ["keras"]),
    ],
    ids=["serving", "keras", "dev"],
)
def test_the_locks_satisfy_every_dependency_of_the_project(
    lock: str, groups: list[str], extras: list[str]
) -> None:
    locked = pins(lock)
    unsatisfied = [
        str(requirement)
        for requirement in requirements(groups, extras)
        if (pin := locked.get(canonicalize_name(requirement.name))) is None
        or pin not in requirement.specifier
    ]
    assert unsatisfied == [], "run scripts/lock"


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [("requirements.txt", "requirements-keras.txt"), ("requirements-keras.txt", "requirements-dev.txt")],
)
def test_each_flavour_contains_the_smaller_one_in_the_same_versions(smaller: str, larger: str) -> None:
    assert pins(smaller).items() <= pins(larger).items()


def test_the_lock_for_serving_contains_no_development_tools() -> None:
    assert {"pytest", "mypy", "ruff", "playwright", "hypothesis", "uv"}.isdisjoint(pins("requirements.txt"))


def test_the_lock_for_serving_does_not_contain_tensorflow() -> None:
    assert {"tensorflow", "tensorflow-cpu", "keras"}.isdisjoint(pins("requirements.txt"))


def test_the_keras_lock_installs_on_platforms_without_tensorflow() -> None:
    extra = [Requirement(line) for line in pyproject()["project"]["optional-dependencies"]["keras"]]
    unsupported = {"python_version": "3.14", "sys_platform": "linux", "platform_machine": "x86_64"}
    assert not any(r.marker and r.marker.evaluate(unsupported) for r in extra)
    assert all(r.marker for r in extra)
    locked = (ROOT / "requirements-keras.txt").read_text()
    assert re.findall(r"^tensorflow.*==\S+ \\$", locked, re.MULTILINE) == []


def test_the_build_backend_is_locked() -> None:
    requires = pyproject()["build-system"]["requires"]
    assert {canonicalize_name(Requirement(line).name) for line in requires} <= pins("requirements.txt").keys()
