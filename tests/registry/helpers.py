"""Helpers for tests of the registry: publish and build versions, run threads and processes at once."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from typing import Any, TypeVar

from registry import aliases, queue, versions
from registry.artifacts import Store
from registry.build_messages import BuildResult
from registry.db import Sessions
from registry.signature import Input, Output, Signature
from registry.versions import NewVersion
from registry.vocabulary import BUILD_TASK

Result = TypeVar("Result")

FORKS = multiprocessing.get_context("forkserver")
# imported once, not in each process: it takes a second
FORKS.set_forkserver_preload(["tests.registry.child_actions"])
SIGNATURE = Signature("regression", (Input("x0", "float64"),), (Output("value", "float64", (-1,)),))
READY = BuildResult(
    state="ready", report={"rows": 3}, signature=SIGNATURE, runtime="onnx", runtime_reason="same"
)


def publish(
    sessions: Sessions, store: Store, model: str = "fraud", *, content: bytes = b"a model", **fields: Any
) -> int:
    """Upload and publish a version; return its number."""
    blob = store.put([content])
    new = NewVersion(model=model, artifact=blob.sha256, format="sklearn-joblib", **fields)
    with sessions.begin() as session:
        return versions.publish(session, store, new, by="ann").number


def build(sessions: Sessions, result: BuildResult = READY) -> None:
    """Finish all queued builds with `result`."""
    while True:
        with sessions.begin() as session:
            task = queue.claim(session, [BUILD_TASK], "builder")
            if task is None:
                return
            queue.finish(session, task.id, task.fence)
            versions.finish_build(session, int(task.subject), result)


def publish_ready(
    sessions: Sessions, store: Store, model: str = "fraud", count: int = 1, **fields: Any
) -> list[int]:
    """Publish and build `count` versions; return their numbers."""
    numbers = [publish(sessions, store, model, **fields) for _ in range(count)]
    build(sessions)
    return numbers


def promote(sessions: Sessions, *numbers: int, model: str = "fraud", alias: str = "champion") -> None:
    for number in numbers:
        with sessions.begin() as session:
            aliases.promote(session, model, alias, number, by="ann")


def champion(sessions: Sessions, model: str = "fraud", alias: str = "champion") -> int:
    with sessions() as session:
        return aliases.get(session, model, alias).version.number


def threads(*calls: Callable[[], Result]) -> list[Result | BaseException]:
    """Run the calls at the same moment in threads; return their results or exceptions."""
    gate = threading.Barrier(len(calls))

    def pass_gate(call: Callable[[], Result]) -> Result:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [_outcome(f) for f in [pool.submit(pass_gate, call) for call in calls]]


def processes(function: Callable[..., Result], arguments: Iterable[Sequence[Any]]) -> list[Result]:
    """Run `function` at once in new processes, one per entry of `arguments`; return the results."""
    argument_lists = list(arguments)
    gate = FORKS.Barrier(len(argument_lists))
    with ProcessPoolExecutor(len(argument_lists), FORKS, _wait_at, (gate,)) as pool:
        return list(pool.map(function, *zip(*argument_lists, strict=True)))


def run_until_killed(function: Callable[..., object], *arguments: Any) -> None:
    """Run `function` in a new process, and check that SIGKILL ended it."""
    process = FORKS.Process(target=function, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _wait_at(gate: Barrier) -> None:
    gate.wait(60)


def _outcome(future: Future[Result]) -> Result | BaseException:
    return future.exception() or future.result()
