"""Which file a device gets: alias, share of the rollout, quantization, the device's own runtime.

Everything is read from the snapshot. A device is named by itself; the hash of that name decides on which
side of a rollout it stands, the same on every replica. Raising the share only adds devices.
"""

from __future__ import annotations

import hashlib
import re

from registry.errors import Conflict, NotFound
from service.runtime.snapshot import Export, Model, State

_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def place(device: str, model: str, alias: str) -> int:
    """Where the device stands in the rollouts of this alias, 0 to 99: it is in when that is below the share.

    Other aliases and models put it elsewhere, so that it is not always the same devices that go first.
    """
    digest = hashlib.sha256("\n".join((device, model, alias)).encode()).digest()
    return int.from_bytes(digest) % 100


def version_for(model: Model, alias: str, device: str | None) -> int:
    """The version that the device gets. One that does not say who it is waits for the end of the rollout.

    Raises `NotFound`.
    """
    number = model.aliases.get(alias)
    if number is None:
        raise NotFound("alias", f"{model.name}@{alias}")
    rollout = model.rollouts.get(alias)
    if rollout is None or rollout.percent >= 100:
        return number
    if device and place(device, model.name, alias) < rollout.percent:
        return number
    if rollout.previous is None:
        raise NotFound(
            "version for this device",
            f"{model.name}@{alias}",
            f"version {number} is for {rollout.percent} % of the devices, and there is none before it",
        )
    return rollout.previous


def export_for(
    state: State, name: str, alias: str, quantize: str, device: str | None, runtime: str | None
) -> Export:
    """The newest ready export that fits. A version is not skipped because it has none: what a device runs
    is decided by the alias, not by which file was made.

    Raises `NotFound`, and `Conflict` when there are exports and all need a newer runtime.
    """
    model = state.models.get(name)
    if model is None:
        raise NotFound("model", name)
    number = version_for(model, alias, device)
    found = [e for e in model.exports.get(number, ()) if e.quantize == quantize]
    if not found:
        hint = f"version {number} has none; POST /v1/models/{name}/versions/{number}/exports"
        raise NotFound(f"export of {name}@{alias} with quantize", quantize, hint)
    if runtime is None:
        return found[0]
    running = next((e for e in found if numbers(e.min_runtime) <= numbers(runtime)), None)
    if running is None:
        lowest = min((e.min_runtime for e in found), key=numbers)
        raise Conflict(
            f"{name}:{number} with quantize {quantize!r} needs LiteRT {lowest} or newer; "
            f"this device has {runtime}"
        )
    return running


def numbers(version: str | None) -> tuple[int, ...]:
    """The version as numbers, to be compared: 2.10 is above 2.9, 2.1 is 2.1.0, None is below all.

    What follows the numbers (`rc1`, `.dev3`) is not looked at: a runtime's nightly build has that release's
    operators.
    """
    match = _NUMBERS.match((version or "").removeprefix("v"))
    found = [int(n) for n in match.group().split(".")] if match else []
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def holders(state: State, sha256: str) -> dict[str, Export]:
    """The models that have a ready export with these bytes, and the newest such export of each."""
    return _index(state).get(sha256, {})


_last: tuple[State, dict[str, dict[str, Export]]] | None = None


def _index(state: State) -> dict[str, dict[str, Export]]:
    """Every ready export by its bytes, made once per state of the registry."""
    global _last
    if _last is None or _last[0] is not state:
        index: dict[str, dict[str, Export]] = {}
        for model in state.models.values():
            for exports in model.exports.values():
                for export in exports:
                    index.setdefault(export.sha256, {}).setdefault(model.name, export)
        _last = (state, index)
    return _last[1]
