"""`trivium traffic`: split an alias's calls over versions, and let a shadow answer too."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, BadParameter, Option, echo

from service.cli.connection import connect
from service.cli.descriptions import traffic_lines
from service.cli.options import Json, Reason, parse_model
from service.cli.output import print_record

DEFAULT_ALIAS = "champion"


def traffic(
    model: Annotated[str, Argument(metavar="MODEL", show_default=False, help="name or name@alias.")],
    weights: Annotated[
        list[str] | None,
        Option("--weight", metavar="VERSION=PERCENT", help="A version's share; repeat it, the sum is 100."),
    ] = None,
    sticky: Annotated[
        str | None, Option(metavar="HEADER", help="Keep callers with the same value at one version.")
    ] = None,
    max_error_rate: Annotated[
        float | None, Option(help="Share of a canary's calls that may fail, such as 0.02.")
    ] = None,
    max_p99_ms: Annotated[float | None, Option(help="A canary's latency bound (99th percentile).")] = None,
    shadow: Annotated[
        str | None, Option(metavar="VERSION|ALIAS", help="Let this version answer too, and compare it.")
    ] = None,
    end: Annotated[
        bool, Option("--end", help="End it: the alias's version answers every call, without a shadow.")
    ] = False,
    reason: Reason = None,
    json: Json = False,
) -> None:
    """Split an alias's calls over versions, or show them.

    Options that are left out keep their values; --end removes them all.
    """
    from service.client import path

    ref = parse_model(model)
    if ref.version is not None:
        raise BadParameter(f"{model!r}: expected name or name@alias; an alias's calls are split")
    url = path("models", ref.name, "aliases", ref.alias or DEFAULT_ALIAS, "traffic")
    changes: dict[str, Any] = {
        "weights": None if weights is None else _parse_weights(weights),
        "sticky_header": sticky,
        "shadow": int(shadow) if shadow is not None and shadow.isdecimal() else shadow,
    }
    bounds = {"error_rate": max_error_rate, "p99_ms": max_p99_ms}
    is_changed = any(value is not None for value in (*changes.values(), *bounds.values()))
    if end and is_changed:
        raise BadParameter("--end removes all settings; leave out the others")
    with connect() as client:
        if end:
            client.call("DELETE", url)
        record = client.call("GET", url)
        if is_changed:
            record = client.call("PUT", url, _merge(record, changes, bounds) | {"reason": reason})
    print_record(json, record, lambda: echo("\n".join(traffic_lines(record))))


def _merge(record: dict[str, Any], changes: dict[str, Any], bounds: dict[str, Any]) -> dict[str, Any]:
    """Return the request that changes the settings of `record`."""
    # a version with a weight of 0, such as a withdrawn canary, may be archived by now
    weights = {version: weight for version, weight in record["weights"].items() if weight}
    current_settings = record | {"weights": weights}
    merged = {name: current_settings[name] if value is None else value for name, value in changes.items()}
    current = record["bounds"] or dict.fromkeys(bounds)
    limits = {name: current[name] if value is None else value for name, value in bounds.items()}
    return merged | ({"bounds": limits} if any(value is not None for value in limits.values()) else {})


def _parse_weights(texts: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        version, _, percent = text.partition("=")
        try:
            weight = float(percent)
        except ValueError:
            weight = -1.0
        if not version.isdigit() or weight < 0:
            raise BadParameter(f"{text!r}: expected VERSION=PERCENT, such as 2=10", param_hint="--weight")
        if version in weights:
            raise BadParameter(f"version {version} is repeated", param_hint="--weight")
        weights[version] = weight
    return weights
