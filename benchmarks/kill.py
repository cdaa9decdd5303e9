"""kill -9 of the server, again and again, while clients publish: is anything lost that was acknowledged?

    python -m benchmarks.kill [--rounds 30] [--publishers 3] [--seed 1] [--json]

Publishers upload artifacts (some in slow chunks, so that a kill falls into the middle of a body) and
publish them, each with its own Idempotency-Key, and repeat what was not acknowledged. Meanwhile the
server is killed at random moments and started again. At the end every promise is checked, see `audit`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._support import Server, machine, pickled, sha256_of

CHUNK = 64 * 1024
MODELS = ("alpha", "beta", "gamma")
BUILT_S = 180.0
"""Longest to wait for the builds that are left at the end."""


@dataclass
class Published:
    """What a publisher was told: this version exists."""

    model: str
    version: int
    artifact: str
    key: str
    body: dict[str, Any]


@dataclass
class Soak:
    """What happened, and at the end what was found wrong."""

    acknowledged: list[Published] = field(default_factory=list)
    uploads: int = 0
    retries: int = 0  # calls that the kills cut off, or that found no server
    starts_s: list[float] = field(default_factory=list)
    killed_while_building: int = 0
    resumed_s: float = 0.0  # from the last restart until every build was over
    states: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Publisher(threading.Thread):
    """Publishes until told to stop, and finishes what it has begun."""

    def __init__(self, server: Server, soak: Soak, stopping: threading.Event, seed: int) -> None:
        super().__init__(daemon=True)
        self._server, self._soak, self._stopping = server, soak, stopping
        self._random = random.Random(seed)
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._publish()
        except Exception as error:  # told to the main thread, which fails the run
            self.error = error

    def _publish(self) -> None:
        content = pickled(small_model(self._random))
        artifact = sha256_of(content)
        slow = self._random.random() < 0.4
        while not (_put_slowly(self._server, content, artifact) if slow else self._put(content, artifact)):
            self._soak.retries += 1
        self._soak.uploads += 1
        name, key = self._random.choice(MODELS), str(uuid.uuid4())
        body = {"artifact": artifact, "format": "sklearn-joblib", "tags": {"key": key}}
        while (version := post(self._server, name, key, body)) is None:
            self._soak.retries += 1
        self._soak.acknowledged.append(Published(name, version, artifact, key, body))

    def _put(self, content: bytes, sha256: str) -> bool:
        try:
            status, answer = self._server.call("PUT", f"/v1/artifacts/{sha256}", content)
        except OSError:
            time.sleep(0.02)
            return False
        if status not in (200, 201):
            raise RuntimeError(f"PUT: {status} {answer!r}")
        return True


def post(server: Server, name: str, key: str, body: dict[str, Any]) -> int | None:
    """The version that was acknowledged; None when the call was cut off."""
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


def small_model(chance: random.Random) -> Any:
    """A fitted model like no other, now and then 4 MB large."""
    from sklearn.linear_model import LogisticRegression

    numbers = np.random.default_rng(chance.randrange(2**32))
    rows = numbers.normal(size=(40, 3))
    model = LogisticRegression().fit(rows, rows[:, 0] > 0)
    if chance.random() < 0.3:
        model.ballast_ = numbers.bytes(4 << 20)
    return model


def _put_slowly(server: Server, content: bytes, sha256: str) -> bool:
    """The body in chunks with a pause after each, for half a second in all; False when it was cut off."""
    chunks = [content[i : i + CHUNK] for i in range(0, len(content), CHUNK)]

    def body() -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk[: len(chunk) // 2]
            time.sleep(0.5 / len(chunks))
            yield chunk[len(chunk) // 2 :]

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {server.key}", "Content-Length": str(len(content))}
    try:
        connection.request("PUT", f"/v1/artifacts/{sha256}", body(), headers)
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException):
        time.sleep(0.02)
        return False
    finally:
        connection.close()
    if answer.status not in (200, 201):
        raise RuntimeError(f"PUT: {answer.status} {said!r}")
    return True


def soak(server: Server, rounds: int, publishers: int = 3, seed: int = 1) -> Soak:
    """Publish and kill for so many rounds, then let everything come to its end and check it."""
    found, stopping, chance = Soak(), threading.Event(), random.Random(seed)
    server.start()
    threads = [Publisher(server, found, stopping, seed * 1000 + n) for n in range(publishers)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        time.sleep(chance.uniform(0.1, 2.0))
        if number == rounds - 1:
            _await_building(server)
        found.killed_while_building += bool(_unfinished(server))
        orphans = server.kill()
        found.faults += [f"process {o.pid} outlived its server" for o in orphans]
        found.starts_s.append(server.start())
    stopping.set()
    for thread in threads:
        thread.join(60)
        if thread.is_alive() or thread.error is not None:
            found.faults.append(f"a publisher failed: {thread.error!r}")
    _await_builds(server, found)
    audit(server, found)
    return found


def _unfinished(server: Server) -> int:
    """How many builds are claimed, as the database has it."""
    with contextlib.closing(sqlite3.connect(server.home / "registry.db")) as database:
        rows = database.execute("SELECT count(*) FROM tasks WHERE state = 'running'").fetchone()
    return int(rows[0])


def _await_building(server: Server, within_s: float = 20.0) -> None:
    until = time.monotonic() + within_s
    while not _unfinished(server) and time.monotonic() < until:
        time.sleep(0.01)


def _await_builds(server: Server, found: Soak) -> None:
    until = server.started + BUILT_S
    while any(v["state"] == "building" for name in MODELS for v in versions(server, name)):
        if time.monotonic() > until:
            found.faults.append(f"builds were not over {BUILT_S:g} s after the last start")
            return
        time.sleep(0.1)
    found.resumed_s = time.monotonic() - server.started


def versions(server: Server, name: str) -> list[dict[str, Any]]:
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


def audit(server: Server, found: Soak) -> None:
    """Every acknowledged version exists once and is ready or rejected; every blob is whole."""
    fault = found.faults.append
    by_number: dict[tuple[str, int], dict[str, Any]] = {}
    for name in MODELS:
        listed = versions(server, name)
        by_number |= {(name, v["version"]): v for v in listed}
        if len({v["version"] for v in listed}) != len(listed):
            fault(f"{name} has two versions of one number")
        for key, count in Counter(v["tags"]["key"] for v in listed).items():
            if count > 1:
                fault(f"the idempotency key {key} made {count} versions of {name}")
    if len(by_number) != len(found.acknowledged):
        fault(f"{len(by_number)} versions, {len(found.acknowledged)} acknowledged")
    for told in found.acknowledged:
        version = by_number.get((told.model, told.version))
        if version is None or version["artifact"] != told.artifact or version["tags"]["key"] != told.key:
            fault(f"{told.model}:{told.version} was acknowledged and is {version}")
            continue
        found.states[version["state"]] += 1
        if version["state"] == "rejected":
            found.rejected.append(str((version["report"] or {}).get("reason")))
        elif version["state"] != "ready":
            fault(f"{told.model}:{told.version} is {version['state']}")
        status, content = server.call("GET", f"/v1/models/{told.model}/versions/{told.version}/artifact")
        if status != 200 or sha256_of(content) != told.artifact:
            fault(f"the artifact of {told.model}:{told.version} is not what was put")
    for told in found.acknowledged[-20:]:
        if post(server, told.model, told.key, told.body) != told.version:
            fault(f"the answer to {told.key} changed")
    found.faults += _on_disk(server.home)


def _on_disk(home: Path) -> Iterator[str]:
    for blob in (home / "blobs").glob("[0-9a-f][0-9a-f]/*"):
        with blob.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != blob.name:
                yield f"{blob.name} is at its final path and not whole"
    with contextlib.closing(sqlite3.connect(home / "registry.db")) as database:
        if (said := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            yield f"the database is damaged: {said}"
        if database.execute("PRAGMA foreign_key_check").fetchall():
            yield "a row refers to one that is not there"


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rounds", type=int, default=30)
    asked.add_argument("--publishers", type=int, default=3)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--json", action="store_true")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with Server(home, Path(folder) / "log", build_concurrency=2) as server:
            found = soak(server, given.rounds, given.publishers, given.seed)
    figures = {
        "kills": len(found.starts_s),
        "killed while building": found.killed_while_building,
        "uploads acknowledged": found.uploads,
        "versions acknowledged": len(found.acknowledged),
        "calls repeated": found.retries,
        "states": dict(found.states),
        "reasons of rejection": dict(Counter(found.rejected)),
        "slowest restart, s": round(max(found.starts_s), 2),
        "all built after the last restart, s": round(found.resumed_s, 1),
        "faults": found.faults,
    }
    if given.json:
        print(json.dumps(figures))
    else:
        print(machine(), *(f"{name}: {value}" for name, value in figures.items()), sep="\n")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
