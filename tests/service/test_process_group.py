"""The memory and the lock that web processes share, between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.process_group import ProcessGroup, create_shared_memory, mark_absent

LEADER = """
import sys
from service.process_group import ProcessGroup
group = ProcessGroup(int(sys.argv[1]), 1, 2)
group.set_connections(3)
group.builder_problem = "the build template ended with exit code 1, 5 times in a row"
print(group.try_to_lead(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def memory() -> Iterator[int]:
    descriptor = create_shared_memory(2)
    yield descriptor
    os.close(descriptor)


def test_another_process_leads_after_the_leader_was_killed(memory: int) -> None:
    group = ProcessGroup(memory, 0, 2)
    group.set_connections(7)
    argv = [sys.executable, "-c", LEADER, str(memory)]
    with subprocess.Popen(
        argv, pass_fds=[memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "True\n"
        assert not group.try_to_lead()
        assert group.fewest_connections() == 3
        assert group.builder_problem == "the build template ended with exit code 1, 5 times in a row"
        leader.kill()
    assert group.try_to_lead()
    mark_absent(memory, 1)
    assert group.fewest_connections() == 7
    group.builder_problem = None
    assert group.builder_problem is None


def test_a_process_without_a_group_leads() -> None:
    group = ProcessGroup.of_one()
    assert group.try_to_lead()
    group.builder_problem = "ü" * 2000  # longer than the memory
    assert set(group.builder_problem or "") == {"ü"}
    group.leave()
