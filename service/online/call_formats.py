"""The wire formats of a predict call: how its body becomes rows, and how its outputs become an answer.

`Predictor` runs every call; a format only decodes and encodes. This module imports no numpy: the codec of the
loaded model does the work (see service/startup.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from starlette.exceptions import HTTPException

from registry.errors import invalid_field
from registry.media_types import CSV, JSON
from service.online.negotiation import MEDIA_TYPES, media_type_of, negotiate

if TYPE_CHECKING:
    from registry.rows import Outputs, Rows
    from service.runtime.codec.inference_request import AnswerForm
    from service.runtime.loading import LoadedModel

Headers = list[tuple[bytes, bytes]]

BINARY = "application/octet-stream"
JSON_LENGTH = b"inference-header-content-length"
"""The number of bytes of JSON before the binary data of an Open Inference Protocol body."""


class Answer(NamedTuple):
    body: bytes
    headers: Headers  # the content type, and what the format adds


class CallFormat(Protocol):
    """The format of one call."""

    @property
    def inline_body(self) -> bool:
        """Whether a small body is decoded on the event loop."""

    @property
    def inline_answer(self) -> bool:
        """Whether the answer of a cheap model is encoded on the event loop."""

    @property
    def is_shared(self) -> bool:
        """Whether several calls may use this object at the same time."""

    def decode(self, loaded: LoadedModel, body: bytes) -> Rows: ...
    def encode(self, loaded: LoadedModel, outputs: Outputs, prediction_id: str) -> Answer: ...


class TableFormat:
    """`/v1/models/{name}/predict`: JSON, CSV and Arrow bodies, each with any of them as the answer."""

    is_shared = True

    def __init__(self, content_type: str, answer_type: str) -> None:
        self.inline_body, self.inline_answer = content_type == JSON, answer_type == JSON
        self._content_type, self._answer_type = content_type, answer_type
        self._headers = [(b"content-type", answer_type.encode())]

    def decode(self, loaded: LoadedModel, body: bytes) -> Rows:
        codec = loaded.codec
        if self._content_type == JSON:
            return codec.decode_json(body)
        return codec.decode_csv(body) if self._content_type == CSV else codec.decode_arrow(body)

    def encode(self, loaded: LoadedModel, outputs: Outputs, prediction_id: str) -> Answer:
        codec = loaded.codec
        if self._answer_type == JSON:
            body = codec.encode_json(outputs, loaded.name, loaded.number, prediction_id)
        else:
            body = codec.encode_csv(outputs) if self._answer_type == CSV else codec.encode_arrow(outputs)
        return Answer(body, self._headers)


_TABLE_FORMATS = {(body, answer): TableFormat(body, answer) for body in MEDIA_TYPES for answer in MEDIA_TYPES}


def table_format(headers: Mapping[bytes, bytes]) -> CallFormat:
    """Return the format that the headers ask for. Raises 415 and 406."""
    return _TABLE_FORMATS[negotiate(headers.get(b"content-type"), headers.get(b"accept"))]


class InferenceFormat:
    """`/v2/models/{name}/infer`: the Open Inference Protocol. The request states the form of its answer."""

    inline_body = inline_answer = True
    is_shared = False  # it holds the form of its answer

    def __init__(self, json_bytes: int | None) -> None:
        self._json_bytes = json_bytes
        self._form: AnswerForm

    def decode(self, loaded: LoadedModel, body: bytes) -> Rows:
        rows, self._form = loaded.codec.decode_inference(body, self._json_bytes, loaded.name, loaded.number)
        return rows

    def encode(self, loaded: LoadedModel, outputs: Outputs, prediction_id: str) -> Answer:
        answer = loaded.codec.encode_inference(outputs, self._form, loaded.name, loaded.number, prediction_id)
        if answer.json_bytes is None:
            return Answer(answer.body, [(b"content-type", JSON.encode())])
        length = b"%d" % answer.json_bytes
        return Answer(answer.body, [(b"content-type", BINARY.encode()), (JSON_LENGTH, length)])


def inference_format(headers: Mapping[bytes, bytes]) -> CallFormat:
    """Return the format of a request. Without a Content-Type, as tritonclient sends it, it is JSON.

    Accept is ignored, as other servers of the protocol do: the request states the form of the answer. Raises
    415 and `Invalid`.
    """
    json_bytes = None
    if (value := headers.get(JSON_LENGTH)) is not None:
        if not (value.isdigit() and len(value) <= 18):
            message = f"Inference-Header-Content-Length is {value.decode('latin-1')!r}; send a number"
            raise invalid_field("Inference-Header-Content-Length", message, "a number of bytes")
        json_bytes = int(value)
    _require_content_type(headers, (JSON, BINARY))
    return InferenceFormat(json_bytes)


class ScoringFormat:
    """`/v1/models/{name}/invocations`: MLflow's scoring server. The answer is always JSON."""

    inline_answer = is_shared = True

    def __init__(self, content_type: str) -> None:
        self.inline_body = content_type == JSON
        self._headers = [(b"content-type", JSON.encode())]

    def decode(self, loaded: LoadedModel, body: bytes) -> Rows:
        return loaded.codec.decode_scoring(body) if self.inline_body else loaded.codec.decode_csv(body)

    def encode(self, loaded: LoadedModel, outputs: Outputs, prediction_id: str) -> Answer:
        return Answer(loaded.codec.encode_scoring(outputs), self._headers)


_SCORING_FORMATS = {JSON: ScoringFormat(JSON), CSV: ScoringFormat(CSV)}


def scoring_format(headers: Mapping[bytes, bytes]) -> CallFormat:
    """Return the format of the Content-Type, JSON or CSV. Raises 415."""
    return _SCORING_FORMATS[_require_content_type(headers, (JSON, CSV))]


def _require_content_type(headers: Mapping[bytes, bytes], accepted: tuple[str, ...]) -> str:
    """Return the media type of the body, JSON without a header. Raises 415."""
    content_type = media_type_of(headers.get(b"content-type"))
    if content_type not in accepted:
        raise HTTPException(415, f"cannot read {content_type!r}; send one of {', '.join(accepted)}")
    return content_type


_ACTIONS: dict[tuple[str, str], Callable[[Mapping[bytes, bytes]], CallFormat]] = {
    ("/v1", "/predict"): table_format,
    ("/v1", "/invocations"): scoring_format,
    ("/v2", "/infer"): inference_format,
}


class Door(NamedTuple):
    """A path that predicts: its template, and the function that selects the format of a call."""

    route: str
    select_format: Callable[[Mapping[bytes, bytes]], CallFormat]


DOORS = {
    (api, action, numbered): Door(f"{api}/models/{{name}}{version}{action}", select_format)
    for (api, action), select_format in _ACTIONS.items()
    for numbered, version in ((False, ""), (True, "/versions/{version}"))
}
"""By the API's version, the last part of the path, and whether the path has the version's number."""
