"""`trivium models`, `versions`, `show`, `edit`, `archive`, `unarchive` and `delete`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from typer import BadParameter, Option, confirm, echo

from service.cli.connection import connect
from service.cli.descriptions import alias_names, model_lines, version_lines
from service.cli.options import (
    Json,
    Model,
    Name,
    Tags,
    Version,
    parse_model,
    parse_name,
    parse_pairs,
    parse_version,
)
from service.cli.output import format_time, print_message, print_record, print_table

NameSearch = Annotated[
    str | None, Option("--search", "-q", help="List only models with this text in the name.")
]
DescriptionSearch = Annotated[
    str | None, Option("--search", "-q", help="List only versions with this text in the description.")
]
TagFilter = Annotated[
    list[str] | None,
    Option("--tag", metavar="KEY=VALUE", help="List only those with this tag; may be repeated."),
]


def list_models(search: NameSearch = None, tag: TagFilter = None, json: Json = False) -> None:
    """List models."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("models"), _filter(search, tag))
    columns = ("model", "versions", "latest", "aliases", "created (UTC)", "by")
    rows = (
        [
            m["name"],
            m["versions"],
            m["latest_version"],
            alias_names(m),
            format_time(m["created_at"]),
            m["created_by"],
        ]
        for m in page["items"]
    )
    print_record(json, page, lambda: print_table(columns, rows, "no models"))


def list_versions(
    name: Name, search: DescriptionSearch = None, tag: TagFilter = None, json: Json = False
) -> None:
    """List a model's versions, newest first."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("models", parse_name(name), "versions"), _filter(search, tag))
    columns = ("version", "state", "runtime", "aliases", "metrics", "tags", "created (UTC)", "by")
    rows = (
        [
            v["version"],
            v["state"],
            v["runtime"],
            alias_names(v),
            v["metrics"],
            v["tags"],
            format_time(v["created_at"]),
            v["created_by"],
        ]
        for v in page["items"]
    )
    print_record(json, page, lambda: print_table(columns, rows, "no versions"))


def show(model: Model, json: Json = False) -> None:
    """Show a model, or a version with its build report."""
    from registry.errors import NotFound
    from service.client import path

    ref = parse_model(model)
    with connect() as client:
        record: dict[str, Any] = client.call("GET", path("models", ref.name))
        version = record["aliases"].get(ref.alias) if ref.alias else ref.version
        if ref.alias and version is None:
            raise NotFound("alias", ref)
        if version is not None:
            record = client.call("GET", path("models", ref.name, "versions", version))
    lines = version_lines(record) if "version" in record else model_lines(record)
    print_record(json, record, lambda: echo("\n".join(lines)))


def edit(
    model: Version,
    tag: Tags = None,
    untag: Annotated[
        list[str] | None, Option("--untag", metavar="KEY", help="A tag to remove; may be repeated.")
    ] = None,
    description: Annotated[str | None, Option(help="The new description.")] = None,
    json: Json = False,
) -> None:
    """Change the tags or the description of a version.

    Tags that are not named are kept.
    """
    if tag is None and untag is None and description is None:
        raise BadParameter("nothing to change: add --tag, --untag or --description")
    from service.client import path

    ref = parse_version(model)
    url = path("models", ref.name, "versions", ref.version)
    new_tags = parse_pairs(tag)
    changes: dict[str, Any] = {} if description is None else {"description": description}
    with connect() as client:
        if tag or untag:
            tags = client.call("GET", url)["tags"] | new_tags
            changes["tags"] = {key: value for key, value in tags.items() if key not in (untag or ())}
        record = client.call("PATCH", url, changes)
    print_record(json, record, lambda: print_message(f"{ref} is changed"))


def archive(model: Version, json: Json = False) -> None:
    """Take a version out of service; its record stays."""
    _set_archived(model, True, json)


def unarchive(model: Version, json: Json = False) -> None:
    """Return an archived version to service."""
    _set_archived(model, False, json)


def _set_archived(model: str, archived: bool, json: bool) -> None:
    from service.client import path

    ref = parse_version(model)
    with connect() as client:
        record = client.call(
            "PATCH", path("models", ref.name, "versions", ref.version), {"archived": archived}
        )
    print_record(json, record, lambda: print_message(f"{ref} is {record['state']}"))


def delete(
    model: Model,
    yes: Annotated[bool, Option("--yes", "-y", help="Delete without confirmation.")] = False,
    json: Json = False,
) -> None:
    """Delete a model, a version or an alias.

    MODEL is the name of a model, name:version or name@alias.
    """
    from service.client import path

    ref = parse_model(model)
    if ref.version is not None:
        subject, url = f"version {ref}", path("models", ref.name, "versions", ref.version)
    elif ref.alias:
        subject, url = f"alias {ref}", path("models", ref.name, "aliases", ref.alias)
    else:
        subject, url = f"model {ref} with all its versions", path("models", ref.name)
    if not yes:
        if not sys.stdin.isatty():
            raise BadParameter("stdin is not a terminal, so the deletion cannot be confirmed; add --yes")
        confirm(f"delete {subject}?", abort=True, err=True)
    with connect() as client:
        record = client.call("DELETE", url)
    print_record(json, record, lambda: print_message(f"deleted {subject}"))


def _filter(search: str | None, tag: list[str] | None) -> dict[str, Any]:
    """Return the query parameters of a filtered list."""
    return {"q": search, "tag": [f"{key}:{value}" for key, value in parse_pairs(tag).items()] or None}
