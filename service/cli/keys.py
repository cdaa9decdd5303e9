"""`trivium keys`: API keys. A new secret is the only line on stdout: `KEY=$(trivium keys create ...)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, echo

from registry.vocabulary import SCOPES
from service.cli.connection import connect
from service.cli.options import Json, parse_span, without_none
from service.cli.output import format_time, print_message, print_record, print_table

if TYPE_CHECKING:
    from service.client import Record

KeyId = Annotated[
    str, Argument(metavar="ID", show_default=False, help="The key's id, from `trivium keys list`.")
]


def create(
    scope: Annotated[list[str], Option("--scope", help=f"One of {', '.join(SCOPES)}; may be repeated.")],
    name: Annotated[str | None, Option("--name", help="A name that describes the key's use.")] = None,
    model: Annotated[
        list[str] | None, Option("--model", help="Limit the key to this model; may be repeated.")
    ] = None,
    expires_in: Annotated[
        str | None,
        Option(
            "--expires-in", metavar="SPAN", help="The key's lifetime, such as 90d or 12h (default: never)."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create a key and show its secret once."""
    from service.client import path

    scopes = [name for option in scope for name in option.split(",")]
    lifetime = parse_span(expires_in)
    body = {
        "name": name or "+".join(scopes),
        "scopes": scopes,
        "models": model,
        "expires_in": None if lifetime is None else round(lifetime),
    }
    with connect() as client:
        record = client.create(path("keys"), without_none(body))
    print_record(json, record, lambda: _print_secret(record))


def list_keys(json: Json = False) -> None:
    """List keys without their secrets."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("keys"))
    columns = ("id", "name", "scopes", "models", "created (UTC)", "expires (UTC)", "revoked (UTC)")
    rows = (
        [
            k["id"],
            k["name"],
            k["scopes"],
            "all" if k["models"] is None else k["models"] or "none",
            format_time(k["created_at"]),
            format_time(k.get("expires_at")),
            format_time(k.get("revoked_at")),
        ]
        for k in page["items"]
    )
    print_record(json, page, lambda: print_table(columns, rows, "no keys"))


def revoke(key: KeyId, json: Json = False) -> None:
    """Revoke a key: the server refuses it from now on."""
    from service.client import path

    with connect() as client:
        record = client.call("DELETE", path("keys", key))
    print_record(json, record, lambda: print_message(f"key {key} is revoked"))


def rotate(key: KeyId, json: Json = False) -> None:
    """Replace a key's secret and show the new one once."""
    from service.client import path

    with connect() as client:
        record = client.call("POST", path("keys", key, "rotate"))
    print_record(json, record, lambda: _print_secret(record))


def _print_secret(record: Record) -> None:
    scopes = ", ".join(record["scopes"])
    print_message(f"key {record['id']} ({record['name']}): {scopes}; this secret is shown only now")
    echo(record["key"])
