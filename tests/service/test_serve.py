"""`trivium serve` as a process: several web processes, the worker child, signals, and trusted proxies."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from service import serve
from service.config import Settings
from service.worker.process import CHILD_NICE
from tests.harness.server import Server, serving

ROWS = [[0.0], [1.0], [2.0], [3.0]]
CSV = b"x\n0\n1\n2\n3\n"
BODY = b'{"instances": [{"x": 3}]}'


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two web processes and two versions of `switch` with opposite labels; 1 is champion."""
    folder = tmp_path_factory.mktemp("several")
    with Server(folder / "home", folder / "log", workers=2) as server:
        server.start()
        for labels, fields in (((0, 0, 1, 1), {"alias": "champion"}), ((1, 1, 0, 0), {})):
            record = server.publish("switch", LogisticRegression().fit(ROWS, labels), CSV, **fields)
            assert record["state"] == "ready"
        yield server


def web_processes(server: Server) -> dict[int, psutil.Process]:
    return {p.pid: p for p in server.descendants() if "service.serve" in p.cmdline()}


def distinct_results(request: Callable[[], Any], count: int = 60) -> set[Any]:
    """Repeat a request; each uses a new connection, which any of the processes may accept."""
    return {request() for _ in range(count)}


def wait_for_all(request: Callable[[], Any], expected: Any) -> None:
    """Wait until every process returns `expected`."""
    wait_for(lambda: distinct_results(request), lambda results: results == {expected})


def wait_for(read: Callable[[], Any], condition: Callable[[Any], bool], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not condition(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.02)
    return value


def worker_processes(server: Server) -> list[psutil.Process]:
    return [p for p in server.descendants() if "service.worker.process" in p.cmdline()]


def test_every_process_follows_a_promotion(several: Server) -> None:
    def label() -> tuple[int, int]:
        answer = several.call_json("POST", "/v1/models/switch/predict", json.loads(BODY))
        return answer["model"]["version"], answer["predictions"][0]["label"]

    assert distinct_results(label) == {(1, 1)}
    several.call_json("PUT", "/v1/models/switch/aliases/champion", {"version": 2})
    wait_for_all(label, (2, 0))
    several.call_json("POST", "/v1/models/switch/aliases/champion/rollback", {})
    wait_for_all(label, (1, 1))


def test_every_process_rejects_a_revoked_key(several: Server) -> None:
    created = several.call_json("POST", "/v1/keys", {"name": "short", "scopes": ["predict"]})

    def status() -> int:
        return several.call("POST", "/v1/models/switch/predict", BODY, key=created["key"])[0]

    wait_for_all(status, 200)
    several.call_json("DELETE", f"/v1/keys/{created['id']}")
    wait_for_all(status, 401)


def test_every_process_documents_a_new_model(several: Server) -> None:
    several.publish("novel", LogisticRegression().fit(ROWS, (0, 1, 1, 0)), CSV, alias="champion")

    def is_documented() -> bool:
        return "/v1/models/novel/predict" in several.call_json("GET", "/openapi.json")["paths"]

    wait_for_all(is_documented, True)


def test_metrics_include_all_processes(several: Server) -> None:
    def predicted() -> float:
        text = several.call("GET", "/metrics")[1].decode()
        return sum(map(float, re.findall(r'trivium_predicted_rows_total\{model="switch".*\} (\S+)', text)))

    before = predicted()
    for _ in range(40):
        assert several.call("POST", "/v1/models/switch/predict", BODY)[0] == 200
    assert distinct_results(predicted, 10) == {before + 40}


def test_every_process_serves_requests(several: Server) -> None:
    before = {p.pid: sum(p.cpu_times()[:2]) for p in web_processes(several).values()}
    for _ in range(400):
        several.call("GET", "/v1/models")
    after = {p.pid: sum(p.cpu_times()[:2]) for p in web_processes(several).values()}
    assert len(before) == 2
    assert all(after[pid] > before[pid] for pid in before)


def test_a_killed_web_process_is_replaced_and_its_models_are_no_longer_counted(several: Server) -> None:
    def loaded() -> float:
        text = several.call("GET", "/metrics")[1].decode()
        return sum(map(float, re.findall(r"trivium_loaded_models\{.*\} (\S+)", text)))

    before = web_processes(several)
    for _ in range(40):
        several.call("POST", "/v1/models/switch/predict", BODY)
    loaded_before = loaded()
    killed_pid = next(iter(before.values()))
    children = killed_pid.children(recursive=True)
    killed_pid.kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    wait_for(lambda: web_processes(several), lambda now: len(now.keys() - before.keys()) == 1)
    assert distinct_results(lambda: several.call("POST", "/v1/models/switch/predict", BODY)[0]) == {200}
    assert loaded() <= loaded_before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_batch_worker_is_replaced_at_once_and_ends_with_its_server(
    tmp_path: Path, workers: int
) -> None:
    with Server(tmp_path / "home", tmp_path / "log", workers=workers, worker=True) as server:
        server.start()
        for number in range(4):
            wait_for(lambda: server.log.read_text().count("worker.started"), lambda n, k=number: n > k)
            (killed_pid,) = worker_processes(server)
            if (
                sys.platform == "linux"
            ):  # the lanes yield to predictions, the thread that extends leases does not
                nice = {
                    os.getpriority(os.PRIO_PROCESS, t.id) - killed_pid.nice() for t in killed_pid.threads()
                }
                assert nice == {0, CHILD_NICE}
            killed_pid.kill()
            psutil.wait_procs([killed_pid], timeout=10)
        (last,) = wait_for(lambda: worker_processes(server), lambda processes: len(processes) == 1)
        assert server.terminate() == 0
    assert psutil.wait_procs([last], timeout=10)[1] == []
    assert "Traceback" not in server.log.read_text()


def test_a_server_without_a_worker_starts_none(several: Server) -> None:
    assert worker_processes(several) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_all_processes(tmp_path: Path, workers: int) -> None:
    with Server(tmp_path / "home", tmp_path / "log", workers=workers) as server:
        server.start()
        children = server.descendants()
        assert server.terminate() == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert "Traceback" not in server.log.read_text()


def test_no_process_outlives_a_killed_server_and_its_port_is_free(tmp_path: Path) -> None:
    with Server(tmp_path / "home", tmp_path / "log", workers=2) as server:
        server.start()
        wait_for(lambda: web_processes(server), lambda processes: len(processes) == 2)
        assert server.kill() == []
        server.start()
        assert server.terminate() == 0


CLIENT_PROBE = """
import sys
from service.config import Settings
from service.serve import serve
from service.web import health

async def client_and_scheme(request):
    from starlette.responses import JSONResponse
    return JSONResponse([request.client.host, request.url.scheme])

health.livez = client_and_scheme
sys.exit(serve(Settings(port=0), workers={workers}, worker=False))
"""
"""A server whose `/livez` returns the client's address and the scheme of the request."""

FORWARDED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


def test_forwarded_headers_are_ignored_by_default(tmp_path: Path) -> None:
    with serving(tmp_path / "home", main=CLIENT_PROBE) as server, server.client() as client:
        assert client.get("/livez", headers=FORWARDED).json() == ["127.0.0.1", "http"]


@pytest.mark.parametrize(
    ("trusted_proxies", "expected"),
    [
        ("127.0.0.1", ["203.0.113.7", "https"]),
        ("10.1.2.3, 127.0.0.0/8", ["203.0.113.7", "https"]),
        ("10.1.2.3,10.2.0.0/16", ["127.0.0.1", "http"]),
    ],
)
def test_forwarded_headers_are_used_only_from_a_trusted_proxy(
    tmp_path: Path, trusted_proxies: str, expected: list[str]
) -> None:
    proxies = {"trusted_proxies": trusted_proxies}
    with serving(tmp_path / "home", main=CLIENT_PROBE, **proxies) as server, server.client() as client:
        assert client.get("/livez", headers=FORWARDED).json() == expected


@pytest.mark.parametrize("value", ["proxy.example.com", "*", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.1,,"])
def test_a_trusted_proxy_that_is_not_an_address_is_rejected(value: str) -> None:
    with pytest.raises(ValidationError, match="trusted_proxies"):
        Settings(trusted_proxies=value)


def test_each_server_has_its_own_metrics_directory(tmp_path: Path) -> None:
    host, ended = socket.gethostname(), subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"{host}-{ended.pid}", f"{host}-1", f"{host}-x-{ended.pid}"):
        (tmp_path / name).mkdir()
    own = serve.create_metrics_directory(tmp_path)
    assert own.name == f"{host}-{os.getpid()}"
    remaining = {p.name for p in tmp_path.iterdir()}
    assert remaining == {own.name, f"{host}-1", f"{host}-x-{ended.pid}"}
