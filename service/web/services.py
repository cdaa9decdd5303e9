"""`Services`: the objects that live as long as the process, shared by routes and background tasks."""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from dataclasses import dataclass, field

from sqlalchemy import Engine

from registry import db
from registry.artifacts import Store
from service.builds.supervisor import Supervisor
from service.config import Settings
from service.prediction_log.recorder import Recorder
from service.process_group import ProcessGroup
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Services:
    """Created once per process, by `service.app.create_app`."""

    settings: Settings
    engine: Engine
    sessions: db.Sessions
    store: Store
    snapshot: Snapshot
    pool: Pool
    supervisor: Supervisor
    recorder: Recorder
    executor: Executor  # for predictions and model loads that run outside the event loop
    group: ProcessGroup
    shutting_down: threading.Event = field(default_factory=threading.Event)  # ends endless responses
