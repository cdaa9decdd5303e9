"""Publishing and building in one line, and several who do something at the same moment."""

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

T = TypeVar("T")

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.registry.child_actions"]
)  # a second of imports is paid once, not by each
SIGNATURE = Signature("regression", (Input("x0", "float64"),), (Output("value", "float64", (-1,)),))
READY = BuildResult(
    state="ready", report={"rows": 3}, signature=SIGNATURE, runtime="onnx", runtime_reason="same"
)


def publish(
    sessions: Sessions, store: Store, model: str = "fraud", *, content: bytes = b"a model", **more: Any
) -> int:
    """Upload and publish; the new version's number."""
    blob = store.put([content])
    new = NewVersion(model=model, artifact=blob.sha256, format="sklearn-joblib", **more)
    with sessions.begin() as session:
        return versions.publish(session, store, new, by="ann").number


def build(sessions: Sessions, built: BuildResult = READY) -> None:
    """Do every build that waits."""
    while True:
        with sessions.begin() as session:
            task = queue.claim(session, [BUILD_TASK], "builder")
            if task is None:
                return
            queue.finish(session, task.id, task.fence)
            versions.finish_build(session, int(task.subject), built)


def publish_ready(
    sessions: Sessions, store: Store, model: str = "fraud", count: int = 1, **more: Any
) -> list[int]:
    """The numbers of `count` new versions that can be served."""
    numbers = [publish(sessions, store, model, **more) for _ in range(count)]
    build(sessions)
    return numbers


def promote(sessions: Sessions, *numbers: int, model: str = "fraud", alias: str = "champion") -> None:
    for number in numbers:
        with sessions.begin() as session:
            aliases.promote(session, model, alias, number, by="ann")


def champion(sessions: Sessions, model: str = "fraud", alias: str = "champion") -> int:
    with sessions() as session:
        return aliases.get(session, model, alias).version.number


def threads(*calls: Callable[[], T]) -> list[T | BaseException]:
    """What each call answered or raised; all start at the same moment."""
    gate = threading.Barrier(len(calls))

    def pass_gate(call: Callable[[], T]) -> T:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [_outcome(f) for f in [pool.submit(pass_gate, call) for call in calls]]


def processes(work: Callable[..., T], arguments: Iterable[Sequence[Any]]) -> list[T]:
    """What `work` answered for each of `arguments`, in a new process each; all start at the same moment."""
    given = list(arguments)
    gate = FORKS.Barrier(len(given))
    with ProcessPoolExecutor(len(given), FORKS, _wait_at, (gate,)) as pool:
        return list(pool.map(work, *zip(*given, strict=True)))


def killed(work: Callable[..., object], *arguments: Any) -> None:
    """Let `work` run in a new process that must end by SIGKILL, its own or another's."""
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _wait_at(gate: Barrier) -> None:
    gate.wait(60)


def _outcome(future: Future[T]) -> T | BaseException:
    return future.exception() or future.result()
