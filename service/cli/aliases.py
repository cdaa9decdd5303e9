"""Aliases: which version is live, which was, and how to go back."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from service.cli.shared import (
    Json,
    Model,
    Name,
    Reason,
    connect,
    emit,
    one_version,
    only_name,
    say,
    table,
    when,
)

Alias = Annotated[str, Option("--alias", help="Which alias.")]


def promote(
    model: Model,
    alias: Alias = "champion",
    reason: Reason = None,
    edge_percent: Annotated[
        int | None,
        Option(min=0, max=100, help="Give it to this share of the devices; the others keep the one before."),
    ] = None,
    json: Json = False,
) -> None:
    """Point an alias at a version (name:version)."""
    from service.client import path

    ref = one_version(model)
    asked = {"version": ref.version, "reason": reason, "edge_percent": edge_percent}
    body = {name: value for name, value in asked.items() if value is not None}
    with connect() as client:
        record = client.call("PUT", path("models", ref.name, "aliases", alias), body)
    share = "" if edge_percent is None else f", for {edge_percent} % of the devices"
    emit(json, record, lambda: say(f"{ref.name}@{alias} is version {record['version']}{share}"))


def rollback(name: Name, alias: Alias = "champion", reason: Reason = None, json: Json = False) -> None:
    """Point an alias back at the version before."""
    from service.client import path

    model = only_name(name)
    with connect() as client:
        body = {"reason": reason} if reason else {}
        record = client.call("POST", path("models", model, "aliases", alias, "rollback"), body)
    emit(json, record, lambda: say(f"{model}@{alias} is version {record['version']} again"))


def history(
    name: Name,
    alias: Alias = "champion",
    at: Annotated[
        str | None, Option(metavar="TIME", help="What it was then: RFC 3339, 2026-03-03T12:00:00Z.")
    ] = None,
    json: Json = False,
) -> None:
    """Every move of an alias, newest first; with --at, what it was then."""
    from service.client import path

    where = path("models", only_name(name), "aliases", alias, "history")
    with connect() as client:
        answer = client.call("GET", where, params={"at": at}) if at else client.pages(where)
    events = answer.get("items", [answer])
    rows = ([when(e["at"]), e["version"], e["action"], e["by"], e["reason"]] for e in events)
    emit(
        json,
        answer,
        lambda: table(("at (UTC)", "version", "move", "by", "reason"), rows, f"{alias} was never set"),
    )
