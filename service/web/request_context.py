"""`RequestContext`: what the outermost layer establishes about a request, for all inner layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from registry.keys import Key


@dataclass(slots=True)
class RequestContext:
    """Stored in `scope["context"]` by `auth.Guard`.

    `headers` are those of `combine_headers`. `route` is the path's template, for metrics and logs. A `quiet`
    request is logged only when it fails or is slow.
    """

    request_id: str
    key: Key | None
    headers: Mapping[bytes, bytes]
    route: str | None = None
    quiet: bool = False
    status: int = 500

    @property
    def id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", self.request_id.encode()


def combine_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by name. The values of a repeated one are joined by commas (RFC 9110, 5.3)."""
    pairs = list(headers)
    combined = dict(pairs)
    if len(combined) < len(pairs):
        values: dict[bytes, list[bytes]] = {}
        for name, value in pairs:
            values.setdefault(name, []).append(value)
        combined = {name: b", ".join(parts) for name, parts in values.items()}
    return combined
