"""A .onnx file in memory, answering rows. Imports numpy and onnxruntime only."""

from __future__ import annotations

from pathlib import Path

from registry.rows import Outputs, Rows
from registry.signature import Signature


class OnnxRuntime:
    """Thread-safe. `bytes` estimates what it holds in memory."""

    bytes: int

    def __init__(self, path: Path, signature: Signature) -> None:
        """Raises `Unavailable` when the file cannot be loaded or lacks one of the signature's outputs."""
        raise NotImplementedError

    def run(self, rows: Rows) -> Outputs:
        """Raises `Invalid` when the graph refuses these rows."""
        raise NotImplementedError
