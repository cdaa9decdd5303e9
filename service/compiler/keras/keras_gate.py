"""What a .keras archive must be before Keras may open it: whole, bounded, and of Keras' own parts only.

The configuration inside is read as plain JSON. Keras would import modules, call functions and unpack code
that it names; here everything that is not one of Keras' own layers, models, operations or settings is
refused by name, and so are the layers that bring code or read files. Keras' safe mode comes on top.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from registry.errors import Refused

MAX_ENTRIES = 10_000
MAX_CONFIG = 32 << 20  # bytes; a network of 1,000 layers takes 1 MB
MiB = 1 << 20
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

_ROOMS = frozenset(
    (
        *("activations", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics"),
        *("models", "ops", "optimizers", "quantizers", "random", "regularizers"),
    )
)
_VALUES = frozenset({"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"})
_FOREIGN = frozenset({"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"})
_HDF5, _SAVE_AGAIN = b"\x89HDF", 'keras.models.load_model("old.h5").save("new.keras")'


class Archive(msgspec.Struct, frozen=True):
    """What the archive says of itself."""

    keras_version: str
    logits: bool  # it was trained with a crossentropy `from_logits`: its outputs are classes' logits


def check(path: Path, memory_mb: int) -> Archive:
    """Raises `Refused`, naming what is wrong, unless all of it may be given to Keras.

    All its files together may unpack to half of `memory_mb`.
    """
    with path.open("rb") as file:
        if file.read(4) == _HDF5:
            raise Refused(f"the file is a legacy HDF5 model; save it again as .keras: {_SAVE_AGAIN}")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, memory_mb // 2)
            config, metadata = _json(archive, CONFIG), _json(archive, METADATA)
            if (broken := archive.testzip()) is not None:
                raise Refused(f"the archive is damaged: {broken} has not the checksum that it was saved with")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise Refused(f"the file is cut short, damaged, or no .keras archive ({error})") from error
    version = str(metadata.get("keras_version", ""))
    if not version.startswith("3."):
        raise Refused(
            f"the model was saved by Keras {version or 'of an unknown version'}; save it with Keras 3"
        )
    compiled = config.pop("compile_config", None)  # is not loaded: its losses and metrics may be anything
    _check_objects(config)
    return Archive(version, _from_logits(compiled))


def _check_entries(archive: zipfile.ZipFile, most_mb: int) -> None:
    entries = archive.infolist()
    names = {e.filename for e in entries}
    if "saved_model.pb" in {PurePosixPath(n).name for n in names}:
        raise Refused("the archive holds a SavedModel; save the Keras model itself as .keras")
    for needed in (CONFIG, METADATA, WEIGHTS):
        if needed not in names:
            raise Refused(f"the archive has no {needed}, so it is no .keras model with its weights")
    if len(entries) > MAX_ENTRIES or len(names) < len(entries):
        raise Refused(f"the archive holds {len(entries)} files: too many, or some twice")
    total = sum(e.file_size for e in entries)
    if total > most_mb * MiB:
        raise Refused(
            f"the archive unpacks to {total // MiB} MB, more than {most_mb} MB "
            "(half of TRIVIUM_BUILD_MEMORY_MB)"
        )
    for name in names:
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise Refused(f"the archive holds {name!r}, a path that leads out of it")


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > MAX_CONFIG:
        raise Refused(f"the archive's {name} is larger than {MAX_CONFIG // MiB} MB")
    try:
        value = json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise Refused(f"the archive's {name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"the archive's {name} is no JSON object")
    return value


def _check_objects(config: dict[str, Any]) -> None:
    """Every object that the configuration names, at any depth."""
    waiting: list[Any] = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            if isinstance(value.get("class_name"), str) and "config" in value:
                _check_object(value)
            waiting.extend(value.values())


def _check_object(value: dict[str, Any]) -> None:
    kind, config, registered = value["class_name"], value["config"], value.get("registered_name")
    layer = f" {config['name']!r}" if isinstance(config, dict) and isinstance(config.get("name"), str) else ""
    if kind in ("Lambda", "__lambda__"):
        raise Refused(
            f"the model has a Lambda layer{layer if kind == 'Lambda' else ''}: Python code that would have "
            "to run here; say the same with Keras' own layers or keras.ops"
        )
    if kind in _FOREIGN:
        raise Refused(f"the model has a {kind} layer{layer}, which runs code from outside Keras")
    if kind in _VALUES:
        return
    if kind == "function":
        kind = config if isinstance(config, str) else "a function without a name"
    module = value.get("module")
    if registered is None and "module" not in value:
        module = "keras.layers"  # an older way to write Keras' own
    if not _of_keras(kind, module, value["class_name"] == "function") or ">" in str(registered):
        name = f"{module}.{kind}" if module else str(registered or kind)
        raise Refused(f"the model uses {name}{layer}, a custom object: only Keras' own are loaded")
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        raise Refused(f"the layer {kind}{layer} reads its vocabulary from a file, {config['vocabulary']!r}")


def _of_keras(kind: str, module: Any, function: bool) -> bool:
    if not isinstance(module, str) or "." in kind or kind.startswith("_"):
        return False
    if function and module == "builtins":  # a function that Keras finds among its own by name
        return True
    parts = module.removeprefix("keras.src.").removeprefix("keras.").split(".")
    return module == "keras" or (module.startswith("keras.") and parts[0] in _ROOMS)


def _from_logits(compiled: Any) -> bool:
    loss = compiled.get("loss") if isinstance(compiled, dict) else None
    if not isinstance(loss, dict) or not str(loss.get("class_name")).endswith("Crossentropy"):
        return False
    config = loss.get("config")
    return isinstance(config, dict) and config.get("from_logits") is True
