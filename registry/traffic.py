"""Traffic of an alias: its calls split over versions by weight (canaries), and a shadow that answers too.

Without traffic, the alias's version answers every call. With it, each call goes to one of several versions
with the probability of its weight; a version other than the alias's own is a canary. The calls of an alias
are points between 0 and `UNITS`, at random or from the hash of a header, and `segments` maps these points to
versions. A change of weights reassigns as few points as possible, so that few callers change their version.

`withdraw` returns the weight of a canary to the alias's version. A move of the alias ends its traffic
(`registry/aliases.py`). None of these functions commits.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import aliases, models, revision
from registry.errors import NotFound, NotReady, invalid_field
from registry.tables import (
    AliasEventRow,
    AliasRow,
    AliasTrafficRow,
    ModelRow,
    ShadowResultRow,
    VersionRow,
    now,
)
from registry.vocabulary import READY

UNITS = 1_000_000
"""Parts of the calls that weights are counted in: 0.0001 %."""
UNITS_PER_PERCENT = UNITS // 100
AUTHOR = "trivium"
"""The author of changes that the server makes by itself."""

Segments = list[list[int]]
"""`[limit, version]` by ascending limit. A version answers from the limit before its own to its own."""


class NewTraffic(msgspec.Struct, frozen=True):
    """A request. Without `weights`, the alias's version answers every call. `shadow`: a version or alias."""

    weights: dict[int, float] | None = None  # percent by version number
    sticky_header: str | None = None
    error_rate: float | None = None  # the bounds of canaries: a share, and milliseconds
    p99_ms: float | None = None
    shadow: int | str | None = None


class AliasTraffic(NamedTuple):
    """An alias, and its traffic if there is any."""

    alias: AliasRow
    row: AliasTrafficRow | None


class LatencyHistogram(msgspec.Struct):
    """Numbers of calls by latency: `counts[i]` between the limits `i - 1` and `i` of `LATENCY_LIMITS_S`."""

    counts: list[int]
    seconds: float = 0.0  # the sum


LATENCY_LIMITS_S = tuple(1e-5 * 10 ** (i / 10) for i in range(71))
"""From 10 us to 100 s in steps of 26 %, which is the resolution of the percentiles."""


class ShadowResult(msgspec.Struct):
    """The comparison of a shadow version's answers with those of `version`, since the last `add_result`."""

    version: int
    shadow_version: int
    rows: int = 0  # compared
    agreed: int = 0
    difference_sum: float = 0.0
    largest_difference: float = 0.0
    failed: int = 0  # rows that the shadow could not answer
    shed: int = 0  # rows that were dropped under load
    last_error: str | None = None
    latency: LatencyHistogram = msgspec.field(default_factory=lambda: empty_histogram())
    shadow_latency: LatencyHistogram = msgspec.field(default_factory=lambda: empty_histogram())


def empty_histogram() -> LatencyHistogram:
    return LatencyHistogram([0] * (len(LATENCY_LIMITS_S) + 1))


def get(session: Session, model: str, alias: str) -> AliasTraffic:
    """Raises `NotFound` if there is no such alias."""
    row = aliases.get(session, model, alias)
    return AliasTraffic(row, session.get(AliasTrafficRow, (row.model_id, alias), populate_existing=True))


def put(
    session: Session, model: str, alias: str, new: NewTraffic, *, by: str, reason: str | None = None
) -> AliasTraffic:
    """Replace the traffic of an alias.

    Raises `NotFound` (model, alias), `Invalid` naming the field, and `NotReady` for a version that is not.
    """
    owner = models.lock(session, model)
    alias_row, row = get(session, model, alias)
    own = alias_row.version.number
    units = _check_weights(session, owner, own, new)
    if new.shadow is not None:
        _check_shadow(session, owner, alias_row, units, new.shadow)
    segments = row.segments if row is not None else [[UNITS, own]]
    if row is None:
        row = AliasTrafficRow(model_id=owner.id, alias=alias)
    shadow = (new.shadow, None) if isinstance(new.shadow, int) else (None, new.shadow)
    is_same_shadow = row.shadow_id is not None and shadow == (row.shadow_version, row.shadow_alias)
    row.weights = _percentages(units)
    row.segments = _reassign(segments, units, own)
    row.sticky_header = new.sticky_header
    row.error_rate, row.p99_ms = new.error_rate, new.p99_ms
    row.shadow_version, row.shadow_alias = shadow
    event = _record(session, owner, alias_row, row, by, reason)
    row.put_id = event.id
    if not is_same_shadow:  # its results are counted from here on
        row.shadow_id = None if new.shadow is None else event.id
    session.add(row)
    session.flush()
    return AliasTraffic(alias_row, row)


def end(session: Session, model: str, alias: str, *, by: str, reason: str | None = None) -> None:
    """End the traffic: the alias's version answers every call. Raises `NotFound` if there is none."""
    owner = models.lock(session, model)
    alias_row = aliases.get(session, model, alias)
    if not aliases.end_traffic(session, alias_row):
        raise NotFound(
            "traffic", f"{model}@{alias}", f"version {alias_row.version.number} answers every call"
        )
    aliases.record_event(session, owner.id, alias, alias_row.version.number, "traffic", by, reason, None)
    revision.record_change(session, "model", model)


def withdraw(session: Session, model: str, alias: str, number: int, *, put_id: int, reason: str) -> bool:
    """Return the weight of a canary to the alias's version. Return whether this call did it.

    `put_id` is the fence: after another request or a move, or if another process was faster, nothing changes.
    """
    owner = models.lock(session, model)
    alias_row, row = get(session, model, alias)
    own = alias_row.version.number
    if row is None or row.put_id != put_id or number == own or not row.weights.get(str(number)):
        return False
    units = _units(row.weights)
    units[own] = units.get(own, 0) + units[number]
    units[number] = 0
    row.weights, row.segments = _percentages(units), _reassign(row.segments, units, own)
    _record(session, owner, alias_row, row, AUTHOR, reason)
    session.flush()
    return True


def describe_use(session: Session, row: AliasRow, number: int) -> str | None:
    """Return what a version does in the traffic of an alias, or None."""
    traffic = session.get(AliasTrafficRow, (row.model_id, row.name), populate_existing=True)
    if traffic is None:
        return None
    if percent := traffic.weights.get(str(number)):
        return f"answers {percent:g} % of the calls of {row.name}"
    return f"is the shadow of {row.name}" if traffic.shadow_version == number else None


def add_result(session: Session, shadow_id: int, result: ShadowResult) -> None:
    """Add the figures of one process to the stored ones. Does nothing if the model was deleted."""
    model = session.scalar(
        select(ModelRow.name)
        .join(AliasEventRow, AliasEventRow.model_id == ModelRow.id)
        .where(AliasEventRow.id == shadow_id)
    )
    if model is None:
        return
    with suppress(NotFound):
        models.lock(session, model)  # several processes add their figures at the same time
        _add_result(session, shadow_id, result)


def results(session: Session, model: str, alias: str) -> list[ShadowResultRow]:
    """Return the results of the alias's shadow, or of its last one, by the versions compared.

    Raises `NotFound`.
    """
    alias_row, row = get(session, model, alias)
    shadow_id = None if row is None else row.shadow_id
    if shadow_id is None:
        shadow_id = session.scalar(
            select(func.max(ShadowResultRow.shadow_id))
            .join(AliasEventRow, AliasEventRow.id == ShadowResultRow.shadow_id)
            .where(AliasEventRow.model_id == alias_row.model_id, AliasEventRow.alias == alias)
        )
    query = select(ShadowResultRow).where(ShadowResultRow.shadow_id == shadow_id)
    return list(session.scalars(query.order_by(ShadowResultRow.version, ShadowResultRow.shadow_version)))


def add_latency(histogram: LatencyHistogram, seconds: float) -> None:
    """Count a call."""
    histogram.counts[bisect_left(LATENCY_LIMITS_S, seconds)] += 1
    histogram.seconds += seconds


def percentile(histogram: LatencyHistogram, share: float) -> float | None:
    """Return the seconds that `share` of the calls did not exceed, or None without calls.

    It is the upper limit of the calls' bin: at most 26 % too high. Longer calls count as the last limit.
    """
    rank, count = share * sum(histogram.counts), 0
    for limit, calls in zip((*LATENCY_LIMITS_S, LATENCY_LIMITS_S[-1]), histogram.counts, strict=True):
        count += calls
        if count and count >= rank:
            return limit
    return None


def _check_weights(session: Session, owner: ModelRow, own: int, new: NewTraffic) -> dict[int, int]:
    """Return the weights in `UNITS`. Raises `Invalid`, `NotReady`."""
    weights = new.weights if new.weights is not None else {own: 100.0}
    if new.weights is None and new.shadow is None:
        _refuse("weights", "neither weights nor a shadow", "percent by version number, or a shadow")
    for number, percent in weights.items():
        exact = percent * UNITS_PER_PERCENT
        if not (0 <= percent <= 100) or abs(exact - round(exact)) > 1e-6:
            _refuse(f"weights.{number}", f"{percent:.10g} is not a weight", "0 to 100 with up to 4 decimals")
    units = _units(weights)
    if (total := sum(units.values())) != UNITS:
        percent = total / UNITS_PER_PERCENT
        _refuse("weights", f"the weights add up to {percent:g}", "a sum of 100")
    for number in units:
        _require_ready(session, owner, number, f"weights.{number}")
    if set(units) == {own}:
        has_bounds = new.error_rate is not None or new.p99_ms is not None
        for field, is_set in (("sticky_header", new.sticky_header is not None), ("bounds", has_bounds)):
            if is_set:
                message = f"version {own} answers every call, so {field} has no effect"
                _refuse(field, message, "weights of other versions")
    return units


def _check_shadow(
    session: Session, owner: ModelRow, alias: AliasRow, units: dict[int, int], shadow: int | str
) -> None:
    if isinstance(shadow, int):
        number = shadow
        _require_ready(session, owner, number, "shadow")
    else:
        row = session.get(AliasRow, (owner.id, shadow))
        if row is None:
            names = sorted(session.scalars(select(AliasRow.name).where(AliasRow.model_id == owner.id)))
            _refuse(
                "shadow", f"{owner.name} has no alias {shadow!r}", f"a version number, {', '.join(names)}"
            )
        number = row.version.number
    if shadow == alias.name or [n for n in units if units[n]] == [number]:
        message = f"version {number} answers every call of {alias.name}, so it cannot be its shadow"
        _refuse("shadow", message, "another version or alias")


def _require_ready(session: Session, owner: ModelRow, number: int, field: str) -> None:
    query = select(VersionRow.state).where(VersionRow.model_id == owner.id, VersionRow.number == number)
    state = session.scalar(query)
    if state is None:
        _refuse(field, f"there is no version {number} of {owner.name}", "a ready version's number")
    if state != READY:
        raise NotReady(f"{field}: {owner.name}:{number} is {state}; only a ready version can answer calls")


def _refuse(field: str, message: str, expected: str) -> NoReturn:
    raise invalid_field(field, message, expected, detail=f"{field}: {message}; expected: {expected}")


def _units(weights: dict[int, float] | dict[str, Any]) -> dict[int, int]:
    return {int(number): round(percent * UNITS_PER_PERCENT) for number, percent in weights.items()}


def _percentages(units: dict[int, int]) -> dict[str, float]:
    return {str(number): units[number] / UNITS_PER_PERCENT for number in sorted(units)}


def _reassign(segments: Segments, units: dict[int, int], own: int) -> Segments:
    """Return segments with the lengths of `units`, in which as few points as possible change their version.

    The alias's version gives its last points and canaries their first ones: a canary that grows and shrinks
    again stays one segment, with the callers that it had before.
    """
    kept, freed = _shrink(segments, units, own)
    missing = dict(units)
    for start, limit, number in kept:
        missing[number] -= limit - start
    for start, limit in sorted(freed):
        while start < limit:
            number = min(n for n in missing if missing[n])
            length = min(missing[number], limit - start)
            kept.append((start, start + length, number))
            missing[number] -= length
            start += length
    merged: Segments = []
    for start, limit, number in sorted(kept):
        if merged and merged[-1][1] == number:
            merged[-1][0] = limit
        elif start < limit:
            merged.append([limit, number])
    return merged


def _shrink(
    segments: Segments, units: dict[int, int], own: int
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Return what each version keeps, `(start, limit, version)`, and what becomes free, `(start, limit)`."""
    limits, numbers = [0, *(limit for limit, _ in segments)], [number for _, number in segments]
    pieces = list(zip(limits, limits[1:], numbers, strict=False))
    excess = {number: -units.get(number, 0) for number in numbers}
    for start, limit, number in pieces:
        excess[number] += limit - start
    kept, freed = [], []
    for start, limit, number in [p for p in reversed(pieces) if p[2] == own] + [
        p for p in pieces if p[2] != own
    ]:
        length = min(max(excess[number], 0), limit - start)
        excess[number] -= length
        if number == own:
            kept.append((start, limit - length, number))
            freed.append((limit - length, limit))
        else:
            freed.append((start, start + length))
            kept.append((start + length, limit, number))
    return [piece for piece in kept if piece[0] < piece[1]], freed


def _record(
    session: Session, owner: ModelRow, alias: AliasRow, row: AliasTrafficRow, by: str, reason: str | None
) -> AliasEventRow:
    """Add the event of a change, and make it the newest one of the traffic."""
    number = alias.version.number
    event = aliases.record_event(
        session, owner.id, alias.name, number, "traffic", by, reason, None, describe(row)
    )
    row.event_id = event.id
    row.event = event
    revision.record_change(session, "model", owner.name)
    return event


def describe(row: AliasTrafficRow) -> dict[str, Any]:
    """Return the traffic as its record and the history show it."""
    has_bounds = row.error_rate is not None or row.p99_ms is not None
    return {
        "weights": row.weights,
        "sticky_header": row.sticky_header,
        "bounds": {"error_rate": row.error_rate, "p99_ms": row.p99_ms} if has_bounds else None,
        "shadow": row.shadow_version or row.shadow_alias,
    }


def _add_result(session: Session, shadow_id: int, result: ShadowResult) -> None:
    key = (shadow_id, result.version, result.shadow_version)
    row = session.get(ShadowResultRow, key, populate_existing=True)
    stored = ShadowResult(result.version, result.shadow_version) if row is None else result_of(row)
    if row is None:
        row = ShadowResultRow(shadow_id=shadow_id, version=key[1], shadow_version=key[2])
        session.add(row)
    row.rows, row.agreed = stored.rows + result.rows, stored.agreed + result.agreed
    row.difference_sum = stored.difference_sum + result.difference_sum
    row.largest_difference = max(stored.largest_difference, result.largest_difference)
    row.failed, row.shed = stored.failed + result.failed, stored.shed + result.shed
    row.last_error = result.last_error or stored.last_error
    row.latency = {
        "version": _sum(stored.latency, result.latency),
        "shadow": _sum(stored.shadow_latency, result.shadow_latency),
    }
    row.updated_at = now()
    session.flush()


def result_of(row: ShadowResultRow) -> ShadowResult:
    return ShadowResult(
        row.version,
        row.shadow_version,
        row.rows,
        row.agreed,
        row.difference_sum,
        row.largest_difference,
        row.failed,
        row.shed,
        row.last_error,
        LatencyHistogram(**row.latency["version"]),
        LatencyHistogram(**row.latency["shadow"]),
    )


def _sum(first: LatencyHistogram, second: LatencyHistogram) -> dict[str, Any]:
    counts = [a + b for a, b in zip(first.counts, second.counts, strict=True)]
    return {"counts": counts, "seconds": first.seconds + second.seconds}
