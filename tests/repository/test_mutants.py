from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.harness.mutants import Mutant, changed_lines, mirrored_tests, mutants_of
from tests.repository.tree import ROOT

SOURCE = '''"""Écrit un fichier."""
import os


def write(path: str, limit: int = 4, *, durable: bool = True) -> None:
    with open(path, "wb") as file:
        file.write(bytes(limit + 1))
        if durable and limit > 3:
            os.fsync(file.fileno())
            os.rename(path, path + "é")
    if not path:
        raise ValueError(f"{path} is empty")
    log.info("written")
'''


def mutants(tmp_path: Path, source: str, lines: set[int] | None = None) -> list[Mutant]:
    (tmp_path / "sample.py").write_text(source, encoding="utf-8")
    return mutants_of(tmp_path, Path("sample.py"), lines)


def bodies(tmp_path: Path, source: str) -> set[str]:
    return {mutant.content.decode() for mutant in mutants(tmp_path, source)}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("os.fsync(file.fileno())", "pass"),
        ('raise ValueError(f"{path} is empty")', "pass"),
        ("durable and limit > 3", "True and limit > 3"),
        ("durable and limit > 3", "durable and True"),
        ("limit > 3", "limit >= 3"),
        ("limit > 3", "limit > 4"),
        ("if not path", "if path"),
        ("durable: bool = True", "durable: bool = False"),
        ("limit + 1", "limit - 1"),
    ],
)
def test_a_mutant_has_one_fault(tmp_path: Path, before: str, after: str) -> None:
    assert SOURCE.replace(before, after, 1) in bodies(tmp_path, SOURCE)


def test_successive_calls_are_swapped(tmp_path: Path) -> None:
    swapped = [m for m in mutants(tmp_path, SOURCE) if m.description.startswith("swap")]
    text = swapped[0].content.decode()
    assert len(swapped) == 1
    assert text.index("os.rename(") < text.index("os.fsync(")


def test_filters_of_a_query_are_omitted_alone_and_together(tmp_path: Path) -> None:
    source = "rows = select(A).where(A.x == 1, A.y).limit(2)\n"
    assert {
        "rows = select(A).where(A.y).limit(2)\n",
        "rows = select(A).where(A.x == 1).limit(2)\n",
        "rows = select(A).limit(2)\n",
    } <= bodies(tmp_path, source)


def test_a_constant_keyword_argument_is_omitted(tmp_path: Path) -> None:
    source = "read(path, strict=True)\nwrite(\n    path,\n    mode=1,\n)\n"
    assert {
        "read(path)\nwrite(\n    path,\n    mode=1,\n)\n",
        "read(path, strict=True)\nwrite(\n    path,\n    )\n",
    } <= bodies(tmp_path, source)


def test_texts_annotations_and_log_lines_have_no_mutants(tmp_path: Path) -> None:
    source = '"""Text."""\nx: Literal[1] = f(f"{a + b}")\nlogger.info("written", extra=1)\n'
    assert [mutant.place for mutant in mutants(tmp_path, source)] == []


def test_only_mutants_of_the_chosen_lines_are_returned(tmp_path: Path) -> None:
    assert {mutant.line for mutant in mutants(tmp_path, SOURCE, {8, 9})} == {8, 9}


def test_every_mutant_of_a_real_file_parses_and_differs() -> None:
    for mutant in mutants_of(ROOT, Path("registry/artifacts.py")):
        assert mutant.content != mutant.original, mutant.place
        ast.parse(mutant.content)


def test_a_patch_names_its_place_and_applies(tmp_path: Path) -> None:
    patch = next(m.patch for m in mutants(tmp_path, SOURCE) if m.description.startswith("omit `raise"))
    assert patch.startswith("# sample.py:12: omit `raise ValueError")
    assert '-        raise ValueError(f"{path} is empty")\n+        pass\n' in patch


def test_changed_lines_are_read_from_a_patch() -> None:
    patch = (
        "--- a/x.py\n+++ b/x.py\n@@ -3 +3,2 @@\n-a\n+b\n+c\n@@ -9,2 +10,0 @@\n-d\n-e\n@@ -20 +19 @@\n-f\n+g\n"
    )
    assert changed_lines(patch) == {Path("x.py"): {3, 4, 19}}


def test_tests_that_mirror_a_file_come_before_those_that_import_it() -> None:
    files = mirrored_tests(ROOT, Path("registry/queue.py"))
    assert files[0] == "tests/registry/test_queue.py"
    assert "tests/service/worker/test_lanes.py" in files


def test_a_file_without_a_mirrored_test_is_checked_by_those_of_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "tests/service/worker"
    directory.mkdir(parents=True)
    for name in ("test_lanes.py", "test_process.py"):
        (directory / name).write_text("from service.worker import lanes\n")
    files = mirrored_tests(tmp_path, Path("service/worker/score_work.py"))
    assert files == ["tests/service/worker/test_lanes.py", "tests/service/worker/test_process.py"]
    assert mirrored_tests(tmp_path, Path("service/worker/process.py")) == [
        "tests/service/worker/test_process.py"
    ]
