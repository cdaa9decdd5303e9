"""Acknowledged changes survive kill -9. `python -m benchmarks.kill` runs the same test for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.server import Server
from tests.harness.server_kills import kill_server


@pytest.mark.fault
def test_acknowledged_changes_are_neither_lost_nor_doubled_when_the_server_is_killed(tmp_path: Path) -> None:
    with Server(tmp_path / "home", tmp_path / "log", build_concurrency=2) as server:
        report = kill_server(server, rounds=4, publishers=2, seed=4, max_round_s=0.8)
        assert server.terminate() == 0
    assert report.faults == []
    assert report.acknowledged
    assert report.killed_while_building
    assert sum(report.states.values()) == len(report.acknowledged)
