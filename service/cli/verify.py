"""`trivium verify`: measure versions again, and accept other answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Exit, Option, echo

from service.cli.connection import connect
from service.cli.descriptions import verification_lines
from service.cli.exit_codes import FAILURE
from service.cli.options import Json, parse_model
from service.cli.output import print_message, print_record
from service.cli.progress import build_progress

if TYPE_CHECKING:
    from service.client import Client, ModelRef, Record

VerifiedModel = Annotated[
    str | None,
    Argument(
        metavar="[MODEL]",
        show_default=False,
        help="name, name@alias or name:version (default: the version of every alias).",
    ),
]


def verify(
    model: VerifiedModel = None,
    accept: Annotated[
        bool, Option("--accept", help="Accept the answers of now, so that the version is served again.")
    ] = False,
    json: Json = False,
) -> None:
    """Measure versions again, on the rows of their builds.

    A name without version stands for all its ready versions. The exit code is 1 when a version answers
    differently or cannot be measured.
    """
    ref = parse_model(model) if model is not None else None
    if accept and (ref is None or (ref.version is None and not ref.alias)):
        raise BadParameter("--accept needs one version: write name:version or name@alias")
    with connect() as client:
        versions = sorted(set(_versions(client, ref)))
        results = [_verify(client, name, version, accept) for name, version in versions]
    agreed = all(r["verification"] and r["verification"]["state"] == "agreed" for r in results)
    print_record(json, {"agreed": agreed, "versions": results}, lambda: _print(results))
    if accept and not all(map(_own_runtime_answers, results)):
        print_message(
            "nothing was accepted: the version's runtime fails. Publish it again or promote another"
        )
    if not agreed:
        raise Exit(FAILURE)


def _versions(client: Client, ref: ModelRef | None) -> Iterator[tuple[str, int]]:
    from registry.errors import NotFound
    from service.client import path

    if ref is None:
        for record in client.pages(path("models"))["items"]:
            yield from ((record["name"], version) for version in record["aliases"].values())
    elif ref.version is not None:
        yield ref.name, ref.version
    elif ref.alias:
        aliases = client.call("GET", path("models", ref.name))["aliases"]
        if ref.alias not in aliases:
            raise NotFound("alias", ref)
        yield ref.name, aliases[ref.alias]
    else:
        for record in client.pages(path("models", ref.name, "versions"))["items"]:
            if record["state"] == "ready":
                yield ref.name, record["version"]


def _verify(client: Client, name: str, version: int, accept: bool) -> Record:
    """Verify one version and return `{model, version, verification, error}`."""
    from service.client import ServerRefused

    try:
        client.verify(name, version, accept)
    except ServerRefused as refused:
        if refused.status != 409:
            raise
        return {"model": name, "version": version, "verification": None, "error": str(refused)}
    with build_progress(f"measuring {name}:{version}") as show:
        record = client.wait_verified(name, version, show, print_message)
    return {"model": name, "version": version, "verification": record["verification"], "error": None}


def _own_runtime_answers(result: Record) -> bool:
    """Whether a check that accepts could compare the version's own runtime, or was not made at all."""
    return result["verification"] is None or result["verification"]["fallback"] in (None, "online")


def _print(results: list[Record]) -> None:
    if not results:
        print_message("no versions to verify")
    for result in results:
        for line in verification_lines(result):
            echo(line)
