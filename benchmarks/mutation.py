"""Mutation check: does a test fail when one place in the code is wrong?

    scripts/bench mutation
    scripts/bench mutation registry/queue.py service/edge/rollout.py:120-180 --limit 30
    scripts/bench mutation --since HEAD~3 --list

Without files, the lines that differ from origin/main are changed, or from HEAD where there is no origin/main.
Each mutant is one change from `tests/harness/mutants.py` in a copy of the working tree. The tests that mirror
the file run first, then those that import it, up to the first failure. Survivors are printed as patches.
Exit code 1 when a mutant survived. docs/mutation.md explains the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tests.harness.mutants import Mutant, changed_lines, mirrored_tests, mutants_of
from tests.repository.tree import ROOT, sources

PACKAGES = ("service", "registry", "scripts")
SLACK_S = 30.0
"""A mutant times out after three times the duration of the unchanged code plus this."""


class Result(NamedTuple):
    mutant: Mutant
    outcome: str
    """`noticed`, `timeout` (an endless loop or a lock: noticed too) or `survived`."""
    seconds: float


class Target(NamedTuple):
    """A file and the lines of it to change; None for all lines."""

    path: Path
    lines: set[int] | None


def main() -> int:
    options = _options()
    targets = [_target(text) for text in options.paths] or _changed_targets(options.since)
    mutants = [m for t in targets for m in mutants_of(ROOT, t.path, t.lines)]
    if options.limit and len(mutants) > options.limit:
        chosen = random.Random(options.seed).sample(range(len(mutants)), options.limit)
        mutants = [mutants[index] for index in sorted(chosen)]
    if options.list:
        print(*(mutant.place for mutant in mutants), sep="\n")
        return 0
    results = list(_run(mutants, options.jobs, options.tests))
    survivors = [r for r in results if r.outcome == "survived"]
    if options.json:
        print(json.dumps([{"place": r.mutant.place, "outcome": r.outcome, "s": r.seconds} for r in results]))
    else:
        print(*("\n" + r.mutant.patch for r in survivors), sep="\n")
        print(f"{len(results) - len(survivors)} of {len(results)} mutants noticed, {len(survivors)} survived")
    return 1 if survivors else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", metavar="FILE[:FIRST-LAST]", help="files, or lines of files")
    parser.add_argument("--since", metavar="REVISION", help="change the lines that differ from it")
    parser.add_argument("--limit", type=int, metavar="N", help="run a random sample of N mutants")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="run these tests instead")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _target(text: str) -> Target:
    name, _, span = text.partition(":")
    path = Path(name)
    if not (ROOT / path).is_file():
        raise SystemExit(f"mutation: {name} is not a file of this repository")
    if not span:
        return Target(path, None)
    first, _, last = span.partition("-")
    return Target(path, set(range(int(first), int(last or first) + 1)))


def _changed_targets(since: str | None) -> list[Target]:
    revision = since or ("origin/main" if _git("rev-parse", "--verify", "-q", "origin/main") else "HEAD")
    patch = _git("diff", "-U0", "--no-color", "--no-ext-diff", revision, "--", *PACKAGES)
    targets = [Target(path, lines) for path, lines in changed_lines(patch).items() if path.suffix == ".py"]
    untracked = _git("ls-files", "--others", "--exclude-standard", "--", *PACKAGES).splitlines()
    targets += [Target(Path(name), None) for name in untracked if name.endswith(".py")]
    if not targets:
        raise SystemExit(f"mutation: no Python file in {', '.join(PACKAGES)} differs from {revision}")
    return targets


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return result.stdout


def _run(mutants: list[Mutant], jobs: int, tests: list[str] | None) -> Iterator[Result]:
    """Run `mutants`, `jobs` at a time, each job in its own copy of the tree."""
    suites = {path: tests or mirrored_tests(ROOT, path) for path in {mutant.path for mutant in mutants}}
    for path, suite in suites.items():
        if not suite:
            raise SystemExit(f"mutation: {path} has no mirrored tests; pass --tests")
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="trivium-mutation-") as folder, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            copies.put(_copy_tree(Path(folder) / str(number)))
        with _borrowed(copies) as copy:
            limits = {path: _time_limit(copy, suite) for path, suite in suites.items()}

        def run(mutant: Mutant) -> Result:
            with _borrowed(copies) as copy:
                return _run_mutant(copy, mutant, suites[mutant.path], limits[mutant.path])

        for result in pool.map(run, mutants):
            print(f"{result.outcome:9}{result.seconds:6.1f} s  {result.mutant.place}", file=sys.stderr)
            yield result


@contextmanager
def _borrowed(copies: SimpleQueue[Path]) -> Iterator[Path]:
    copy = copies.get()
    try:
        yield copy
    finally:
        copies.put(copy)


def _copy_tree(copy: Path) -> Path:
    for source in sources():
        target = copy / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
        target.chmod(source.stat().st_mode)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    subprocess.run(["git", "init", "--quiet"], cwd=copy, check=True)
    subprocess.run(["git", "add", "--all"], cwd=copy, check=True)  # tests list the files of the repository
    return copy


def _time_limit(copy: Path, suite: list[str]) -> float:
    """Run `suite` on the unchanged copy and return the time limit for its mutants."""
    start = time.monotonic()
    exit_code = _run_tests(copy, suite, None)
    if exit_code != 0:
        raise SystemExit(f"mutation: without a mutant, exit code {exit_code} of: pytest {' '.join(suite)}")
    return 3 * (time.monotonic() - start) + SLACK_S


def _run_mutant(copy: Path, mutant: Mutant, suite: list[str], limit_s: float) -> Result:
    file = copy / mutant.path
    original = file.read_bytes()
    start = time.monotonic()
    file.write_bytes(mutant.content)
    try:
        exit_code = _run_tests(copy, suite, limit_s)
    finally:
        file.write_bytes(original)
    outcome = "timeout" if exit_code is None else "survived" if exit_code == 0 else "noticed"
    return Result(mutant, outcome, round(time.monotonic() - start, 1))


def _run_tests(copy: Path, suite: list[str], limit_s: float | None) -> int | None:
    """Return pytest's exit code, or None after the time limit.

    With PYTHONPATH, child processes import the copy, whatever their directory. Bytecode is not written:
    its header has the source's time in whole seconds, and mutants follow each other faster.
    """
    environment = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *suite]
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # the group of this run's own children
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
