"""How long to wait for a build: without bound, as long as there is anybody who builds."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 5.0
"""How often one that waits for a build asks whether there is anybody who builds."""
BROKEN_S = 30.0
"""A builder that does not work for this long is not waited for: it needs somebody to look at it."""


class BuilderBroken(Exception):
    """What is waited for is not built, because the server's builder does not work."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the server cannot build now: {why}")


class BuilderWatch:
    """Looks now and then whether the server's builder works, for one that waits for it."""

    def __init__(self, ask: Callable[[], str | None], on_trouble: Callable[[str], None]) -> None:
        """`ask` answers "ok", what is wrong with the builder, or None when that cannot be known now.
        `on_trouble` is told, once, that nothing is built and why."""
        self._ask, self._on_trouble = ask, on_trouble
        self._next = time.monotonic() + LOOK_S
        self._broken_since: float | None = None
        self._told = False

    def look(self) -> None:
        """Ask, when it is time to. Raises `BuilderBroken` when the builder has been broken for `BROKEN_S`."""
        if (moment := time.monotonic()) < self._next:
            return
        self._next = moment + LOOK_S
        if (found := self._ask()) is None:
            return
        if found == "ok":
            self._broken_since = None
            return
        if self._broken_since is None:
            self._broken_since = moment
        if moment - self._broken_since >= BROKEN_S:
            raise BuilderBroken(found)
        if not self._told:
            self._told = True
            self._on_trouble(f"the server cannot build now: {found}")
