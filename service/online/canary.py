"""Bounds of canaries: a version that fails too often, or is too slow, goes back by itself.

Each process counts the newest `WINDOW` calls of each canary. A call failed if the version could not answer
it: it cannot be loaded, its process died, it missed the deadline, its queue was full, or it raised an
unexpected error. An input that it refuses is a failure only if the alias's version accepts it. A call is slow
if it took longer than the bound of the 99th percentile; 1 % of the calls may be.

A bound is passed if at least `MIN_CALLS` calls were counted, the share of failed (or slow) calls is above the
bound, and that many would occur by chance with a probability below `CHANCE` if the true share were the bound.
Then `registry.traffic.withdraw` returns the canary's weight to the alias's version, once for all processes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Literal, NamedTuple

from registry import db, traffic
from registry.errors import NotFound
from service import telemetry
from service.runtime.snapshot import SnapshotTraffic

MIN_CALLS = 20
WINDOW = 1000
CHANCE = 1e-4
SLOW_SHARE = 0.01
RETRY_S = 5.0
"""Pause after a withdrawal that failed, for example because the database was locked."""

Bound = Literal["error_rate", "p99_ms"]

log = telemetry.logger(__name__)


class Breach(NamedTuple):
    bound: Bound
    reason: str


class CanaryWindow:
    """The newest calls of one canary."""

    def __init__(self, split: SnapshotTraffic, number: int) -> None:
        self.put_id = split.put_id
        self._number = number
        self._error_rate, self._p99_s = split.error_rate, (split.p99_ms or math.inf) / 1000
        self._outcomes: deque[tuple[bool, bool]] = deque()
        self._failed = self._slow = 0
        self._last_failure = ""
        self.withdraw_after = 0.0  # time of `time.monotonic`

    def add(self, seconds: float, failure: str | None) -> Breach | None:
        """Count a call. Return the bound that is passed now, or None."""
        if len(self._outcomes) == WINDOW:
            failed, slow = self._outcomes.popleft()
            self._failed -= failed
            self._slow -= slow
        failed, slow = failure is not None, seconds > self._p99_s
        self._outcomes.append((failed, slow))
        self._failed += failed
        self._slow += slow
        if failure is not None:
            self._last_failure = failure
        return self._find_breach() if failed or slow or len(self._outcomes) == MIN_CALLS else None

    def _find_breach(self) -> Breach | None:
        calls = len(self._outcomes)
        if self._error_rate is not None and is_above(self._failed, calls, self._error_rate):
            share, bound = self._failed / calls, self._error_rate
            return Breach(
                "error_rate",
                f"version {self._number} failed {self._failed} of {calls} calls ({share:.1%}, the bound is "
                f"{bound:.4g}): {self._last_failure}",
            )
        if is_above(self._slow, calls, SLOW_SHARE):
            return Breach(
                "p99_ms",
                f"{self._slow} of {calls} calls of version {self._number} took longer than "
                f"{self._p99_s * 1000:g} ms ({self._slow / calls:.1%}, the bound is {SLOW_SHARE:.0%})",
            )
        return None


class Canaries:
    """The canaries of a process. Called by the event loop only, except `_withdraw`."""

    def __init__(self, sessions: db.Sessions, refresh: Callable[[], None], executor: Executor) -> None:
        self._sessions, self._refresh, self._executor = sessions, refresh, executor
        self._windows: dict[tuple[str, str, int], CanaryWindow] = {}

    def record(self, split: SnapshotTraffic, number: int, seconds: float, failure: str | None) -> None:
        """Count a call of a canary, and withdraw the canary if it passes a bound."""
        key = (split.model, split.alias, number)
        window = self._windows.get(key)
        if window is None or window.put_id < split.put_id:
            window = self._windows[key] = CanaryWindow(split, number)
        elif window.put_id > split.put_id:  # the call began before the newest request
            return
        breach = window.add(seconds, failure)
        if breach is not None and time.monotonic() >= window.withdraw_after:
            window.withdraw_after = math.inf
            self._executor.submit(self._withdraw, split, number, breach, window)

    def _withdraw(self, split: SnapshotTraffic, number: int, breach: Breach, window: CanaryWindow) -> None:
        """Blocks. Another process may be faster, or the alias may have moved: then nothing changes."""
        names = {"model": split.model, "alias": split.alias, "version": number}
        try:
            withdrawn = False
            with self._sessions.begin() as session:
                withdrawn = traffic.withdraw(
                    session, split.model, split.alias, number, put_id=split.put_id, reason=breach.reason
                )
        except NotFound:  # the alias or the model was deleted
            return
        except Exception as error:
            log.warning("canary.not_withdrawn", **names, error=str(error))
            window.withdraw_after = time.monotonic() + RETRY_S
            return
        if withdrawn:
            telemetry.WITHDRAWN_CANARIES.labels(split.model, split.alias, str(number), breach.bound).inc()
            log.warning("canary.withdrawn", **names, bound=breach.bound, reason=breach.reason)
        self._refresh()


def is_above(count: int, calls: int, share: float) -> bool:
    """Whether `count` of `calls` is more than `share`, and not by chance."""
    if calls < MIN_CALLS or count <= share * calls:
        return False
    return binomial_tail(count, calls, share) < CHANCE


def binomial_tail(count: int, calls: int, share: float) -> float:
    """Return the probability of `count` or more events in `calls` trials, for a `count` above the mean."""
    if share <= 0:
        return float(count == 0)
    log_term = (
        math.lgamma(calls + 1)
        - math.lgamma(count + 1)
        - math.lgamma(calls - count + 1)
        + count * math.log(share)
        + (calls - count) * math.log1p(-share)
    )
    term = total = math.exp(log_term)
    for k in range(count, calls):
        term *= (calls - k) / (k + 1) * share / (1 - share)
        total += term
    return total
