"""Lists on the wire: `{"items": [...], "next_page_token": ...}` and a `Link` header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

from fastapi import Query, Request, Response
from pydantic import BaseModel

from registry.errors import invalid_field
from registry.pages import Page
from service.web.strict import Checked

T = TypeVar("T")
R = TypeVar("R")


class Listed(BaseModel, Generic[R]):
    items: list[R]
    next_page_token: str | None


class PageQuery(Checked):
    """Which page. As the query model of a route it also refuses unknown parameters."""

    page_size: Annotated[int, Query(ge=1, le=1000)] = 100
    page_token: Annotated[str | None, Query(max_length=1000)] = None


class SearchQuery(PageQuery):
    q: Annotated[str | None, Query(max_length=200)] = None
    tag: Annotated[
        list[str],
        Query(max_length=16, description="key:value; repeat to ask for several", default_factory=list),
    ]

    def tags(self) -> list[tuple[str, str]]:
        """Raises `Invalid` when one is not `key:value`."""
        for tag in self.tag:
            if ":" not in tag:
                raise invalid_field(
                    "tag", "no colon in it", "key:value", detail=f"tag {tag!r} is not key:value"
                )
        return [(key, value) for key, _, value in (t.partition(":") for t in self.tag)]


def listed(page: Page[T], record: Callable[[T], R], request: Request, response: Response) -> Listed[R]:
    if page.next_token is not None:
        following = request.url.include_query_params(page_token=page.next_token)
        response.headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return Listed(items=[record(item) for item in page.items], next_page_token=page.next_token)
