from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repository.tree import ROOT, sources

TOP_LEVEL = {"service", "registry", "migrations", "scripts", "tests", "benchmarks", "docs", ".ci"}
# The patterns are split, so that this file does not match them.
PERSONAL_PATHS = re.compile("/" + r"(root|home/[a-z]+|Users/[A-Za-z]+|work)/\S")
REGISTRIES = re.compile(
    "|".join(["pypi" + r"\.org", "files" + r"\.pythonhosted", "extra-" + "index-url", "find-" + "links"])
)
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".html", ".ini", ".mako", ""}


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.suffix in TEXT else ""


def test_the_top_level_contains_only_the_documented_directories() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in sources() if path.parent != ROOT} <= TOP_LEVEL


@pytest.mark.parametrize("pattern", [PERSONAL_PATHS, REGISTRIES], ids=["paths", "registries"])
def test_no_file_contains_a_personal_path_or_a_package_index(pattern: re.Pattern[str]) -> None:
    matches = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources()
        if (match := pattern.search(read_text(path)))
    ]
    assert matches == []
