"""What runs on the nodes of a cluster: one partition after another, with the model loaded once."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import ray

from registry.artifacts import Store
from registry.errors import Changed, TriviumError, Unavailable
from registry.jobs import jobs
from service.builds.forkserver import ForkServer
from service.compiler.fit.fit_records import FitStep
from service.formats.dataset import Dataset, FileRange
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import ModelRuntime, start_bulk_runtime
from service.submit.score_admission import columns_to_read
from service.worker.job_kind import Hopeless, Piece
from service.worker.ray.messages import Descriptor, Part, Report, Scores, Steps
from service.worker.score import score
from service.worker.train.job import do_step, in_children


class Actor:
    """As Ray Data wants it: called with a batch of one `Part`, answers with one `Report`, both as JSON.

    Nothing is raised: an error would end the whole job on Ray, and others may do better. Ray starts an actor
    that died again and gives its partition to the next.
    """

    def __init__(self, shared: bytes) -> None:
        self._shared = msgspec.msgpack.decode(shared, type=Scores | Steps)
        self._forks = ForkServer()  # started when an isolated model or a training step needs it
        self._me = f"{ray.get_runtime_context().get_node_id()[:8]}:{os.getpid()}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        part = msgspec.json.decode(batch["part"][0], type=Part)
        return {"report": [msgspec.json.encode(self._report(part)).decode()]}

    def _report(self, part: Part) -> Report:
        started = time.monotonic()
        made, error, hopeless = None, None, False
        try:
            made = self._do(part)
        except Exception as raised:
            error = str(raised) if isinstance(raised, TriviumError) else f"{type(raised).__name__}: {raised}"
            hopeless = isinstance(raised, Hopeless | Changed)
        return Report(
            stage=part.stage,
            number=part.number,
            worker=self._me,
            seconds=time.monotonic() - started,
            rows=made.rows if made else 0,
            failed=made.failed if made else 0,
            result=made.result if made else None,
            error=error,
            hopeless=hopeless,
        )

    def _do(self, part: Part) -> Piece:
        home = Path(self._shared.home)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with attempt(home, f"{part.stage}-{part.number:06d}-{part.fence}") as path:
            if isinstance(self._shared, Scores):
                return self._score(self._shared, part.part, path)
            fit = in_children(self._shared.timeout_s, self._forks)
            return do_step(msgspec.convert(part.part, FitStep), fit, path, lambda: None)

    def _score(self, shared: Scores, part: Descriptor, path: Path) -> Piece:
        return score(
            msgspec.convert(shared.dataset, Dataset),
            msgspec.convert(part, FileRange),
            columns_to_read(shared.spec, shared.version.signature),
            shared.version.signature,
            self._runtime,
            path,
            shared.spec["output"]["media_type"],
            lambda rows, failed: None,  # who works for nobody any more is ended by Ray
        )

    @cached_property
    def _runtime(self) -> ModelRuntime:
        """The runtime of the job's version, loaded once."""
        shared = self._shared
        assert isinstance(shared, Scores)
        isolation = Isolation(lambda: self._forks.fork("isolated"), shared.memory_mb, shared.deadline_s)
        return start_bulk_runtime(shared.version, Store(Path(shared.blobs)), isolation)


@contextmanager
def attempt(home: Path, base: str) -> Iterator[Path]:
    """Where one attempt may write. Ray may run a partition twice at once, when it has lost sight of a
    node, so each attempt has its own. Raises `Unavailable` when too many have died: Ray would go on for ever.
    """
    died = len(list(home.glob(f".{base}-*.begun")))
    if died >= jobs.MAX_LOST_WORKERS:
        raise Unavailable(f"the process that works on it has died {died} times")
    name = f"{base}-{secrets.token_hex(4)}"
    begun = home / f".{name}.begun"
    begun.touch()
    try:
        yield home / name
    finally:
        begun.unlink(missing_ok=True)
