"""API keys. A secret is shown once, alone on stdout, so that `KEY=$(trivium keys create ...)` works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option, echo

from service.cli.shared import Json, connect, emit, say, seconds, table, when

if TYPE_CHECKING:
    from service.client import Record

KeyId = Annotated[str, Argument(metavar="ID", help="The key's id, from `trivium keys list`.")]


def create(
    scope: Annotated[
        list[str], Option("--scope", help="predict, publish, promote, edge, batch or admin; may be repeated.")
    ],
    name: Annotated[str | None, Option("--name", help="Who or what it is for.")] = None,
    model: Annotated[list[str] | None, Option("--model", help="Only this model; may be repeated.")] = None,
    expires_in: Annotated[
        str | None, Option("--expires-in", metavar="SPAN", help="When it stops working: 90d, 12h, 600s.")
    ] = None,
    json: Json = False,
) -> None:
    """Make a key, and show its secret once."""
    from service.client import path

    scopes = [part for given in scope for part in given.split(",")]
    span = seconds(expires_in)
    body = {
        "name": name or "+".join(scopes),
        "scopes": scopes,
        "models": model,
        "expires_in": None if span is None else round(span),
    }
    with connect() as client:
        record = client.create(path("keys"), {key: value for key, value in body.items() if value is not None})
    emit(json, record, lambda: _secret(record))


def list_keys(json: Json = False) -> None:
    """List the keys, without their secrets."""
    from service.client import path

    with connect() as client:
        page = client.pages(path("keys"))
    columns = ("id", "name", "scopes", "models", "created (UTC)", "expires (UTC)", "revoked (UTC)")
    rows = (
        [
            k["id"],
            k["name"],
            k["scopes"],
            k.get("models") or "all",
            when(k["created_at"]),
            when(k.get("expires_at")),
            when(k.get("revoked_at")),
        ]
        for k in page["items"]
    )
    emit(json, page, lambda: table(columns, rows, "no keys"))


def revoke(key: KeyId, json: Json = False) -> None:
    """End a key. It stops working at once."""
    from service.client import path

    with connect() as client:
        record = client.call("DELETE", path("keys", key))
    emit(json, record, lambda: say(f"key {key} is revoked"))


def rotate(key: KeyId, json: Json = False) -> None:
    """Give a key a new secret, shown once; the old one stops working."""
    from service.client import path

    with connect() as client:
        record = client.call("POST", path("keys", key, "rotate"))
    emit(json, record, lambda: _secret(record))


def _secret(record: Record) -> None:
    say(
        f"key {record['id']} ({record['name']}): {', '.join(record['scopes'])}; this secret is shown only now"
    )
    echo(record["key"])
