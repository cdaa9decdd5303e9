"""What a worker does again and again beside its tasks, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from service import telemetry

log = telemetry.logger(__name__)


class Repeating:
    """Calls `step` every so often. What it raises is logged: the database or the disk may come back."""

    def __init__(self, name: str, step: Callable[[], object], every_s: float) -> None:
        self._name, self._step, self._every_s = name, step, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def leave(self) -> None:
        """There is no other step after the one at hand."""
        self._stopping.set()

    def stop(self, within_s: float | None = None) -> None:
        """Returns when the step at hand is over, at the latest after `within_s`."""
        self.leave()
        self._thread.join(within_s)

    def _loop(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self._step()
            except Exception:
                log.exception(f"{self._name}.failed")
