"""Keeps the signed documents current while the server runs: after every change, and before they grow old."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from registry import db, exports, tuf_documents
from registry.exports import DeviceFile
from service import telemetry
from service.web.services import Services

LOOK_S = 600.0
"""At least so often: a timestamp lives a day and is signed again after half of it."""
RETRY_S = 10.0

log = telemetry.logger(__name__)


class SigningChore:
    """One in each server process; the first to hold the file's lock signs, the others find nothing to do."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._offered: list[DeviceFile] = []
        self._looked = 0.0

    async def run(self, moved: asyncio.Event) -> None:
        """Until cancelled. `moved` is set when the registry changed."""
        wait_s = LOOK_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):  # wait_for of Python 3.11 may lose a cancel
                    await moved.wait()
            moved.clear()
            try:
                await asyncio.to_thread(self.step)
                wait_s = LOOK_S
            except Exception:
                log.exception("tuf.not_signed")
                wait_s = RETRY_S

    def step(self) -> bool:
        """Sign if something changed or grows old; True when something was signed."""
        settings = self._services.settings
        with db.reading(self._services.sessions) as session:
            offered = exports.device_files(session)
            begun = tuf_documents.newest(session, "timestamp") is not None
        fresh = time.monotonic() - self._looked < LOOK_S and self._looked > 0
        if (not offered and not begun) or (offered == self._offered and fresh):
            return False
        # python-tuf and the cryptography below it come with the first export, not with the start
        from service.edge.tuf_keys import KeyFiles
        from service.edge.tuf_repository import Repository

        with db.locked(settings.home / "tuf.lock"), self._services.sessions.begin() as session:
            signed = Repository(session, KeyFiles(settings.home / "tuf")).refresh()
        self._offered, self._looked = offered, time.monotonic()
        if signed:
            log.info("tuf.signed", targets=len(offered))
        return signed
