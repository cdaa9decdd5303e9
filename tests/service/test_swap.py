"""An alias that moves under load costs no request, and who was told of the move is answered by it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from sklearn.covariance import EllipticEnvelope
from sklearn.linear_model import LogisticRegression

from tests.harness.load import LoadReport, generate_load, post_request
from tests.harness.server import Server

ROWS = [[0.0], [1.0], [2.0], [3.0]]
CSV = b"x\n0\n1\n2\n3\n"
MOVES = 20
REQUESTS = 2000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`swap` has two ONNX versions, the first of which is champion, and a third that is isolated."""
    folder = tmp_path_factory.mktemp("swap")
    with Server(folder / "home", folder / "log") as server:
        server.start()
        runtimes = [
            server.publish("swap", model, CSV, **more)["runtime"]
            for model, more in (
                (LogisticRegression().fit(ROWS, (0, 0, 1, 1)), {"alias": "champion"}),
                (LogisticRegression().fit(ROWS, (1, 1, 0, 0)), {}),
                (EllipticEnvelope(random_state=0).fit(ROWS), {}),
            )
        ]
        assert runtimes == ["onnx", "onnx", "isolated"]
        yield server


class Moves:
    """Which version was asked for when; and whether each answer came from one that it may come from."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._moves: list[tuple[float, float, int]] = [(0.0, 0.0, 1)]  # asked, answered, version
        self.answered: dict[int, int] = {}
        self.enough = asyncio.Event()
        self._until = 0
        self._seen: list[tuple[float, float, int]] = []

    async def to(self, version: int) -> None:
        asked = time.perf_counter()
        await asyncio.to_thread(
            self._server.call_json, "PUT", "/v1/models/swap/aliases/champion", {"version": version}
        )
        self._moves.append((asked, time.perf_counter(), version))
        self._until = len(self._seen) + REQUESTS // MOVES
        self.enough.clear()

    def seen(self, sent: float, body: bytes) -> None:
        version = json.loads(body)["model"]["version"]
        self.answered[version] = self.answered.get(version, 0) + 1
        self._seen.append((sent, time.perf_counter(), version))
        if len(self._seen) >= self._until:
            self.enough.set()

    def stale(self) -> list[tuple[float, int]]:
        """Answers of a version that had been replaced, and said to be, before they were asked for."""
        found = []
        for sent, received, version in self._seen:
            settled = max((m for m in self._moves if m[1] <= sent), key=lambda m: m[1])
            later = {m[2] for m in self._moves if settled[1] <= m[1] and m[0] <= received}
            if version not in later | {settled[2]}:
                found.append((sent, version))
        return found


async def _swap(server: Server, versions: list[int]) -> tuple[LoadReport, Moves]:
    moves, busy = Moves(server), True
    content = post_request(server.port, "/v1/models/swap/predict", b'{"instances": [{"x": 3}]}', server.key)
    load = asyncio.create_task(
        generate_load(server.port, content, concurrency=32, keep_going=lambda: busy, on_response=moves.seen)
    )
    for version in versions:
        await moves.to(version)
        async with asyncio.timeout(30):
            await moves.enough.wait()
    busy = False
    return await load, moves


def test_an_alias_moves_under_load_without_an_error_or_a_stale_answer(server: Server) -> None:
    load, moves = asyncio.run(_swap(server, [2, 1] * (MOVES // 2)))
    assert load.errors == []
    assert load.requests >= REQUESTS
    assert set(moves.answered) == {1, 2}
    assert moves.stale() == []


def test_the_same_holds_for_a_move_to_a_version_in_a_process_of_its_own(server: Server) -> None:
    load, moves = asyncio.run(_swap(server, [3, 1, 3, 2, 3]))
    assert load.errors == []
    assert set(moves.answered) == {1, 2, 3}
    assert moves.stale() == []
