"""Between the wire and numpy: JSON, CSV and Arrow bodies to rows, outputs to answers.

columns   one feature's rule: what it takes, and the array it becomes
json      {"instances": [...]} -> Rows
tables    CSV -> Rows                  arrow   Arrow stream <-> Rows, Outputs (the only pyarrow)
answers   Outputs -> JSON, CSV
"""

from __future__ import annotations

from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.runtime.codec.answers import Answers
from service.runtime.codec.columns import Column
from service.runtime.codec.json import JsonRows

__all__ = ["MAX_INSTANCES", "Codec"]

MAX_INSTANCES = 10_000  # rows in one predict call


class Codec:
    """The decoders and encoders of one signature, compiled once when its version is loaded.

    Every `decode_*` answers 1 to `MAX_INSTANCES` rows and raises `Invalid`, never anything else,
    with `FieldError`s that name instance, field and fix. Safe to share between threads.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.columns = tuple(Column(i) for i in signature.inputs)
        self._json = JsonRows(self.columns, MAX_INSTANCES)
        self._answers = Answers(signature)

    def decode_json(self, body: bytes) -> Rows:
        """`{"instances": [{feature: value, ...}, ...]}`."""
        return self._json.decode(body)

    def encode_json(self, outputs: Outputs, name: str, version: int, prediction_id: str) -> bytes:
        """The whole answer: `{"predictions": [...], "model": {"name", "version"}, "id"}`."""
        return self._answers.json(outputs, name, version, prediction_id)

    def encode_csv(self, outputs: Outputs) -> bytes:
        """A CSV table of the flattened names (`label`, `probability.<class>`, ...)."""
        return self._answers.csv(outputs)
