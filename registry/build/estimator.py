"""A fitted estimator behind the serving interface: the answer every other runtime is measured against."""

from __future__ import annotations

from typing import Any

from registry.rows import Outputs, Rows
from registry.signature import Signature


class Estimator:
    """`model` answering rows as its `signature` says. The reference of parity, and the isolated runtime."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self.model = model
        self.signature = signature

    def run(self, rows: Rows) -> Outputs:
        """The estimator's own answer. Raises whatever it raises (mostly ValueError) for rows it refuses."""
        raise NotImplementedError
