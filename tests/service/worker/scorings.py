"""Helpers for scoring jobs over the API, with a worker that a test drives step by step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from anyio.to_thread import run_sync
from sqlalchemy import update

from registry.jobs import jobs
from registry.tables import TaskRow, now
from registry.vocabulary import SCORE
from service.builds.forkserver import ForkServer
from service.config import Settings
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import BulkLoader, is_shared
from service.worker.job_work import WorkContext
from service.worker.lane_models import LaneModels
from service.worker.lanes import Worker
from service.worker.score_work import ScoreWork
from tests.service.api import Api, running_app

CSV = "text/csv"
HEADER = "id,x0,x1,x2\n"


class Scorings:
    """An application and a worker in this process. `data` is the only batch root.

    The models are those of `published_home`.
    """

    def __init__(self, api: Api, data: Path) -> None:
        self.api, self.data = api, data
        services = api.services
        isolation = Isolation(
            lambda: services.supervisor.forks.fork("isolated"), api.settings.build_memory_mb, 30.0
        )
        load = BulkLoader(services.sessions, services.store, isolation)
        self.models = LaneModels(load, is_shared)
        context = WorkContext(api.settings, services.sessions, services.store, self.models, ForkServer())
        self.worker = Worker(api.settings, services.sessions, {SCORE: ScoreWork(context)})

    def write(self, name: str, *rows: str, header: str = HEADER) -> Path:
        """Write a CSV file. Each row is one line without its newline."""
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(header + "".join(f"{row}\n" for row in rows))
        return path

    def body(self, path: Path, **fields: Any) -> dict[str, Any]:
        defaults = {
            "kind": "score",
            "model": "flag",
            "input": {"uri": str(path)},
            "id_column": "id",
            "output": {"media_type": CSV},
        }
        return defaults | fields

    async def post(self, path: Path, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        return await self.api.client.post("/v1/jobs", json=self.body(path, **fields), headers=headers or {})

    async def start(self, path: Path, **fields: Any) -> str:
        """Start a job and return its address."""
        answer = await self.post(path, **fields)
        assert answer.status_code == 202, answer.text
        location: str = answer.headers["location"]
        return location

    async def work(self, steps: int = 1) -> None:
        """Run `steps` steps of the worker. Retries run without their pause."""
        for _ in range(steps):
            with self.api.services.sessions.begin() as session:
                session.execute(update(TaskRow).values(not_before=now() - timedelta(hours=1)))
            await run_sync(self.worker.step)

    async def finish(self, location: str) -> dict[str, Any]:
        """Run the worker until the job has ended; return its record."""
        for _ in range(100):
            if (record := await self.get(location))["state"] not in jobs.OPEN_STATES:
                return record
            await self.work()
        raise AssertionError(record)

    async def get(self, location: str) -> dict[str, Any]:
        answer = await self.api.client.get(location)
        assert answer.status_code == 200, answer.text
        record: dict[str, Any] = answer.json()
        return record

    async def text(self, location: str) -> str:
        answer = await self.api.client.get(location)
        assert answer.status_code == 200, answer.text
        return answer.text


@asynccontextmanager
async def scoring(home: Path, data: Path, **settings: Any) -> AsyncIterator[Scorings]:
    data.mkdir()  # noqa: ASYNC240
    async with running_app(Settings(home=home, batch_roots=str(data), batch_lanes=1, **settings)) as api:
        scorings = Scorings(api, data)
        try:
            yield scorings
        finally:
            scorings.models.close()
