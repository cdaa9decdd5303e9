"""From a file to a version that is champion, over HTTP."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from demo_steps import Failed, say
from service.cli.descriptions import parity_line
from service.client import Client, Record, ServerRefused, path


def publish(client: Client, name: str, file: Path, example: Path, about: Record) -> Record:
    """A new version, or the one that holds these very bytes already; the champion either way.

    `about` goes into the request: format, target, metrics. Raises `Failed` when the build rejects it.
    """
    version = _there_already(client, name, file) or _new(client, name, file, example, about)
    if version["state"] != "ready":
        raise Failed(f"{name} should be ready; its report: {version['report']}")
    _describe(version)
    number = version["version"]
    if "champion" not in version["aliases"]:
        client.call("PUT", path("models", name, "aliases", "champion"), {"version": number, "reason": "demo"})
    say("Promoted", f"{name}@champion is version {number}")
    return version


def _there_already(client: Client, name: str, file: Path) -> Record | None:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for version in _versions(client, name):
        if version["artifact"] == sha256 and version["state"] == "ready":
            say("Published", f"already, as version {version['version']}: the file has not changed")
            return version
    return None


def _new(client: Client, name: str, file: Path, example: Path, about: Record) -> Record:
    started = time.perf_counter()
    request = {
        "artifact": client.upload(file),
        "example": {"artifact": client.upload(example), "media_type": "text/csv"},
        "tags": {"data": name},
        **about,
    }
    created = client.publish(name, request)
    version = client.wait(name, created["version"])
    took = time.perf_counter() - started
    say("Published", f"{name} version {version['version']} over HTTP: {version['state']} after {took:.1f} s")
    return version


def _versions(client: Client, name: str) -> list[Record]:
    try:
        return list(client.pages(path("models", name, "versions"))["items"])
    except ServerRefused as error:
        if error.status == 404:
            return []
        raise


def _describe(version: Record) -> None:
    say("Runtime", f"{version['runtime']}: {version['runtime_reason']}")
    report = version["report"]
    if "parity" in report:
        say("Parity", parity_line(report["parity"]))
    for warning in report["warnings"]:
        say("Warning", warning)
