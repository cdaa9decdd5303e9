"""The docs pages and their files over HTTP. `test_docs_page` tests them in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

import service.web.docs_page
from tests.harness.server import Server

STATIC = Path(service.web.docs_page.__file__).with_name("static")


class Links(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [v for k, v in attrs if k in ("src", "href") and v and tag != "a"]


@pytest.fixture
def anonymous(server: Server) -> httpx.Client:
    with httpx.Client(base_url=server.url) as client:
        yield client


def test_the_shell_is_the_same_for_any_name_and_needs_no_key(anonymous: httpx.Client) -> None:
    pages = [anonymous.get(p) for p in ("/docs", "/v1/models/mixed/docs", "/v1/models/missing/docs")]
    assert [s.status_code for s in pages] == [200, 200, 200]
    assert len({s.content for s in pages}) == 1
    assert pages[0].headers["content-type"] == "text/html; charset=utf-8"


def test_the_shell_allows_no_other_host(anonymous: httpx.Client) -> None:
    shell = anonymous.get("/docs")
    policy = dict(p.split(" ", 1) for p in shell.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "://" not in shell.headers["content-security-policy"]
    assert shell.headers["x-content-type-options"] == "nosniff"
    assert "://" not in shell.text


def test_every_file_of_the_shell_is_immutable_under_its_digest(anonymous: httpx.Client) -> None:
    links = Links(anonymous.get("/docs").text).urls
    assert len(links) == 6
    for link in links:
        answer = anonymous.get(link)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        stale = anonymous.get(re.sub(r"v=\w+", "v=old", link))
        assert stale.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/docs", "/static/docs.js", "/static/swagger-ui/swagger-ui-bundle.js"])
def test_a_current_copy_is_not_sent_again(path: str, anonymous: httpx.Client) -> None:
    etag = anonymous.get(path).headers["etag"]
    second = anonymous.get(path, headers={"If-None-Match": f'"other", W/{etag}'})
    assert (second.status_code, second.content, second.headers["etag"]) == (304, b"", etag)
    assert anonymous.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_has_no_body(anonymous: httpx.Client) -> None:
    answer = anonymous.head("/static/docs.css")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == (STATIC / "docs.css").stat().st_size


@pytest.mark.parametrize(
    "path", ["", "docs.html", "nothing.js", "..%2Fdocs.py", "%2e%2e/docs.py", "swagger-ui", "%2Fetc%2Fpasswd"]
)
def test_other_paths_are_not_served(path: str, anonymous: httpx.Client) -> None:
    answer = anonymous.get(f"/static/{path}")
    assert answer.status_code in (401, 404)
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_vendored_file_is_served_with_its_licence(anonymous: httpx.Client) -> None:
    files = {str(p.relative_to(STATIC)) for p in STATIC.rglob("*") if p.is_file()} - {"docs.html"}
    assert {"swagger-ui/LICENSE", "swagger-ui/NOTICE", "swagger-ui/VERSION"} <= files
    for file in files:
        assert anonymous.get(f"/static/{file}").content == (STATIC / file).read_bytes()


@pytest.mark.parametrize("file", ["swagger-ui/swagger-ui-bundle.js", "swagger-ui/swagger-ui.css"])
def test_no_vendored_file_points_to_a_source_map(file: str) -> None:
    assert "sourceMappingURL=" not in (STATIC / file).read_text("utf-8")
