"""Selects the file that a device gets: by alias, rollout, quantization and the device's LiteRT version.

All functions read the snapshot. A device chooses its own id; the hash of the id decides whether the device
is in a rollout, with the same result on every replica. Raising the percentage only adds devices.
"""

from __future__ import annotations

import hashlib
import re

from registry.errors import Conflict, NotFound
from service.runtime.snapshot import SnapshotExport, SnapshotModel, SnapshotState

_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def rollout_position(device: str, model: str, alias: str) -> int:
    """Return the device's position, 0 to 99: it is in a rollout when the position is below the percentage.

    The model and the alias enter the hash, so that the first devices differ between rollouts.
    """
    digest = hashlib.sha256("\n".join((device, model, alias)).encode()).digest()
    return int.from_bytes(digest) % 100


def version_for(model: SnapshotModel, alias: str, device: str | None) -> int:
    """Return the version number for the device. A device without an id is in no rollout below 100 %.

    Raises `NotFound`.
    """
    number = model.aliases.get(alias)
    if number is None:
        raise NotFound("alias", f"{model.name}@{alias}")
    rollout = model.rollouts.get(alias)
    if rollout is None or rollout.percent >= 100:
        return number
    if device and rollout_position(device, model.name, alias) < rollout.percent:
        return number
    if rollout.previous is None:
        raise NotFound(
            "version for this device",
            f"{model.name}@{alias}",
            f"version {number} is rolled out to {rollout.percent} % of the devices, and no earlier version "
            "was rolled out",
        )
    return rollout.previous


def select_export(
    state: SnapshotState, name: str, alias: str, quantize: str, device: str | None, runtime: str | None
) -> SnapshotExport:
    """Return the newest ready export that runs on the device.

    A version without a matching export is not skipped: the alias alone decides which version devices run.
    `runtime` is the device's LiteRT version; None accepts any export. Raises `NotFound`, and `Conflict` when
    every matching export requires a newer runtime.
    """
    model = state.models.get(name)
    if model is None:
        raise NotFound("model", name)
    number = version_for(model, alias, device)
    exports = [e for e in model.exports.get(number, ()) if e.quantize == quantize]
    if not exports:
        hint = f"version {number} has none; POST /v1/models/{name}/versions/{number}/exports"
        raise NotFound(f"export of {name}@{alias} with quantize", quantize, hint)
    if runtime is None:
        return exports[0]
    runnable = next((e for e in exports if parse_version(e.min_runtime) <= parse_version(runtime)), None)
    if runnable is None:
        oldest = min((e.min_runtime for e in exports), key=parse_version)
        raise Conflict(
            f"{name}:{number} with quantize {quantize!r} requires LiteRT {oldest} or newer; "
            f"this device has {runtime}"
        )
    return runnable


def parse_version(version: str | None) -> tuple[int, ...]:
    """Convert a version to numbers for comparison: 2.10 > 2.9, 2.1 == 2.1.0, and None is below all.

    Suffixes (`rc1`, `.dev3`) are ignored: a nightly build of a runtime has the operators of its release.
    """
    match = _NUMBERS.match((version or "").removeprefix("v"))
    numbers = [int(n) for n in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def exports_with_digest(state: SnapshotState, sha256: str) -> dict[str, SnapshotExport]:
    """Return the newest ready export with these bytes of each model that has one, by model name."""
    return _exports_by_digest(state).get(sha256, {})


_last_index: tuple[SnapshotState, dict[str, dict[str, SnapshotExport]]] | None = None


def _exports_by_digest(state: SnapshotState) -> dict[str, dict[str, SnapshotExport]]:
    """Index all ready exports by digest and model name; the index of the last state is cached."""
    global _last_index
    if _last_index is None or _last_index[0] is not state:
        index: dict[str, dict[str, SnapshotExport]] = {}
        for model in state.models.values():
            for exports in model.exports.values():
                for export in exports:
                    index.setdefault(export.sha256, {}).setdefault(model.name, export)
        _last_index = (state, index)
    return _last_index[1]
