"""Lists: pages, the Link header, and search."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from registry.errors import Invalid
from registry.pages import Page
from service.web.listing import PageQuery, SearchQuery, list_response
from tests.service.api import Api, check_problem

pytestmark = pytest.mark.anyio


async def every_page(api: Api, url: str) -> list[list[Any]]:
    """Follow the Link header and return the items of each page."""
    pages = []
    next_url: str | None = url
    while next_url:
        answer = await api.client.get(next_url)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json()["items"])
        assert ("next" in answer.links) == (answer.json()["next_page_token"] is not None)
        next_url = answer.links.get("next", {}).get("url")
    return pages


@pytest.fixture(scope="session")
async def listed_models(api: Api) -> None:
    """Models `listed-0` to `listed-4`; the first has versions 1 to 5, tagged by their parity."""
    blob = await api.upload(b"no model")  # its builds end soon
    for number in range(5):
        for name in {"listed-0", f"listed-{number}"}:
            body = {
                "artifact": blob,
                "format": "sklearn-joblib",
                "tags": {"parity": "odd" if number % 2 else "even", "nr": str(number)},
                "description": f"the {number}th_ of 100%",
            }
            answer = await api.client.post(f"/v1/models/{name}/versions", json=body)
            assert answer.status_code == 202
    await asyncio.gather(*(api.wait_for_build(f"/v1/models/listed-0/versions/{n}") for n in range(1, 6)))


async def test_the_link_header_leads_through_all_pages(api: Api, listed_models: None):
    pages = await every_page(api, "/v1/models?page_size=2&q=listed-")
    assert [[m["name"] for m in page] for page in pages] == [
        ["listed-0", "listed-1"],
        ["listed-2", "listed-3"],
        ["listed-4"],
    ]
    versions = await every_page(api, "/v1/models/listed-0/versions?page_size=2")
    assert [[v["version"] for v in page] for page in versions] == [[5, 4], [3, 2], [1]]


async def test_an_exactly_full_page_is_the_last(api: Api, listed_models: None):
    assert len(await every_page(api, "/v1/models?page_size=5&q=listed-")) == 1


@pytest.mark.parametrize(
    "url",
    [
        "/v1/models?page_size=1&page_size=2",
        "/v1/models?q=a&q=a",
        "/v1/edge/flag?alias=champion&alias=champion",
    ],
)
async def test_a_repeated_query_parameter_is_rejected(api: Api, url: str):
    name = url.rpartition("&")[2].partition("=")[0]
    problem = check_problem(await api.client.get(url), 422)
    assert problem["detail"] == f"repeated query parameter '{name}'"
    assert [e["field"] for e in problem["errors"]] == [name]


async def test_a_model_created_between_pages_repeats_no_item(api: Api, listed_models: None):
    first = (await api.client.get("/v1/models?page_size=2&q=listed-")).json()
    await api.client.post(
        "/v1/models/listed-00/versions",
        json={
            "artifact": await api.upload(b"no model"),
            "format": "sklearn-joblib",
        },
    )
    token = first["next_page_token"]
    second = (await api.client.get(f"/v1/models?page_size=2&q=listed-&page_token={token}")).json()
    await api.client.delete("/v1/models/listed-00")
    names = [m["name"] for m in first["items"] + second["items"]]
    assert len(set(names)) == 4


async def test_models_are_found_by_name_and_tag(api: Api, listed_models: None):
    async def names(query: str) -> list[str]:
        return [m["name"] for m in (await api.client.get(f"/v1/models?{query}")).json()["items"]]

    assert await names("q=LISTED-3") == ["listed-3"]
    assert await names("tag=nr:3&q=listed-") == ["listed-0", "listed-3"]
    assert await names("tag=nr:3&tag=parity:odd&q=listed-") == ["listed-0", "listed-3"]
    assert await names("tag=nr:3&tag=parity:even") == []
    assert await names("q=%25") == []
    assert await names("q=l_sted") == []
    assert await names("q='; drop table models") == []


async def test_versions_are_found_by_description_and_tag(api: Api, listed_models: None):
    async def numbers(query: str) -> list[int]:
        answer = await api.client.get(f"/v1/models/listed-0/versions?{query}")
        return [v["version"] for v in answer.json()["items"]]

    assert await numbers("tag=parity:even") == [5, 3, 1]
    assert await numbers("q=2TH_") == [3]
    assert await numbers("q=100%25") == [5, 4, 3, 2, 1]
    assert await numbers("q=thx") == []


async def test_keys_are_listed_in_pages(api: Api):
    for _ in range(3):
        await api.key("predict")
    pages = await every_page(api, "/v1/keys?page_size=2")
    ids = [k["id"] for page in pages for k in page]
    assert len(pages) > 1
    assert ids == sorted(set(ids))


@pytest.mark.parametrize(
    ("accepted", "rejected"),
    [
        ({"page_size": 1}, {"page_size": 0}),
        ({"page_size": 1000}, {"page_size": 1001}),
        ({"page_token": "x" * 1000}, {"page_token": "x" * 1001}),
        ({"q": "x" * 200}, {"q": "x" * 201}),
        ({"tag": ["a:b"] * 16}, {"tag": ["a:b"] * 17}),
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_the_fields_of_a_query_have_limits(accepted: dict[str, Any], rejected: dict[str, Any]):
    query = SearchQuery(**accepted)
    assert {name: getattr(query, name) for name in accepted} == accepted
    with pytest.raises(ValidationError):
        SearchQuery(**rejected)


def test_a_page_has_a_hundred_items_by_default():
    assert PageQuery().page_size == 100


def test_a_tag_is_divided_at_its_first_colon():
    assert SearchQuery(tag=["a:b:c", ":", "x:"]).tags() == [("a", "b:c"), ("", ""), ("x", "")]
    with pytest.raises(Invalid, match="tag 'b' is not key:value"):
        SearchQuery(tag=["a:b", "b"]).tags()


def test_only_a_page_with_a_successor_has_a_link():
    scope = {"type": "http", "path": "/v1/models", "query_string": b"page_size=2&q=a%20b", "headers": [],
             "server": ("internal", 80), "scheme": "http"}  # fmt: skip
    for token, link in (
        (None, None),
        ("a+b", '</v1/models?page_size=2&q=a+b&page_token=a%2Bb>; rel="next"'),
    ):
        response = Response()
        body = list_response(Page([1, 2], token), str, Request(scope), response)
        assert (body.items, body.next_page_token, response.headers.get("link")) == (["1", "2"], token, link)
