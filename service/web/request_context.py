"""`RequestContext`: what the outermost layer establishes about a request, for all inner layers."""

from __future__ import annotations

from dataclasses import dataclass

from registry.keys import Key


@dataclass(slots=True)
class RequestContext:
    """Stored in `scope["context"]` by `auth.Guard`.

    `route` is the path's template, for metrics and logs. A `quiet` request is logged only when it fails or is
    slow.
    """

    request_id: str
    key: Key | None
    route: str | None = None
    quiet: bool = False
    status: int = 500
