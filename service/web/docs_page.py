"""The docs pages: one static HTML shell for `/docs` and every `/v1/models/{name}/docs`, and its files.

The shell is served without a key, and its content does not depend on the registry. `static/docs.js` prompts
for the key, fetches `openapi.json` with it and renders it with Swagger UI. Swagger UI is vendored: the page
works offline, and its Content-Security-Policy allows no other host.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.web.conditional import precondition_response

_STATIC = Path(__file__).parent / "static"

# Only these files are served; a path from a request is never used to open a file.
_MEDIA_TYPES = {
    "docs.css": "text/css; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "swagger-ui/swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui/swagger-ui-bundle.js.LICENSE.txt": "text/plain; charset=utf-8",
    "swagger-ui/LICENSE": "text/plain; charset=utf-8",
    "swagger-ui/NOTICE": "text/plain; charset=utf-8",
    "swagger-ui/VERSION": "text/plain; charset=utf-8",
}

# Swagger UI sets style attributes, and its icons are data: images.
_CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class StaticFile(NamedTuple):
    body: bytes
    sha256: str  # hex; the ETag, so all replicas return the same one

    @classmethod
    def of(cls, body: bytes) -> StaticFile:
        return cls(body, hashlib.sha256(body).hexdigest())

    @property
    def version(self) -> str:
        """The `?v=` of the file's links."""
        return self.sha256[:16]


def docs_routes() -> list[Route]:
    """Build the routes of the shells and of `/static/*`. All are public."""
    return [
        Route("/docs", _shell, include_in_schema=False),
        Route("/v1/models/{name}/docs", _shell, include_in_schema=False),
        Route("/static/{path:path}", _static, include_in_schema=False),
    ]


async def _shell(request: Request) -> Response:
    caching = {"Cache-Control": "no-cache", "Content-Security-Policy": _CONTENT_SECURITY_POLICY}
    return _file_response(request, _shell_file(), "text/html; charset=utf-8", caching)


async def _static(request: Request) -> Response:
    """Send a file of the page; it is immutable under a URL with its current version."""
    path = request.path_params["path"]
    if path not in _MEDIA_TYPES:
        raise HTTPException(404, f"there is no file {path!r}")
    file = _static_file(path)
    is_versioned = request.query_params.get("v") == file.version
    caching = "public, max-age=31536000, immutable" if is_versioned else "no-cache"
    return _file_response(request, file, _MEDIA_TYPES[path], {"Cache-Control": caching})


def _file_response(request: Request, file: StaticFile, media_type: str, caching: dict[str, str]) -> Response:
    headers = {**_SECURITY_HEADERS, **caching, "ETag": f'"{file.sha256}"'}
    if (not_modified := precondition_response(request.scope, headers)) is not None:
        return not_modified
    return Response(file.body, media_type=media_type, headers=headers)


@cache
def _static_file(path: str) -> StaticFile:
    return StaticFile.of((_STATIC / path).read_bytes())


@cache
def _shell_file() -> StaticFile:
    """Load the shell and add its version to the link of each file."""
    html = (_STATIC / "docs.html").read_text("utf-8")
    for path in _MEDIA_TYPES:
        html = html.replace(f'"/static/{path}"', f'"/static/{path}?v={_static_file(path).version}"')
    return StaticFile.of(html.encode())
