"""The cache of compiled code: its place, its use, and damaged entries."""

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
class Compilations(event.Listener):
    def on_start(self, event): compiled()
    def on_end(self, event): pass
with event.install_listener("numba:compile", Compilations()):
    from service.runtime import forest_kernel
from numba import config
assert config.CACHE_DIR == os.environ["NUMBA_CACHE_DIR"], "the setting of numba must be restored"
print(count, len(forest_kernel.add_leaves.signatures))
"""


def import_kernel(cache: Path) -> tuple[bool, list[Path]]:
    """Whether importing the kernel compiled it, and the files in the cache afterwards."""
    process = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    count, signatures = map(int, process.stdout.split())
    assert signatures == 2
    return count > 0, sorted(p for p in cache.rglob("*") if p.is_file())


@pytest.mark.slow
def test_compiled_code_is_reused_and_a_damaged_cache_is_replaced(tmp_path: Path) -> None:
    compiled, files = import_kernel(tmp_path)
    assert compiled
    assert files
    assert import_kernel(tmp_path) == (False, files)
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert import_kernel(tmp_path) == (True, []), "a damaged cache is deleted"
    compiled, new_files = import_kernel(tmp_path)
    assert compiled
    assert [f.name for f in new_files] == [f.name for f in files]


def test_compiled_code_goes_into_the_data_directory_if_the_source_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # restored afterwards
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    settings = Settings(home=tmp_path)
    prepare.prepare(settings)
    assert "NUMBA_CACHE_DIR" not in forkserver.environment()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)  # root can write everywhere
        prepare.prepare(settings)
    assert forkserver.environment()["NUMBA_CACHE_DIR"] == str(tmp_path / "compiled")
