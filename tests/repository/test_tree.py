from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, sources

TOP = {"service", "registry", "migrations", "scripts", "tests", "benchmarks", "docs", ".ci"}
# Written apart, so that this file does not hold what it looks for.
PERSONAL_PATHS = re.compile("/" + r"(root|home/[a-z]+|Users/[A-Za-z]+|work)/\S")
REGISTRIES = re.compile(
    "|".join(["pypi" + r"\.org", "files" + r"\.pythonhosted", "extra-" + "index-url", "find-" + "links"])
)
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".ini", ".mako", ""}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.suffix in TEXT else ""


def test_the_top_level_is_the_one_the_map_shows() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources() if path.parent != ROOT} <= TOP


@pytest.mark.parametrize("pattern", [PERSONAL_PATHS, REGISTRIES], ids=["paths", "registries"])
def test_no_file_names_a_place_on_somebodys_machine_or_network(pattern: re.Pattern[str]) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in sources()
        for hit in [pattern.search(read(path))]
        if hit
    ]
    assert found == []
