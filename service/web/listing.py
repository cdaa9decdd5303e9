"""Lists on the wire: `{"items": [...], "next_page_token": ...}`, a `Link` header, and their queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, TypeVar

from fastapi import Query, Request, Response
from pydantic import BaseModel

from registry.errors import invalid_field
from registry.pages import Page
from service.web.request_models import RequestModel

Row = TypeVar("Row")
Record = TypeVar("Record")


class ListResponse(BaseModel, Generic[Record]):
    items: list[Record]
    next_page_token: str | None


class PageQuery(RequestModel):
    """Selects a page. As the query model of a route it also rejects unknown parameters."""

    page_size: Annotated[int, Query(ge=1, le=1000)] = 100
    page_token: Annotated[str | None, Query(max_length=1000)] = None


class SearchQuery(PageQuery):
    """Selects a page of the items that contain `q` and have every `tag`."""

    q: Annotated[str | None, Query(max_length=200)] = None
    tag: Annotated[
        list[str],
        Query(max_length=16, description="key:value; repeat it to require several", default_factory=list),
    ]

    def tags(self) -> list[tuple[str, str]]:
        """Split the tags into keys and values. Raises `Invalid` for a tag without a colon."""
        for tag in self.tag:
            if ":" not in tag:
                raise invalid_field(
                    "tag", "there is no colon in it", "key:value", detail=f"tag {tag!r} is not key:value"
                )
        return [(key, value) for key, _, value in (tag.partition(":") for tag in self.tag)]


def list_response(
    page: Page[Row], record: Callable[[Row], Record], request: Request, response: Response
) -> ListResponse[Record]:
    """Convert a page of rows, and set the `Link` header of `response` to the next page.

    The link is a path without scheme and host, so it is correct behind any proxy.
    """
    if page.next_token is not None:
        next_url = request.url.include_query_params(page_token=page.next_token)
        response.headers["Link"] = f'<{next_url.path}?{next_url.query}>; rel="next"'
    return ListResponse(items=[record(item) for item in page.items], next_page_token=page.next_token)
