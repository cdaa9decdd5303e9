"""kill -9 of the server while clients publish, and an audit of every promise that was made to them.

Publishers upload artifacts (some of them slowly, so that a kill interrupts the body), publish them with an
Idempotency-Key each, and repeat every call that was not acknowledged. Meanwhile the server is killed at
random times and started again. At the end `_audit` checks every acknowledged version.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import random
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.harness.models import pickle_model, sha256_of
from tests.harness.server import Server

CHUNK_BYTES = 64 * 1024
MODEL_NAMES = ("alpha", "beta", "gamma")
BUILDS_TIMEOUT_S = 180.0
"""After the last restart, all builds must be over within this time."""


@dataclass
class AcknowledgedVersion:
    """A version that the server acknowledged to a publisher, and the request for it."""

    model: str
    version: int
    artifact: str
    key: str
    body: dict[str, Any]


@dataclass
class ServerKillReport:
    """Counts and times of a run, and the faults that the audit reports."""

    acknowledged: list[AcknowledgedVersion] = field(default_factory=list)
    uploads: int = 0
    retries: int = 0  # calls that a kill interrupted, or that could not connect
    starts_s: list[float] = field(default_factory=list)
    killed_while_building: int = 0
    resumed_s: float = 0.0  # from the last restart until all builds were over
    states: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Publisher(threading.Thread):
    """Publishes until `stopping` is set; completes the publish that it is at."""

    def __init__(
        self, server: Server, report: ServerKillReport, stopping: threading.Event, seed: int
    ) -> None:
        super().__init__(daemon=True)
        self._server, self._report, self._stopping = server, report, stopping
        self._random = random.Random(seed)
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._publish()
        except Exception as error:  # the main thread reads it and fails the run
            self.error = error

    def _publish(self) -> None:
        content = pickle_model(_unique_model(self._random))
        artifact = sha256_of(content)
        upload = _upload_slowly if self._random.random() < 0.4 else _upload
        while not upload(self._server, content, artifact):
            self._report.retries += 1
        self._report.uploads += 1
        name, key = self._random.choice(MODEL_NAMES), str(uuid.uuid4())
        body = {"artifact": artifact, "format": "sklearn-joblib", "tags": {"key": key}}
        while (version := _post_version(self._server, name, key, body)) is None:
            self._report.retries += 1
        self._report.acknowledged.append(AcknowledgedVersion(name, version, artifact, key, body))


def kill_server(
    server: Server, rounds: int, publishers: int = 3, seed: int = 1, max_round_s: float = 2.0
) -> ServerKillReport:
    """Publish and kill the server `rounds` times, after at most `max_round_s` each; then wait and audit."""
    report, stopping, randomness = ServerKillReport(), threading.Event(), random.Random(seed)
    server.start()
    threads = [Publisher(server, report, stopping, seed * 1000 + n) for n in range(publishers)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        time.sleep(randomness.uniform(0.1, max_round_s))
        if number == rounds - 1:
            _wait_for_running_build(server)
        report.killed_while_building += bool(_running_builds(server))
        orphans = server.kill()
        report.faults += [f"process {o.pid} outlived its server" for o in orphans]
        report.starts_s.append(server.start())
    stopping.set()
    for thread in threads:
        thread.join(60)
        if thread.is_alive() or thread.error is not None:
            report.faults.append(f"a publisher failed: {thread.error!r}")
    _wait_for_builds(server, report)
    _audit(server, report)
    return report


def _upload(server: Server, content: bytes, sha256: str) -> bool:
    """Upload an artifact; return False when the call was interrupted."""
    try:
        status, answer = server.call("PUT", f"/v1/artifacts/{sha256}", content)
    except OSError:
        time.sleep(0.02)
        return False
    if status not in (200, 201):
        raise RuntimeError(f"PUT: {status} {answer!r}")
    return True


def _upload_slowly(server: Server, content: bytes, sha256: str) -> bool:
    """Upload in chunks over half a second; return False when the call was interrupted."""
    chunks = [content[i : i + CHUNK_BYTES] for i in range(0, len(content), CHUNK_BYTES)]

    def body() -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk[: len(chunk) // 2]
            time.sleep(0.5 / len(chunks))
            yield chunk[len(chunk) // 2 :]

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Length": str(len(content))}
    try:
        connection.request("PUT", f"/v1/artifacts/{sha256}", body(), headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException):
        time.sleep(0.02)
        return False
    finally:
        connection.close()
    if response.status not in (200, 201):
        raise RuntimeError(f"PUT: {response.status} {answer!r}")
    return True


def _post_version(server: Server, name: str, key: str, body: dict[str, Any]) -> int | None:
    """Publish; return the acknowledged version, or None when the call was interrupted."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    try:
        status, answer = server.call(
            "POST", f"/v1/models/{name}/versions", json.dumps(body).encode(), headers=headers
        )
    except OSError:
        time.sleep(0.02)
        return None
    if status != 202:
        raise RuntimeError(f"POST: {status} {answer!r}")
    return int(json.loads(answer)["version"])


def _unique_model(randomness: random.Random) -> Any:
    """Return a fitted model with unique bytes; 30 % of the models have 4 MB."""
    from sklearn.linear_model import LogisticRegression

    numbers = np.random.default_rng(randomness.randrange(2**32))
    rows = numbers.normal(size=(40, 3))
    model = LogisticRegression().fit(rows, rows[:, 0] > 0)
    if randomness.random() < 0.3:
        model.ballast_ = numbers.bytes(4 << 20)
    return model


def _running_builds(server: Server) -> int:
    """Return the number of claimed builds, read from the database."""
    with contextlib.closing(sqlite3.connect(server.home / "registry.db")) as database:
        row = database.execute("SELECT count(*) FROM tasks WHERE state = 'running'").fetchone()
    return int(row[0])


def _wait_for_running_build(server: Server, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not _running_builds(server) and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_for_builds(server: Server, report: ServerKillReport) -> None:
    deadline = server.started + BUILDS_TIMEOUT_S
    while any(v["state"] == "building" for name in MODEL_NAMES for v in _list_versions(server, name)):
        if time.monotonic() > deadline:
            report.faults.append(f"builds were not over {BUILDS_TIMEOUT_S:g} s after the last start")
            return
        time.sleep(0.1)
    report.resumed_s = time.monotonic() - server.started


def _list_versions(server: Server, name: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    token = ""
    while True:
        status, answer = server.call("GET", f"/v1/models/{name}/versions?page_size=500{token}")
        if status == 404:
            return items
        page = json.loads(answer)
        items += page["items"]
        if not page["next_page_token"]:
            return items
        token = f"&page_token={page['next_page_token']}"


def _audit(server: Server, report: ServerKillReport) -> None:
    """Check that acknowledged versions exist once, are ready or rejected, and that blobs are complete."""
    versions: dict[tuple[str, int], dict[str, Any]] = {}
    for name in MODEL_NAMES:
        listed = _list_versions(server, name)
        versions |= {(name, v["version"]): v for v in listed}
        report.faults += _duplicate_faults(name, listed)
    if len(versions) != len(report.acknowledged):
        report.faults.append(f"{len(versions)} versions, {len(report.acknowledged)} acknowledged")
    for acknowledged in report.acknowledged:
        version = versions.get((acknowledged.model, acknowledged.version))
        _audit_version(server, report, acknowledged, version)
    for acknowledged in report.acknowledged[-20:]:
        repeated = _post_version(server, acknowledged.model, acknowledged.key, acknowledged.body)
        if repeated != acknowledged.version:
            report.faults.append(f"the answer to {acknowledged.key} changed")
    report.faults += _storage_faults(server.home)


def _duplicate_faults(name: str, listed: list[dict[str, Any]]) -> Iterator[str]:
    if len({v["version"] for v in listed}) != len(listed):
        yield f"{name} has two versions with the same number"
    for key, count in Counter(v["tags"]["key"] for v in listed).items():
        if count > 1:
            yield f"the idempotency key {key} created {count} versions of {name}"


def _audit_version(
    server: Server,
    report: ServerKillReport,
    acknowledged: AcknowledgedVersion,
    version: dict[str, Any] | None,
) -> None:
    name, number = acknowledged.model, acknowledged.version
    if (
        version is None
        or version["artifact"] != acknowledged.artifact
        or version["tags"]["key"] != acknowledged.key
    ):
        report.faults.append(f"{name}:{number} was acknowledged and is {version}")
        return
    report.states[version["state"]] += 1
    if version["state"] == "rejected":
        report.rejected.append(str((version["report"] or {}).get("reason")))
    elif version["state"] != "ready":
        report.faults.append(f"{name}:{number} is {version['state']}")
    status, content = server.call("GET", f"/v1/models/{name}/versions/{number}/artifact")
    if status != 200 or sha256_of(content) != acknowledged.artifact:
        report.faults.append(f"the artifact of {name}:{number} differs from the uploaded one")


def _storage_faults(home: Path) -> Iterator[str]:
    for blob in (home / "blobs").glob("[0-9a-f][0-9a-f]/*"):
        with blob.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != blob.name:
                yield f"{blob.name} is at its final path and incomplete"
    with contextlib.closing(sqlite3.connect(home / "registry.db")) as database:
        if (result := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield f"the database is damaged: {result}"
        if database.execute("PRAGMA foreign_key_check").fetchall():
            yield "a row refers to a row that does not exist"
