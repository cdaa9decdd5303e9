"""Publish a model file over HTTP and make it champion."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from demo_steps import Failed, print_step
from service.cli.descriptions import parity_line
from service.client import Client, Record, ServerRefused, path


def publish(client: Client, name: str, file: Path, example: Path, fields: Record) -> Record:
    """Publish `file`, unless a version with the same bytes exists, and make the version champion.

    `fields` are fields of the request: format, target, metrics. Raises `Failed` when the build rejects it.
    """
    version = _existing_version(client, name, file) or _new_version(client, name, file, example, fields)
    if version["state"] != "ready":
        raise Failed(f"{name} is {version['state']}, expected ready; its report: {version['report']}")
    _print_build(version)
    number = version["version"]
    if "champion" not in version["aliases"]:
        client.call("PUT", path("models", name, "aliases", "champion"), {"version": number, "reason": "demo"})
    print_step("Promoted", f"{name}@champion is version {number}")
    return version


def _existing_version(client: Client, name: str, file: Path) -> Record | None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for version in _versions(client, name):
        if version["artifact"] == sha256 and version["state"] == "ready":
            print_step("Published", f"already, as version {version['version']}: the file has not changed")
            return version
    return None


def _new_version(client: Client, name: str, file: Path, example: Path, fields: Record) -> Record:
    start = time.perf_counter()
    request = {
        "artifact": client.upload(file),
        "example": {"artifact": client.upload(example), "media_type": "text/csv"},
        "tags": {"data": name},
        **fields,
    }
    created = client.publish(name, request)
    version = client.wait(name, created["version"])
    seconds = time.perf_counter() - start
    print_step(
        "Published",
        f"{name} version {version['version']} over HTTP: {version['state']} after {seconds:.1f} s",
    )
    return version


def _versions(client: Client, name: str) -> list[Record]:
    try:
        return list(client.pages(path("models", name, "versions"))["items"])
    except ServerRefused as error:
        if error.status == 404:
            return []
        raise


def _print_build(version: Record) -> None:
    print_step("Runtime", f"{version['runtime']}: {version['runtime_reason']}")
    report = version["report"]
    if "parity" in report:
        print_step("Parity", parity_line(report["parity"]))
    for warning in report["warnings"]:
        print_step("Warning", warning)
