"""Moving an alias under load fails no request; requests after the move get the new version."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sklearn.covariance import EllipticEnvelope

from service.online.batching import MIN_QUEUE
from tests.harness.load import LoadReport, generate_load, post_request
from tests.harness.server import Server, serving
from tests.service.estimators import numeric_rows

BODY = b'{"instances": [{"x0": 2.0, "x1": 0.0, "x2": 0.0}]}'
MOVE_COUNT = 20
REQUESTS = 2000


@pytest.fixture(scope="module")
def server(published_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose model `flag` has two ONNX versions, the first the champion, and an isolated third."""
    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("moves") / "home"))
    rows = numeric_rows()
    with serving(home) as server:
        with server.client() as client:
            listed = client.get("/v1/models/flag/versions").json()["items"]
        assert [version["runtime"] for version in listed] == ["onnx", "onnx"]
        model = EllipticEnvelope(random_state=0).fit(rows)
        published = server.publish("flag", model, rows.head(4).to_csv(index=False).encode())
        assert (published["version"], published["runtime"]) == (3, "isolated")
        yield server


class AliasMoves:
    """Moves of the alias and answers, with their times, to find answers of an outdated version."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._moves: list[tuple[float, float, int]] = [(0.0, 0.0, 1)]  # requested, confirmed, version
        self.answers_by_version: dict[int, int] = {}
        self.enough_answers = asyncio.Event()
        self._until = 0
        self._answers: list[tuple[float, float, int]] = []

    async def move_to(self, version: int) -> None:
        requested = time.perf_counter()
        await asyncio.to_thread(
            self._server.call_json, "PUT", "/v1/models/flag/aliases/champion", {"version": version}
        )
        self._moves.append((requested, time.perf_counter(), version))
        self._until = len(self._answers) + REQUESTS // MOVE_COUNT
        self.enough_answers.clear()

    def record(self, sent_at: float, body: bytes) -> None:
        version = json.loads(body)["model"]["version"]
        self.answers_by_version[version] = self.answers_by_version.get(version, 0) + 1
        self._answers.append((sent_at, time.perf_counter(), version))
        if len(self._answers) >= self._until:
            self.enough_answers.set()

    def stale_answers(self) -> list[tuple[float, int]]:
        """Return the answers of a version whose replacement was confirmed before the request was sent."""
        stale_answers = []
        for sent_at, received, version in self._answers:
            current = max((m for m in self._moves if m[1] <= sent_at), key=lambda m: m[1])
            later = {m[2] for m in self._moves if current[1] <= m[1] and m[0] <= received}
            if version not in later | {current[2]}:
                stale_answers.append((sent_at, version))
        return stale_answers


async def _move_under_load(
    server: Server, versions: list[int], concurrency: int = 32
) -> tuple[LoadReport, AliasMoves]:
    moves, running = AliasMoves(server), True
    content = post_request(server.port, "/v1/models/flag/predict", BODY, server.key)
    load = asyncio.create_task(
        generate_load(
            server.port,
            content,
            concurrency=concurrency,
            keep_going=lambda: running,
            on_response=moves.record,
        )
    )
    for version in versions:
        await moves.move_to(version)
        async with asyncio.timeout(30):
            await moves.enough_answers.wait()
    running = False
    return await load, moves


def test_an_alias_moves_under_load_without_an_error_or_a_stale_answer(server: Server) -> None:
    load, moves = asyncio.run(_move_under_load(server, [2, 1] * (MOVE_COUNT // 2)))
    assert load.errors == []
    assert load.requests >= REQUESTS
    assert set(moves.answers_by_version) == {1, 2}
    assert moves.stale_answers() == []


def test_an_alias_moves_to_an_isolated_version_under_load_without_an_error(server: Server) -> None:
    # as many calls as the queue of an expensive model holds in any case
    load, moves = asyncio.run(_move_under_load(server, [3, 1, 3, 2, 3], concurrency=MIN_QUEUE))
    assert load.errors == []
    assert set(moves.answers_by_version) == {1, 2, 3}
    assert moves.stale_answers() == []
