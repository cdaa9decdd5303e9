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
    found = [PIN.match(line) for line in (ROOT / lock).read_text().splitlines()]
    return {canonicalize_name(pin["name"]): Version(pin["version"]) for pin in found if pin}


def wanted(*groups: str) -> list[Requirement]:
    """The project's dependencies and those of `groups`, included groups resolved."""
    project = pyproject()
    names, lines = list(groups), list(project["project"]["dependencies"])
    while names:
        for entry in project["dependency-groups"][names.pop()]:
            if isinstance(entry, str):
                lines.append(entry)
            else:
                names.append(entry["include-group"])
    return [Requirement(line) for line in lines]


def test_there_is_a_lock_for_serving_one_for_developing_and_one_for_the_installer() -> None:
    assert [lock.name for lock in LOCKS] == [
        "requirements-dev.txt",
        "requirements-uv.txt",
        "requirements.txt",
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_of_a_lock_is_an_exact_version_or_a_hash(lock: Path) -> None:
    lines = [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [line for line in lines if not PIN.match(line) and not HASH.match(line)] == []
    assert all(HASH.match(below) for line, below in pairwise(lines) if PIN.match(line))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_no_address_and_no_path(lock: Path) -> None:
    assert not re.search(r"://|file:|(?<!\w)/\w", lock.read_text())


@pytest.mark.parametrize(
    ("lock", "groups"),
    [("requirements.txt", ["build"]), ("requirements-dev.txt", ["dev"])],
    ids=["serving", "dev"],
)
def test_the_locks_satisfy_every_dependency_the_project_names(lock: str, groups: list[str]) -> None:
    locked = pins(lock)
    missed = [
        str(need)
        for need in wanted(*groups)
        if (pin := locked.get(canonicalize_name(need.name))) is None or pin not in need.specifier
    ]
    assert missed == [], "run scripts/lock"


def test_developing_is_done_with_the_versions_that_serve() -> None:
    dev = pins("requirements-dev.txt")
    assert {name: dev.get(name) for name in pins("requirements.txt")} == pins("requirements.txt")


def test_the_lock_for_serving_holds_no_development_tools() -> None:
    assert {"pytest", "mypy", "ruff", "playwright", "hypothesis", "uv"}.isdisjoint(pins("requirements.txt"))


def test_the_build_backend_is_locked() -> None:
    requires = pyproject()["build-system"]["requires"]
    assert {canonicalize_name(Requirement(line).name) for line in requires} <= pins("requirements.txt").keys()
