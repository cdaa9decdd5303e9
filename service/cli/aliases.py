"""`trivium promote`, `rollback` and `history`: which version an alias points at."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from service.cli.connection import connect
from service.cli.descriptions import event_name
from service.cli.options import Json, Name, Reason, Version, parse_name, parse_version, without_none
from service.cli.output import format_time, print_message, print_record, print_table

Alias = Annotated[str, Option("--alias", help="The alias.")]


def promote(
    model: Version,
    alias: Alias = "champion",
    reason: Reason = None,
    edge_percent: Annotated[
        int | None,
        Option(
            min=0, max=100, help="Share of devices that get the version; the others keep the previous one."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Point an alias at a version."""
    from service.client import path

    ref = parse_version(model)
    body = without_none({"version": ref.version, "reason": reason, "edge_percent": edge_percent})
    with connect() as client:
        record = client.call("PUT", path("models", ref.name, "aliases", alias), body)
    share = "" if edge_percent is None else f", for {edge_percent} % of the devices"
    print_record(
        json, record, lambda: print_message(f"{ref.name}@{alias} is version {record['version']}{share}")
    )


def rollback(name: Name, alias: Alias = "champion", reason: Reason = None, json: Json = False) -> None:
    """Point an alias at its previous version."""
    from service.client import path

    model = parse_name(name)
    with connect() as client:
        body = {"reason": reason} if reason else {}
        record = client.call("POST", path("models", model, "aliases", alias, "rollback"), body)
    print_record(json, record, lambda: print_message(f"{model}@{alias} is version {record['version']} again"))


def history(
    name: Name,
    alias: Alias = "champion",
    at: Annotated[
        str | None,
        Option(metavar="TIME", help="Show only the version at this time, such as 2026-03-03T12:00:00Z."),
    ] = None,
    json: Json = False,
) -> None:
    """List an alias's events, newest first."""
    from service.client import path

    url = path("models", parse_name(name), "aliases", alias, "history")
    with connect() as client:
        answer = client.call("GET", url, params={"at": at}) if at else client.pages(url)
    events = answer.get("items", [answer])
    columns = ("at (UTC)", "version", "event", "by", "reason")
    rows = ([format_time(e["at"]), e["version"], event_name(e), e["by"], e["reason"]] for e in events)
    print_record(json, answer, lambda: print_table(columns, rows, f"{alias} was never set"))
