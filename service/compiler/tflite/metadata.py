"""The metadata entry `trivium` of a .tflite file: the facts that a device needs, as JSON.

`{"task", "features": [name, ...], "outputs": [{"name", "shape", "classes"?}, ...], "model", "version"?,
"bounds"?: {feature: [lowest, highest]}}`. The bounds are those of features that are whole numbers.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from registry.errors import Invalid

ENTRY = "trivium"
MAX_FEATURES = 20_000
"""Limit of the numbers per row of a Keras model or a published .tflite file.

Each number has a name in the metadata, and a column: an image of 128 x 128 has 16,384 features.
"""


def read_entries(tflite: bytes) -> dict[str, bytes]:
    """All metadata entries of a .tflite file. Raises `Invalid` for another kind of file."""
    try:
        model = schema.Model.GetRootAs(tflite)
        if not schema.Model.ModelBufferHasIdentifier(tflite, 0):
            raise ValueError("no identifier")
        entries = [model.Metadata(i) for i in range(model.MetadataLength())]
        return {e.Name().decode(): bytes(model.Buffers(e.Buffer()).DataAsNumpy()) for e in entries}
    except (ValueError, struct.error, IndexError, AttributeError, UnicodeDecodeError, TypeError) as error:
        raise Invalid("the bytes are not a .tflite file") from error


def read_metadata(tflite: bytes) -> dict[str, Any]:
    """The entry `trivium`. Raises `Invalid` when it is missing or damaged."""
    entry = read_entries(tflite).get(ENTRY)
    if entry is None:
        raise Invalid(f"the .tflite file lacks the metadata entry {ENTRY!r}")
    try:
        described = json.loads(entry)
    except ValueError as error:
        raise Invalid(f"the metadata entry {ENTRY!r} is not valid JSON") from error
    if not isinstance(described, dict):
        raise Invalid(f"the metadata entry {ENTRY!r} is not a JSON object")
    return described
