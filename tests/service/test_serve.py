"""`trivium serve` as a process: several web processes, the worker child, signals, and trusted proxies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import ValidationError
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from service import serve
from service.config import Settings
from service.worker.process import CHILD_NICE
from tests.harness.server import Server, serving
from tests.service.model_rows import add_models

ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
BODY = json.dumps({"instances": [ROW]}).encode()
PREDICT = "/v1/models/flag/predict"


@pytest.fixture(scope="module")
def several(published_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two web processes and two versions of `flag` with opposite labels; 1 is champion."""
    home = Path(shutil.copytree(published_home, tmp_path_factory.mktemp("several") / "home"))
    with serving(home, workers=2) as server:
        yield server


def web_processes(server: Server) -> dict[int, psutil.Process]:
    return {p.pid: p for p in server.descendants() if "service.serve" in p.cmdline()}


def distinct_results(request: Callable[[], Any], count: int = 60) -> set[Any]:
    """Repeat a request; each uses a new connection, which any of the processes may accept."""
    return {request() for _ in range(count)}


def wait_for_all(request: Callable[[], Any], expected: Any) -> None:
    """Wait until every process returns `expected`."""
    wait_for(lambda: distinct_results(request), lambda results: results == {expected})


def wait_for(read: Callable[[], Any], condition: Callable[[Any], bool], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not condition(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.02)
    return value


def worker_processes(server: Server) -> list[psutil.Process]:
    return [p for p in server.descendants() if "service.worker.process" in p.cmdline()]


def test_every_process_follows_a_promotion(several: Server) -> None:
    def label() -> tuple[int, str]:
        answer = several.call_json("POST", PREDICT, json.loads(BODY))
        return answer["model"]["version"], answer["predictions"][0]["label"]

    assert distinct_results(label) == {(1, "yes")}
    several.call_json("PUT", "/v1/models/flag/aliases/champion", {"version": 2})
    wait_for_all(label, (2, "no"))
    several.call_json("POST", "/v1/models/flag/aliases/champion/rollback", {})
    wait_for_all(label, (1, "yes"))


def test_every_process_rejects_a_revoked_key(several: Server) -> None:
    created = several.call_json("POST", "/v1/keys", {"name": "short", "scopes": ["predict"]})

    def status() -> int:
        return several.call("POST", PREDICT, BODY, key=created["key"])[0]

    wait_for_all(status, 200)
    several.call_json("DELETE", f"/v1/keys/{created['id']}")
    wait_for_all(status, 401)


def test_every_process_documents_a_new_model(several: Server) -> None:
    add_models(several.home, ["novel"], alias="champion")

    def is_documented() -> bool:
        return "/v1/models/novel/predict" in several.call_json("GET", "/openapi.json")["paths"]

    # a document takes long to generate
    wait_for(lambda: distinct_results(is_documented, 16), lambda results: results == {True})


def test_metrics_include_all_processes(several: Server) -> None:
    def predicted() -> float:
        text = several.call("GET", "/metrics")[1].decode()
        return sum(map(float, re.findall(r'trivium_predicted_rows_total\{model="flag".*\} (\S+)', text)))

    before = predicted()
    for _ in range(40):
        assert several.call("POST", PREDICT, BODY)[0] == 200
    wait_for_all(predicted, before + 40)


def test_connections_are_distributed_over_all_processes(several: Server) -> None:
    address = ("127.0.0.1", several.port)
    with contextlib.ExitStack() as opened:
        connections = [opened.enter_context(socket.create_connection(address)) for _ in range(64)]
        for connection in connections:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: test\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        ports = {connection.getsockname()[1] for connection in connections}
        counts = [
            sum(bool(c.raddr) and c.raddr.port in ports for c in process.net_connections("tcp"))
            for process in web_processes(several).values()
        ]
    assert sum(counts) == 64
    assert min(counts) >= 16


def test_every_process_serves_requests(several: Server) -> None:
    before = {p.pid: sum(p.cpu_times()[:2]) for p in web_processes(several).values()}
    assert len(before) == 2

    def idle_pids() -> set[int]:
        """The processes that used no processor time since `before`."""
        for _ in range(20):
            several.call("GET", "/v1/models")
        return {p.pid for p in web_processes(several).values() if sum(p.cpu_times()[:2]) <= before[p.pid]}

    wait_for(idle_pids, lambda idle: not idle)


def leaders(server: Server) -> list[int]:
    """The processes that have led so far, in order. The leader builds."""
    return [record["pid"] for record in server.log_records() if record["event"] == "leading"]


def test_one_process_builds_and_another_replaces_it_when_it_is_killed(several: Server) -> None:
    def metric(name: str) -> float:
        text = several.call("GET", "/metrics")[1].decode()
        return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)", text, re.M)))

    (leader,) = wait_for(lambda: leaders(several), bool)
    wait_for(lambda: metric("trivium_web_processes"), lambda count: count == 2)
    before, rows = web_processes(several), metric("trivium_predicted_rows_total")
    for _ in range(40):
        several.call("POST", PREDICT, BODY)
    wait_for(lambda: metric("trivium_predicted_rows_total"), lambda count: bool(count == rows + 40))
    loaded = metric("trivium_loaded_models")
    children = before[leader].children(recursive=True)
    before[leader].kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []
    wait_for(lambda: web_processes(several), lambda now: len(now.keys() - before.keys()) == 1)
    assert distinct_results(lambda: several.call("POST", PREDICT, BODY)[0]) == {200}
    assert metric("trivium_loaded_models") <= loaded
    assert metric("trivium_predicted_rows_total") >= rows + 40  # what the killed process counted still counts
    wait_for(lambda: metric("trivium_web_processes"), lambda count: count == 2)
    assert metric("trivium_child_restarts_total") >= 1
    assert wait_for(lambda: leaders(several), lambda pids: len(pids) == 2)[1] in web_processes(several)


def terminate_repeatedly(server: Server) -> int:
    """Send SIGTERM until the server has ended; return its exit code.

    The kernel does this to a web process whose parent is killed: once for each thread of the parent.
    """
    while server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    return server.process.wait()


@pytest.mark.parametrize(("workers", "kills"), [(1, 1), (2, 2)])  # a replacement is replaced, too
def test_a_killed_batch_worker_is_replaced_at_once_and_all_processes_end_with_their_server(
    tmp_path: Path, workers: int, kills: int
) -> None:
    with Server(tmp_path / "home", tmp_path / "log", workers=workers, worker=True) as server:
        server.start()
        for number in range(kills):
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
        wait_for(lambda: worker_processes(server), lambda processes: len(processes) == 1)
        children = server.descendants()
        assert terminate_repeatedly(server) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert "Traceback" not in server.log.read_text()


def test_a_server_without_a_worker_starts_none(several: Server) -> None:
    assert worker_processes(several) == []


def test_no_process_outlives_a_killed_or_terminated_server_and_its_port_is_free(tmp_path: Path) -> None:
    with Server(tmp_path / "home", tmp_path / "log", workers=2) as server:
        server.start()
        wait_for(lambda: web_processes(server), lambda processes: len(processes) == 2)
        assert server.kill() == []
        server.start()
        children = server.descendants()
        assert server.terminate() == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert "Traceback" not in server.log.read_text()


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


def test_a_server_uses_forwarded_headers_from_a_trusted_proxy(tmp_path: Path) -> None:
    proxies = {"trusted_proxies": "10.1.2.3, 127.0.0.0/8"}
    with serving(tmp_path / "home", main=CLIENT_PROBE, **proxies) as server, server.client() as client:
        assert client.get("/livez", headers=FORWARDED).json() == ["203.0.113.7", "https"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("trusted_proxies", "expected"),
    [
        (None, ["127.0.0.1", "http"]),
        ("127.0.0.1", ["203.0.113.7", "https"]),
        ("10.1.2.3, 127.0.0.0/8", ["203.0.113.7", "https"]),
        ("10.1.2.3,10.2.0.0/16", ["127.0.0.1", "http"]),
    ],
)
async def test_forwarded_headers_are_used_only_from_a_trusted_proxy(
    anyio_backend: str, trusted_proxies: str | None, expected: list[str]
) -> None:
    async def client_and_scheme(scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse([scope["client"][0], scope["scheme"]])
        await answer(scope, receive, send)

    settings = Settings() if trusted_proxies is None else Settings(trusted_proxies=trusted_proxies)
    config = serve.web_config(client_and_scheme, settings)
    config.load()
    transport = httpx.ASGITransport(config.loaded_app, client=("127.0.0.1", 40000))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        assert (await client.get("/", headers=FORWARDED)).json() == expected


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
