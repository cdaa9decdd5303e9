"""Records in words: what a version is, what its build found, why it was rejected."""

from __future__ import annotations

from typing import Any

from typer import echo

from service.cli.shared import aliases_of, table, when

Record = dict[str, Any]


def why_rejected(record: Record) -> str:
    report = record.get("report") or {}
    return str(report.get("reason") or report.get("error") or "the report gives no reason")


def lines(record: Record) -> list[str]:
    """What somebody who has just published wants to know."""
    name = f"{record['model']}:{record['version']}"
    state = record["state"]
    if state == "rejected":
        return [f"{name} is rejected: {why_rejected(record)}"]
    if state == "building":
        return [f"{name} is building"]
    return [f"{name} is ready"]


def version_lines(record: Record) -> None:
    for line in lines(record):
        echo(line)


def model_lines(record: Record) -> None:
    echo(record["name"])
    if named := aliases_of(record):
        echo(f"aliases: {', '.join(named)}")
    echo(f"created: {when(record['created_at'])} by {record['created_by']}")


__all__ = ["lines", "model_lines", "table", "version_lines", "why_rejected"]
