"""The background task that signs TUF documents."""

from __future__ import annotations

import asyncio
import fcntl
from types import SimpleNamespace
from typing import cast

import pytest

from registry import aliases
from service.edge import tuf_signing
from service.edge.tuf_repository import TufRepository
from service.edge.tuf_signing import MAX_INTERVAL_S, TufSigning
from service.web.services import Services
from tests.service.edge.tuf_registry import Registry

TIMEOUT_S = 30.0


@pytest.fixture
def signing(registry: Registry) -> TufSigning:
    """The task of a process that uses the registry."""
    settings = SimpleNamespace(home=registry.home)
    return TufSigning(cast(Services, SimpleNamespace(settings=settings, sessions=registry.sessions)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the task, which only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(tuf_signing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def refreshes(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each refresh of the documents, whether other processes had to wait for it."""
    refresh, locked = TufRepository.refresh, []

    def record(repository: TufRepository) -> bool:
        with (registry.home / "tuf.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked.append(False)
            except BlockingIOError:
                locked.append(True)
        return refresh(repository)

    monkeypatch.setattr(TufRepository, "refresh", record)
    return locked


def test_nothing_is_refreshed_before_the_first_export(signing: TufSigning, refreshes: list[bool]) -> None:
    assert not signing.step()
    assert refreshes == []


def test_changed_files_are_signed_once_and_by_one_process_at_a_time(
    signing: TufSigning, registry: Registry, refreshes: list[bool]
) -> None:
    registry.export(b"first")
    assert [signing.step() for _ in range(3)] == [True, False, False]
    registry.export(b"second")
    assert [signing.step() for _ in range(3)] == [True, False, False]
    assert refreshes == [True, True]
    assert registry.versions()["targets"] == 2


def test_unchanged_files_are_refreshed_after_ten_minutes(
    signing: TufSigning, registry: Registry, clock: list[float], refreshes: list[bool]
) -> None:
    registry.export(b"first")
    signing.step()
    clock[0] += MAX_INTERVAL_S - 0.1
    assert not signing.step()
    assert len(refreshes) == 1
    clock[0] += 0.1
    assert not signing.step(), "nothing is due"
    assert len(refreshes) == 2
    signing.step()
    assert len(refreshes) == 2


def test_the_removal_of_the_last_file_is_signed(signing: TufSigning, registry: Registry) -> None:
    registry.export(b"first")
    signing.step()
    with registry.sessions.begin() as session:
        aliases.remove(session, "m", "champion", by="test")
    assert signing.step()
    assert registry.document("targets").signed.targets == {}


@pytest.mark.anyio
async def test_a_change_is_signed_and_a_failure_is_repeated_after_ten_seconds(
    signing: TufSigning, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.export(b"first")
    (blocked := registry.home / "tuf.lock").mkdir()
    changed, waits, timeout = asyncio.Event(), list[float | None](), asyncio.timeout
    steps, step = list[None](), signing.step

    def record_step() -> bool:
        steps.append(None)
        return step()

    monkeypatch.setattr(signing, "step", record_step)
    waiting = asyncio.Event()

    def record(delay: float | None) -> asyncio.Timeout:
        waits.append(delay)
        if len(waits) == 3:
            waiting.set()
        if delay != 10:
            return timeout(delay)
        blocked.rmdir()
        return timeout(0)

    monkeypatch.setattr(asyncio, "timeout", record)
    task = asyncio.create_task(signing.run(changed))
    await _run_loop(5)
    assert steps == [], "nothing has changed"
    changed.set()
    await asyncio.wait_for(waiting.wait(), TIMEOUT_S)
    await _run_loop(5)
    task.cancel()
    assert len(steps) == 2
    assert waits == [600, 10, 600]
    assert registry.versions()["timestamp"] == 1
    assert not changed.is_set()


@pytest.mark.anyio
@pytest.mark.parametrize("iterations", range(5))
async def test_the_task_ends_when_cancelled_at_the_moment_of_a_change(
    signing: TufSigning, iterations: int
) -> None:
    """As in a shutdown right after a build: the server waits for the end of this task."""
    changed = asyncio.Event()
    task = asyncio.create_task(signing.run(changed))
    await _run_loop(5)  # until the task waits
    changed.set()
    await _run_loop(iterations)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=TIMEOUT_S)
    task.cancel()  # if it is still running, end it for the other tests
    assert done
    assert task.cancelled()


async def _run_loop(count: int) -> None:
    """Run `count` iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)
