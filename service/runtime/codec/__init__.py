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
from service.runtime.codec.columns import columns_of
from service.runtime.codec.json import JsonRows
from service.runtime.codec.tables import decode_csv

__all__ = ["MAX_INSTANCES", "Codec"]

MAX_INSTANCES = 10_000  # rows in one predict call


class Codec:
    """The decoders and encoders of one signature, compiled once when its version is loaded.

    Every `decode_*` answers 1 to `MAX_INSTANCES` rows and raises `Invalid`, never anything else,
    with `FieldError`s that name instance, field and fix. Safe to share between threads.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.columns = columns_of(signature)
        self._json = JsonRows(self.columns, MAX_INSTANCES)
        self._answers = Answers(signature)

    def decode_json(self, body: bytes) -> Rows:
        """`{"instances": [{feature: value, ...}, ...]}`; of a repeated key the last one counts."""
        return self._json.decode(body)

    def decode_csv(self, body: bytes) -> Rows:
        """A CSV table, a header and one line per row; see `tables` for its nulls."""
        return decode_csv(body, self.columns, MAX_INSTANCES)

    def decode_arrow(self, body: bytes) -> Rows:
        """An uncompressed Arrow IPC stream; narrower numbers and dictionary-encoded strings are taken."""
        # pyarrow costs a tenth of a second and 40 MB, which a server without Arrow callers never pays
        from service.runtime.codec.arrow import decode_arrow

        return decode_arrow(body, self.columns, MAX_INSTANCES)

    def encode_json(self, outputs: Outputs, name: str, version: int, prediction_id: str) -> bytes:
        """The whole answer: `{"predictions": [...], "model": {"name", "version"}, "id"}`."""
        return self._answers.json(outputs, name, version, prediction_id)

    def encode_csv(self, outputs: Outputs) -> bytes:
        """A CSV table of the flattened names (`label`, `probability.<class>`, ...)."""
        return self._answers.csv(outputs)

    def encode_arrow(self, outputs: Outputs) -> bytes:
        """The same table as an Arrow IPC stream of one batch."""
        from service.runtime.codec.arrow import encode_arrow

        return encode_arrow(self._answers.table(outputs))
