"""Waiting for a build: without limit, while the server's builder works."""

from __future__ import annotations

import time
from collections.abc import Callable

from service.client.client_errors import BuilderBroken

CHECK_INTERVAL_S = 5.0
"""Time between two checks of the builder while a build is waited for."""
MAX_BROKEN_S = 30.0
"""A builder that has been broken for this long needs repair: stop waiting."""


class BuilderWatch:
    """Checks the server's builder regularly while a build is waited for."""

    def __init__(self, get_state: Callable[[], str | None], on_problem: Callable[[str], None]) -> None:
        """`get_state` returns "ok", the builder's problem, or None if its state is unknown.

        `on_problem` is called once, with a message, when the builder does not work.
        """
        self._get_state, self._on_problem = get_state, on_problem
        self._next_check = time.monotonic() + CHECK_INTERVAL_S
        self._broken_since: float | None = None
        self._reported = False

    def check(self) -> None:
        """Check the builder if it is time to. Raises `BuilderBroken` after `MAX_BROKEN_S`."""
        if (now := time.monotonic()) < self._next_check:
            return
        self._next_check = now + CHECK_INTERVAL_S
        if (state := self._get_state()) is None:
            return
        if state == "ok":
            self._broken_since = None
            return
        if self._broken_since is None:
            self._broken_since = now
        if now - self._broken_since >= MAX_BROKEN_S:
            raise BuilderBroken(state)
        if not self._reported:
            self._reported = True
            self._on_problem(f"the server cannot build now: {state}")
