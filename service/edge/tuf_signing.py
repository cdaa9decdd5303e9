"""Background task that keeps the signed TUF documents current: after every change, and before they expire."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from registry import db, exports, tuf_documents
from registry.exports import DeviceFile
from service import telemetry
from service.web.services import Services

MAX_INTERVAL_S = 600.0
"""Longest time between two refreshes: a timestamp is valid for a day and is signed again after half of it."""
RETRY_S = 10.0

log = telemetry.logger(__name__)


class TufSigning:
    """Runs in every web process. The first to get the file lock signs; the others have nothing left to do."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._signed_files: list[DeviceFile] = []
        self._refreshed_at: float | None = None

    async def run(self, changed: asyncio.Event) -> None:
        """Run until cancelled. `changed` is set when the registry changes."""
        wait_s = MAX_INTERVAL_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # wait_for of Python 3.11 can lose a cancellation
                    await changed.wait()
            changed.clear()
            try:
                await asyncio.to_thread(self.step)
                wait_s = MAX_INTERVAL_S
            except Exception:
                log.exception("tuf.signing_failed")
                wait_s = RETRY_S

    def step(self) -> bool:
        """Sign documents that changed or are due; return whether any was signed."""
        settings = self._services.settings
        with db.reading(self._services.sessions) as session:
            files = exports.device_files(session)
            has_documents = tuf_documents.newest(session, "timestamp") is not None
        if (not files and not has_documents) or (files == self._signed_files and self._is_recent()):
            return False
        # python-tuf and cryptography are imported with the first export, not when the server starts
        from service.edge.tuf_keys import RoleKeys
        from service.edge.tuf_repository import TufRepository

        with db.locked(settings.home / "tuf.lock"), self._services.sessions.begin() as session:
            signed = TufRepository(session, RoleKeys(settings.home / "tuf")).refresh()
        self._signed_files, self._refreshed_at = files, time.monotonic()
        if signed:
            log.info("tuf.signed", targets=len(files))
        return signed

    def _is_recent(self) -> bool:
        return self._refreshed_at is not None and time.monotonic() - self._refreshed_at < MAX_INTERVAL_S
