"""Where compiled code is kept, and what becomes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import prepare
from service.builds import forkserver
from service.config import Settings

ROOT = Path(__file__).parents[3]
COMPILE = """
import os
count = 0
def compiled(*_): global count; count += 1
from numba.core import event
class Told(event.Listener):
    def on_start(self, event): compiled()
    def on_end(self, event): pass
with event.install_listener("numba:compile", Told()):
    from service.runtime import kernel
from numba import config
assert config.CACHE_DIR == os.environ["NUMBA_CACHE_DIR"], "numba's own setting is as before"
print(count, len(kernel.add_leaves.signatures))
"""


def imported(place: Path) -> tuple[bool, list[Path]]:
    """Whether importing the kernel had to compile it, and the files kept afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(place)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    count, signatures = map(int, done.stdout.split())
    assert signatures == 2
    return count > 0, sorted(p for p in place.rglob("*") if p.is_file())


@pytest.mark.slow
def test_what_is_compiled_once_is_read_by_the_next_and_made_anew_when_it_is_damaged(tmp_path: Path) -> None:
    anew, kept = imported(tmp_path)
    assert anew
    assert kept
    assert imported(tmp_path) == (False, kept)
    for file in kept:
        file.write_bytes(file.read_bytes()[:100])
    assert imported(tmp_path) == (True, []), "what is damaged is thrown away"
    anew, again = imported(tmp_path)
    assert anew
    assert [f.name for f in again] == [f.name for f in kept]


def test_where_the_source_is_read_only_compiled_code_goes_into_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # restored afterwards
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    settings = Settings(home=tmp_path)
    prepare.prepare(settings)
    assert "NUMBA_CACHE_DIR" not in forkserver.environment()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)  # root may write everywhere
        prepare.prepare(settings)
    assert forkserver.environment()["NUMBA_CACHE_DIR"] == str(tmp_path / "compiled")
