"""Codec between predict bodies and numpy: JSON, CSV and Arrow bodies to rows, outputs to answers.

columns            the rule of one feature: the values it accepts, and the array they become
json               JSON body -> Rows
csv                CSV body -> Rows; csv_bulk does the same for large bodies
arrow_types        the table of column types
arrow              Arrow stream -> Rows, table of outputs -> Arrow stream
answer_encoder     Outputs -> JSON, CSV, table
tensors            tensors of the Open Inference Protocol -> Rows, Outputs -> tensors
inference          its bodies over REST, JSON and binary
inference_protobuf its messages over gRPC, whose types are in inference_messages
inference_request  the parameters and binary values of both
scoring            bodies of MLflow's scoring server
strict_json        the JSON of those two
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from registry.rows import Outputs, Rows
from registry.signature import Signature
from service.runtime.codec.answer_encoder import AnswerEncoder
from service.runtime.codec.columns import columns_of
from service.runtime.codec.csv import decode_csv
from service.runtime.codec.inference import InferenceAnswer, InferenceCodec
from service.runtime.codec.inference_request import AnswerForm
from service.runtime.codec.json import JsonRows
from service.runtime.codec.scoring import ScoringCodec

if TYPE_CHECKING:
    from service.runtime.codec.inference_protobuf import MessageCodec

__all__ = ["MAX_INSTANCES", "Codec"]

MAX_INSTANCES = 10_000
"""Rows in one predict call."""


class Codec:
    """The decoders and encoders of one signature, compiled once when its version is loaded.

    Each `decode_*` returns 1 to `MAX_INSTANCES` rows or raises `Invalid`, with `FieldError`s that name
    instance, field and fix, and no other error. Thread-safe.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.columns = columns_of(signature)
        self.row_bytes = 8 * (
            len(self.columns) + sum(math.prod(map(abs, o.shape)) for o in signature.outputs)
        )
        """Memory of the numbers of one row and of its outputs."""
        self._json = JsonRows(self.columns, MAX_INSTANCES)
        self._answers = AnswerEncoder(signature)
        self._inference = InferenceCodec(signature, self.columns, MAX_INSTANCES)
        self._scoring = ScoringCodec(signature, self.columns, MAX_INSTANCES)

    def decode_json(self, body: bytes) -> Rows:
        """Decode `{"instances": [{feature: value, ...}, ...]}`. Repeated keys are rejected."""
        return self._json.decode(body)

    def decode_csv(self, body: bytes) -> Rows:
        """Decode a CSV table: a header and one line per row. `csv` defines which cells are null."""
        return decode_csv(body, self.columns, MAX_INSTANCES)

    def decode_arrow(self, body: bytes) -> Rows:
        """Decode an uncompressed Arrow IPC stream, with narrower numbers and dictionary-encoded strings."""
        from service.runtime.codec.arrow import decode_arrow  # pyarrow: see service/startup.py

        return decode_arrow(body, self.columns, MAX_INSTANCES)

    def encode_json(self, outputs: Outputs, name: str, version: int, prediction_id: str) -> bytes:
        """Encode the answer: `{"predictions": [...], "model": {"name", "version"}, "id"}`."""
        return self._answers.json(outputs, name, version, prediction_id)

    def encode_csv(self, outputs: Outputs) -> bytes:
        """Encode a CSV table with the flattened names (`label`, `probability.<class>`, ...)."""
        return self._answers.csv(outputs)

    def encode_arrow(self, outputs: Outputs) -> bytes:
        """Encode the same table as an Arrow IPC stream of one batch."""
        from service.runtime.codec.arrow import encode_arrow  # pyarrow: see service/startup.py

        return encode_arrow(self._answers.table(outputs))

    def decode_inference(
        self, body: bytes, json_bytes: int | None, name: str, version: int
    ) -> tuple[Rows, AnswerForm]:
        """Decode an Open Inference Protocol request; `json_bytes` of it are JSON, None: all."""
        return self._inference.decode(body, json_bytes, name, version)

    def encode_inference(
        self, outputs: Outputs, form: AnswerForm, name: str, version: int, prediction_id: str
    ) -> InferenceAnswer:
        """Encode the answer in the form that the request wants."""
        return self._inference.encode(outputs, form, name, version, prediction_id)

    @cached_property
    def messages(self) -> MessageCodec:
        """The codec of the Open Inference Protocol over gRPC."""
        from service.runtime.codec.inference_protobuf import MessageCodec  # protobuf: only with gRPC

        return MessageCodec(self.signature, self.columns, MAX_INSTANCES)

    def decode_scoring(self, body: bytes) -> Rows:
        """Decode a JSON body of MLflow's scoring server."""
        return self._scoring.decode(body)

    def encode_scoring(self, outputs: Outputs) -> bytes:
        """Encode the answer of MLflow's scoring server: `{"predictions": [...]}`."""
        return self._scoring.encode(outputs)
