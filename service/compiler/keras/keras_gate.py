"""Checks of a .keras archive before Keras opens it: complete, bounded in size, and only Keras' own objects.

The configuration is read as plain JSON. Keras would import modules, call functions and unpack code that the
configuration names. This gate refuses, by name, every object other than Keras' own layers, models, operations
and settings, and also the layers that contain code or read files. Keras' safe mode is a second check.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from registry.errors import Refused
from service.compiler.keras.losses import Losses, read_losses

MAX_ENTRIES = 10_000
MAX_CONFIG = 32 << 20  # bytes; a network of 1,000 layers takes 1 MB
MiB = 1 << 20
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

_KERAS_PACKAGES = frozenset(
    (
        *("activations", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics"),
        *("models", "ops", "optimizers", "quantizers", "random", "regularizers"),
    )
)
_VALUE_KINDS = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
)
_FOREIGN_CODE_LAYERS = frozenset({"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"})


class KerasArchive(msgspec.Struct, frozen=True):
    """Facts from the archive's metadata and configuration."""

    keras_version: str
    losses: Losses


def check_archive(path: Path, memory_mb: int) -> KerasArchive:
    """Raises `Refused`, naming the fault, for an archive that Keras must not open.

    The unpacked size of all its files together is limited to half of `memory_mb`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, memory_mb // 2)
            config, metadata = _json(archive, CONFIG), _json(archive, METADATA)
            if (broken := archive.testzip()) is not None:
                raise Refused(f"the archive is damaged: the checksum of {broken} is wrong")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, RuntimeError) as error:
        raise Refused(f"the file is truncated, damaged, or not a .keras archive ({error})") from error
    version = str(metadata.get("keras_version", ""))
    if not version.startswith("3."):
        raise Refused(f"the model was saved by Keras {version or '(unknown version)'}; save it with Keras 3")
    compiled = config.pop("compile_config", None)  # not loaded, so custom losses and metrics are allowed
    _check_objects(config)
    return KerasArchive(version, read_losses(compiled))


def _check_entries(archive: zipfile.ZipFile, limit_mb: int) -> None:
    entries = archive.infolist()
    names = {e.filename for e in entries}
    if "saved_model.pb" in {PurePosixPath(n).name for n in names}:
        raise Refused("the archive holds a SavedModel; save the Keras model itself as .keras")
    for needed in (CONFIG, METADATA, WEIGHTS):
        if needed not in names:
            raise Refused(f"the archive lacks {needed}, so it is not a .keras model with weights")
    if len(entries) > MAX_ENTRIES or len(names) < len(entries):
        raise Refused(f"the archive holds {len(entries)} files: more than {MAX_ENTRIES}, or duplicate names")
    total = sum(e.file_size for e in entries)
    if total > limit_mb * MiB:
        raise Refused(
            f"the archive unpacks to {total // MiB} MB, more than {limit_mb} MB "
            "(half of TRIVIUM_BUILD_MEMORY_MB)"
        )
    for name in names:
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise Refused(f"the archive holds {name!r}, a path outside the archive")


def _json(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > MAX_CONFIG:
        raise Refused(f"the archive's {name} is larger than {MAX_CONFIG // MiB} MB")
    try:
        value = json.loads(archive.read(name))
    except (ValueError, RecursionError) as error:
        raise Refused(f"the archive's {name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"the archive's {name} is not a JSON object")
    return value


def _check_objects(config: dict[str, Any]) -> None:
    """Check every object of the configuration, at any depth."""
    pending: list[Any] = [config]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            if isinstance(value.get("class_name"), str) and "config" in value:
                _check_object(value)
            pending.extend(value.values())


def _check_object(value: dict[str, Any]) -> None:
    kind, config, registered = value["class_name"], value["config"], value.get("registered_name")
    layer = f" {config['name']!r}" if isinstance(config, dict) and isinstance(config.get("name"), str) else ""
    if kind in ("Lambda", "__lambda__"):
        raise Refused(
            f"the model has a Lambda layer{layer if kind == 'Lambda' else ''}, which runs Python code of the "
            "file; use Keras' own layers or keras.ops instead"
        )
    if kind in _FOREIGN_CODE_LAYERS:
        raise Refused(f"the model has a {kind} layer{layer}, which runs code from outside Keras")
    if kind in _VALUE_KINDS:
        return
    if kind == "function":
        kind = config if isinstance(config, str) else "a function without a name"
    module = value.get("module")
    if registered is None and "module" not in value:
        module = "keras.layers"  # older format of Keras' own layers
    if not _is_keras_own(kind, module, value["class_name"] == "function") or ">" in str(registered):
        name = f"{module}.{kind}" if module else str(registered or kind)
        raise Refused(f"the model uses {name}{layer}, a custom object: only Keras' own objects are loaded")
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        raise Refused(f"the layer {kind}{layer} reads its vocabulary from a file, {config['vocabulary']!r}")


def _is_keras_own(kind: str, module: Any, function: bool) -> bool:
    if not isinstance(module, str) or "." in kind or kind.startswith("_"):
        return False
    if function and module == "builtins":  # Keras looks the name up among its own functions
        return True
    parts = module.removeprefix("keras.src.").removeprefix("keras.").split(".")
    return module == "keras" or (module.startswith("keras.") and parts[0] in _KERAS_PACKAGES)
