"""Helpers for training jobs: a worker driven step by step, real child processes, and builds in between."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import joblib
import pandas as pd

from registry import db, queue, versions
from registry.artifacts import Store
from registry.jobs import jobs
from registry.jobs.tables import JobRow, PartitionRow
from registry.tables import VersionRow
from registry.vocabulary import SCORE, TRAIN
from service.batch.train_schemas import TrainBody
from service.builds.forkserver import ForkServer
from service.builds.task_kinds import BuildTasks
from service.config import Settings
from service.runtime.isolated_runtime import Isolation
from service.runtime.loading import BulkLoader, is_shared
from service.submit.train_admission import TrainAdmission
from service.worker.job_work import JobWork, WorkContext
from service.worker.lane_models import LaneModels
from service.worker.lanes import Worker
from service.worker.score_work import ScoreWork
from service.worker.train.train_work import TrainWork


class Trainings:
    """A registry with a data directory, and a worker that runs only when a test calls it."""

    def __init__(self, home: Path, forks: ForkServer, url: str | None = None) -> None:
        self.data = home / "data"
        self.data.mkdir()
        self.settings = Settings(
            home=home / "home", batch_roots=str(self.data), batch_lanes=1, database_url=url
        )
        engine = db.connect(self.settings.url)
        db.migrate(engine, self.settings.home)
        self.sessions, self.store = db.sessions(engine), Store(self.settings.blobs)
        self.forks = forks
        self.engine = engine
        self.worker = self.new_worker()

    def works(self) -> dict[str, JobWork]:
        isolation = Isolation(
            lambda: self.forks.fork("isolated"),
            self.settings.build_memory_mb,
            self.settings.predict_deadline_s,
        )
        models = LaneModels(BulkLoader(self.sessions, self.store, isolation), is_shared)
        context = WorkContext(self.settings, self.sessions, self.store, models, self.forks)
        return {SCORE: ScoreWork(context), TRAIN: TrainWork(context)}

    def new_worker(self) -> Worker:
        return Worker(self.settings, self.sessions, self.works())

    def write(self, parts: list[pd.DataFrame], suffix: str = ".parquet") -> str:
        for number, part in enumerate(parts):
            path = self.data / f"part-{number}{suffix}"
            part.to_csv(path, index=False) if suffix == ".csv" else part.to_parquet(path, index=False)
        return str(self.data)

    def upload(self, model: Any) -> str:
        file = io.BytesIO()
        joblib.dump(model, file)
        return self.store.put([file.getvalue()]).sha256

    def start(
        self, estimator: Any, parts: list[pd.DataFrame], suffix: str = ".parquet", **fields: Any
    ) -> int:
        body = {
            "kind": "train",
            "estimator": {"artifact": self.upload(estimator)},
            "input": {"uri": self.write(parts, suffix)},
            "target": "y",
            "strategy": "partial_fit",
            "publish": {"name": "m"},
            **fields,
        }
        spec = TrainBody.model_validate(body).model_dump(mode="json")
        TrainAdmission().examine(self.settings, self.store, spec, None)
        with self.sessions.begin() as session:
            return TrainAdmission().accept(session, self.store, spec, None, by="tests").id

    def run(self, job_id: int, steps: int = 500) -> JobRow:
        """Run the worker and the builds until the job has ended, at most `steps` steps."""
        for _ in range(steps):
            if (job := self.job(job_id)).state not in jobs.OPEN_STATES:
                break
            self.worker.step()
            if job.version is not None:
                self.build()
        return self.job(job_id)

    def build(self) -> None:
        """Build one version that waits for its build, like a server."""
        builds = BuildTasks(self.settings, self.sessions, self.store, self.forks)
        with self.sessions.begin() as session:
            task = queue.claim(session, [builds.kind], "tests", 60.0)
        if task is None:
            return
        with tempfile.TemporaryDirectory() as out:
            result = builds.run(int(task.subject), Path(out), lambda: None)
        with self.sessions.begin() as session:
            queue.finish(session, task.id, task.fence)
            builds.record(session, int(task.subject), result)

    def job(self, job_id: int) -> JobRow:
        with db.reading(self.sessions) as session:
            return jobs.get(session, job_id)

    def progress(self, job_id: int) -> jobs.JobProgress:
        with db.reading(self.sessions) as session:
            return jobs.progress(session, [job_id])[job_id]

    def partitions(self, job_id: int) -> list[PartitionRow]:
        with db.reading(self.sessions) as session:
            return jobs.partitions(session, job_id)

    def version(self, number: int = 1) -> VersionRow:
        with db.reading(self.sessions) as session:
            version = versions.get(session, "m", number)
            assert version.tags is not None  # loads the columns before the session ends
            return version

    def model(self, number: int = 1) -> Any:
        return joblib.load(self.store.path(self.version(number).artifact))
