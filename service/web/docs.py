"""The docs pages: one static shell for `/docs` and every `/v1/models/{name}/docs`, and its files.

The shell is the same for any name and answers without a key, so it tells nothing about the registry.
`static/docs.js` asks for the key, fetches `openapi.json` with it and draws it with Swagger UI, which is
vendored: the page needs no internet, and its Content-Security-Policy allows no other host.
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

_STATIC = Path(__file__).parent / "static"

# Nothing else is served: a path from outside never reaches the disk.
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

# Swagger UI writes style attributes, and its icons are data: images.
_POLICY = "; ".join(
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
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class File(NamedTuple):
    body: bytes
    digest: str  # hex sha256 of `body`, so that every replica answers with the same ETag


def docs_routes() -> list[Route]:
    """The shells and `/static/*`; none of them asks for a key."""
    return [
        Route("/docs", _shell, include_in_schema=False),
        Route("/v1/models/{name}/docs", _shell, include_in_schema=False),
        Route("/static/{path:path}", _static, include_in_schema=False),
    ]


async def _shell(request: Request) -> Response:
    page = _page()
    headers = {**_SAFE, "Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    return _answer(request, page, "text/html; charset=utf-8", headers)


async def _static(request: Request) -> Response:
    """A file of the page; immutable when it is asked for by the digest of what it holds."""
    path = request.path_params["path"]
    if path not in _MEDIA_TYPES:
        raise HTTPException(404, f"there is no file {path!r}")
    file = _file(path)
    versioned = request.query_params.get("v") == _short(file)
    caching = "public, max-age=31536000, immutable" if versioned else "no-cache"
    return _answer(request, file, _MEDIA_TYPES[path], {**_SAFE, "Cache-Control": caching})


def _answer(request: Request, file: File, media_type: str, headers: dict[str, str]) -> Response:
    etag = f'"{file.digest}"'
    headers = {**headers, "ETag": etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=media_type, headers=headers)


@cache
def _file(path: str) -> File:
    return _hashed((_STATIC / path).read_bytes())


@cache
def _page() -> File:
    """The shell, each of its links carrying the digest of the file it names."""
    html = (_STATIC / "docs.html").read_text("utf-8")
    for path in _MEDIA_TYPES:
        html = html.replace(f'"/static/{path}"', f'"/static/{path}?v={_short(_file(path))}"')
    return _hashed(html.encode())


def _hashed(body: bytes) -> File:
    return File(body, hashlib.sha256(body).hexdigest())


def _short(file: File) -> str:
    return file.digest[:16]
