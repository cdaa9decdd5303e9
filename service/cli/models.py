"""Models and their versions: list, show, edit, archive, delete."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from typer import BadParameter, Option, confirm, echo

from service.cli.record_lines import model_lines, version_lines
from service.cli.shared import (
    Json,
    Model,
    Name,
    Tags,
    aliases_of,
    connect,
    emit,
    model_ref,
    one_version,
    only_name,
    pairs,
    say,
    table,
    when,
)

Search = Annotated[str | None, Option("--search", "-q", help="Only those whose name or description has it.")]
Tagged = Annotated[
    list[str] | None, Option("--tag", metavar="KEY=VALUE", help="Only those with this tag; may be repeated.")
]


def models(search: Search = None, tag: Tagged = None, json: Json = False) -> None:
    """List the models."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("models"), _filter(search, tag))
    columns = ("model", "versions", "latest", "aliases", "created (UTC)", "by")
    rows = (
        [
            m["name"],
            m["versions"],
            m["latest_version"],
            aliases_of(m),
            when(m["created_at"]),
            m["created_by"],
        ]
        for m in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no models"))


def versions(name: Name, search: Search = None, tag: Tagged = None, json: Json = False) -> None:
    """List a model's versions."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("models", only_name(name), "versions"), _filter(search, tag))
    columns = ("version", "state", "runtime", "aliases", "metrics", "tags", "created (UTC)", "by")
    rows = (
        [
            v["version"],
            v["state"],
            v["runtime"],
            aliases_of(v),
            v["metrics"],
            v["tags"],
            when(v["created_at"]),
            v["created_by"],
        ]
        for v in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no versions"))


def show(model: Model, json: Json = False) -> None:
    """Show a model, or one version of it."""
    from registry.errors import NotFound
    from service.client import path

    ref = model_ref(model)
    with connect() as client:
        record: dict[str, Any] = client.call("GET", path("models", ref.name))
        version = record["aliases"].get(ref.alias) if ref.alias else ref.version
        if ref.alias and version is None:
            raise NotFound("alias", ref)
        if version is not None:
            record = client.call("GET", path("models", ref.name, "versions", version))
    lines = version_lines(record) if "version" in record else model_lines(record)
    emit(json, record, lambda: echo("\n".join(lines)))


def edit(
    model: Model,
    tag: Tags = None,
    untag: Annotated[list[str] | None, Option("--untag", metavar="KEY", help="May be repeated.")] = None,
    description: Annotated[str | None, Option(help="The new description.")] = None,
    json: Json = False,
) -> None:
    """Change the tags or the description of a version."""
    if tag is None and untag is None and description is None:
        raise BadParameter("nothing to change; give --tag, --untag or --description")
    from service.client import path

    ref = one_version(model)
    where = path("models", ref.name, "versions", ref.version)
    added = pairs(tag)
    change: dict[str, Any] = {} if description is None else {"description": description}
    with connect() as client:
        if tag or untag:
            tags = client.call("GET", where)["tags"] | added
            change["tags"] = {key: value for key, value in tags.items() if key not in (untag or ())}
        record = client.call("PATCH", where, change)
    emit(json, record, lambda: say(f"{ref} is changed"))


def archive(model: Model, json: Json = False) -> None:
    """Archive a version: it keeps its record and answers no longer."""
    _set_archived(model, True, json)


def unarchive(model: Model, json: Json = False) -> None:
    """Bring an archived version back."""
    _set_archived(model, False, json)


def _set_archived(model: str, archived: bool, json: bool) -> None:
    from service.client import path

    ref = one_version(model)
    with connect() as client:
        record = client.call(
            "PATCH", path("models", ref.name, "versions", ref.version), {"archived": archived}
        )
    emit(json, record, lambda: say(f"{ref} is {record['state']}"))


def delete(
    model: Model,
    yes: Annotated[bool, Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Delete a model (name), a version (name:version) or an alias (name@alias)."""
    from service.client import path

    ref = model_ref(model)
    if ref.version is not None:
        what, where = f"version {ref}", path("models", ref.name, "versions", ref.version)
    elif ref.alias:
        what, where = f"alias {ref}", path("models", ref.name, "aliases", ref.alias)
    else:
        what, where = f"model {ref} with all its versions", path("models", ref.name)
    if not yes:
        if not sys.stdin.isatty():
            raise BadParameter("nobody is there to ask; add --yes")
        confirm(f"delete {what}?", abort=True, err=True)
    with connect() as client:
        record = client.call("DELETE", where)
    emit(json, record, lambda: say(f"deleted {what}"))


def _filter(search: str | None, tag: list[str] | None) -> dict[str, Any]:
    return {"q": search, "tag": [f"{key}:{value}" for key, value in pairs(tag).items()] or None}
