"""Selects the version of each call of an alias with traffic, and passes the answer to its observers.

The selection needs no database: the snapshot has the segments of `registry/traffic.py`. With a sticky header,
the hash of its value is the point that selects the segment, so the same value selects the same version in
every process and after a restart; the hash differs by model and alias. Calls without the header are random.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from registry.errors import DeadlineExceeded, Invalid, TooLarge, summarize_error
from registry.traffic import UNITS
from service.online.canary import Canaries
from service.online.shadow import RefusedCall, Shadows, SplitCall
from service.runtime.snapshot import SnapshotTraffic

if TYPE_CHECKING:  # see service/startup.py
    from registry.rows import Outputs

MIN_WAIT_S = 1.0
"""A deadline that the caller itself set counts as a failure of a canary after this time only."""


def select_version(traffic: SnapshotTraffic, headers: Mapping[bytes, bytes]) -> tuple[int, bool]:
    """Return the number of the version that answers a call, and whether it was selected at random.

    `headers` are named in lower case.
    """
    if len(traffic.numbers) == 1:
        return traffic.numbers[0], False
    if traffic.sticky_header is not None and (value := headers.get(traffic.sticky_header)):
        point = sticky_point(traffic.model, traffic.alias, value)
        return traffic.numbers[bisect_right(traffic.limits, point)], False
    point = int(random.random() * UNITS)  # noqa: S311 - no secret
    return traffic.numbers[bisect_right(traffic.limits, point)], True


def sticky_point(model: str, alias: str, value: bytes) -> int:
    """Return the point of a header's value, from 0 to `UNITS`."""
    state = _salted(model, alias).copy()
    state.update(value)
    return int.from_bytes(state.digest(), "big") % UNITS


@cache
def _salted(model: str, alias: str) -> blake2b:
    return blake2b(f"{model}@{alias}:".encode(), digest_size=8)


class SplitCalls:
    """Observes the calls of aliases with traffic: counts those of canaries, and offers them to shadows."""

    def __init__(self, canaries: Canaries, shadows: Shadows) -> None:
        self._canaries, self._shadows = canaries, shadows

    def answered(self, call: SplitCall, outputs: Outputs, rows: int) -> None:
        """Observe a call that its version answered."""
        traffic = call.traffic
        if _is_bounded_canary(call):
            self._canaries.record(traffic, call.number, call.seconds, None)
        if traffic.shadow is not None and traffic.shadow != call.number:
            self._shadows.offer(call, outputs, rows)

    def failed(self, call: SplitCall, error: BaseException, deadline: float | None) -> None:
        """Observe a call that ended with an error. `deadline`: what its caller set.

        An input that the canary refuses is passed on, to find out whether the alias's version accepts it.
        """
        if not _is_bounded_canary(call):
            return
        if isinstance(error, asyncio.CancelledError) and _has_passed(deadline):  # gRPC ends the call itself
            error = DeadlineExceeded("the deadline of the call passed")
        if isinstance(error, HTTPException | asyncio.CancelledError):  # the caller left
            if call.traffic.p99_ms is not None and call.seconds * 1000 > call.traffic.p99_ms:
                self._canaries.record(call.traffic, call.number, call.seconds, None)
            return
        record = partial(
            self._canaries.record, call.traffic, call.number, call.seconds, summarize_error(error)
        )
        if isinstance(error, Invalid | TooLarge):
            report = partial(asyncio.get_running_loop().call_soon_threadsafe, record)
            self._shadows.check(RefusedCall(call, report))
        elif not (deadline is not None and isinstance(error, DeadlineExceeded) and call.seconds < MIN_WAIT_S):
            record()


def _has_passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _is_bounded_canary(call: SplitCall) -> bool:
    traffic = call.traffic
    return call.number != traffic.own and (traffic.error_rate is not None or traffic.p99_ms is not None)
