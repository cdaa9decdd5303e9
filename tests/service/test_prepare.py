"""The first start: the data directory and the admin key survive a power failure."""

from __future__ import annotations

import stat
from pathlib import Path

from service.config import Settings
from service.prepare import prepare
from tests.harness.durability import recorded


def test_the_first_start_makes_the_data_directory_and_the_admin_key_durable(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "var" / "home")
    with recorded() as log:
        prepare(settings)
    created = log.committed("keys")
    for directory in (settings.home, settings.home.parent):
        assert log.position("mkdir", directory) < log.entry_synced(directory) < created
    assert log.saved(settings.admin_key_file) < created
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700


def test_a_later_start_changes_no_key(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    prepare(settings)
    key = settings.admin_key_file.read_text()
    with recorded() as log:
        prepare(settings)
    assert settings.admin_key_file.read_text() == key
    assert log.steps(tmp_path, "fsync", "rename", "mkdir") == []
