"""What lives as long as the process, for whoever answers a call or looks after the server."""

from __future__ import annotations

import threading
from concurrent.futures import Executor
from dataclasses import dataclass, field

from sqlalchemy import Engine

from registry import db
from registry.artifacts import Store
from service.builds.supervisor import Supervisor
from service.config import Settings
from service.runtime.pool import Pool
from service.runtime.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Services:
    """Made once, in `create_app`."""

    settings: Settings
    engine: Engine
    sessions: db.Sessions
    store: Store
    snapshot: Snapshot
    pool: Pool
    supervisor: Supervisor
    executor: Executor  # predictions and loads that leave the event loop
    leaving: threading.Event = field(default_factory=threading.Event)  # set: answers without end end now
