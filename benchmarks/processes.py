"""Several web processes on one socket: memory, throughput, distribution, promotions and a killed process.

    python -m benchmarks.processes [--seconds 4] [--json]

- memory of a server with 1, 2 and 3 web processes that hold no model, a forest of 100 trees, and one of 500:
  the proportional set size (PSS), in which a shared page counts once; and of the template, which all share
- requests per second and CPU per request of one and two web processes, over 32 connections. The load
  generator needs a core of its own: with two cores, two web processes cannot do twice the requests of one
- how 8, 32 and 256 connections, opened at once, are distributed over four processes
- time from the answer of a promotion until the last answer of the version before, from any process
- kill -9 of a web process under load on 64 connections: which connections fail, and how long until all serve
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from tests.harness.load import LoadReport, for_seconds, generate_load, post_request
from tests.harness.machine import cpu_seconds, describe_machine
from tests.harness.models import cancer_forest
from tests.harness.server import Server, serving

MB = 1 << 20
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: bench\r\n\r\n"


def web_processes(server: Server) -> list[psutil.Process]:
    """Return the processes that serve: children if there are several, else the server itself."""
    children = [p for p in server.descendants() if "service.serve" in p.cmdline()]
    return children or [psutil.Process(server.process.pid)]


def templates(server: Server) -> list[psutil.Process]:
    """Return the templates of the web processes, without the children that they forked."""
    children = [child for process in web_processes(server) for child in process.children()]
    return [child for child in children if "service.builds.template" in child.cmdline()]


def await_template(server: Server) -> None:
    """Wait until the template has imported its libraries: it and its children are idle."""
    before, used = -1.0, 0.0
    while used == 0 or used != before:
        time.sleep(2)
        before, used = used, sum(map(cpu_seconds, templates(server)))


def memory_mb(server: Server) -> dict[str, float]:
    """Return the PSS of the server's processes by their kind, in MB."""
    await_template(server)
    parent, web = psutil.Process(server.process.pid), web_processes(server)
    kinds = {"web": web, "template": templates(server), "parent": [] if parent in web else [parent]}
    return {kind: sum(p.memory_full_info().pss for p in processes) / MB for kind, processes in kinds.items()}


def memory(homes: dict[str, Path], rows: list[dict[str, float]]) -> dict[str, dict[int, dict[str, float]]]:
    """Return MB by the model that is loaded, the number of web processes, and the kind of process."""
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for name, home in homes.items():
        for workers in (1, 2, 3):
            with serving(home, workers=workers) as server:
                if name != "no model":
                    load = predict(server, rows[0], 1.0)
                    assert not load.errors
                figures.setdefault(name, {})[workers] = memory_mb(server)
    return figures


def predict(server: Server, row: dict[str, float], seconds: float, concurrency: int = 32) -> LoadReport:
    body = json.dumps({"instances": [row]}).encode()
    content = post_request(server.port, "/v1/models/demo/predict", body, server.key)
    process = psutil.Process(server.process.pid)
    return asyncio.run(
        generate_load(
            server.port,
            content,
            concurrency=concurrency,
            keep_going=for_seconds(seconds),
            process=process,
        )
    )


def throughput(home: Path, row: dict[str, float], seconds: float) -> dict[int, dict[str, float]]:
    """Return the best of two turns by the number of web processes."""
    figures: dict[int, dict[str, float]] = {}
    for _ in range(2):
        for workers in (1, 2):
            with serving(home, workers=workers) as server:
                await_template(server)
                predict(server, row, seconds / 4)
                load = predict(server, row, seconds)
                per_s = load.requests / load.wall_s
                if workers not in figures or per_s > figures[workers]["per_s"]:
                    figures[workers] = {
                        "per_s": per_s,
                        "cpu_us": load.cpu_us,
                        "p50_ms": load.percentile(50),
                        "p99_ms": load.percentile(99),
                    }
    return figures


def distribution(server: Server) -> dict[int, list[list[int]]]:
    """Return the connections of each web process, four times for each number of connections."""
    return {count: [_connect(server, count) for _ in range(4)] for count in (8, 32, 256)}


def _connect(server: Server, count: int) -> list[int]:
    with ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(count)
        ]
        for connection in connections:
            connection.sendall(LIVEZ)
        for connection in connections:
            connection.recv(4096)
        ports = {connection.getsockname()[1] for connection in connections}
        return [
            sum(bool(c.raddr) and c.raddr.port in ports for c in process.net_connections("tcp"))
            for process in web_processes(server)
        ]


def promotion_ms(server: Server, row: dict[str, float], moves: int = 20) -> list[float]:
    """Return how long after each promotion the version before still answered, from any process."""
    stale: list[float] = []
    body = json.dumps({"instances": [row]}).encode()
    content = post_request(server.port, "/v1/models/demo/predict", body, server.key)
    for number in range(moves):
        version, answers = 2 - number % 2, list[tuple[float, int]]()
        stop = threading.Event()

        def record(sent_at: float, answer: bytes, answers: list[tuple[float, int]] = answers) -> None:
            answers.append((sent_at, json.loads(answer)["model"]["version"]))

        def load(stop: threading.Event = stop, record: Any = record) -> None:
            asyncio.run(
                generate_load(
                    server.port,
                    content,
                    concurrency=16,
                    keep_going=lambda: not stop.is_set(),
                    on_response=record,
                )
            )

        thread = threading.Thread(target=load)
        thread.start()
        time.sleep(0.3)
        server.call_json("PUT", "/v1/models/demo/aliases/champion", {"version": version})
        promoted = time.perf_counter()
        time.sleep(0.7)
        stop.set()
        thread.join()
        late = [sent_at - promoted for sent_at, answered in answers if answered != version]
        stale.append(max(0.0, *late) * 1000)
    return stale


def killed(server: Server, row: dict[str, float], seconds: float = 6.0) -> dict[str, float]:
    """Kill one web process under load; return what failed, and how long its replacement took to serve."""
    body = json.dumps({"instances": [row]}).encode()
    content = post_request(server.port, "/v1/models/demo/predict", body, server.key)
    figures: dict[str, float] = {}

    def kill() -> None:
        time.sleep(1.0)
        before = web_processes(server)
        victim = before[0]
        figures["its_connections"] = sum(
            c.status == psutil.CONN_ESTABLISHED for c in victim.net_connections("tcp")
        )
        victim.kill()
        start = time.monotonic()
        while server_processes(server) < len(before):
            time.sleep(0.02)
        figures["replaced_s"] = time.monotonic() - start

    thread = threading.Thread(target=kill)
    thread.start()
    load = asyncio.run(generate_load(server.port, content, concurrency=64, keep_going=for_seconds(seconds)))
    thread.join()
    figures["failed_connections"] = load.errors.count(b"the connection was closed")
    figures["other_errors"] = len(load.errors) - figures["failed_connections"]
    figures["requests"] = load.requests
    return figures


def server_processes(server: Server) -> float:
    """Return the number of web processes that serve, as the metrics report it."""
    text = server.call("GET", "/metrics")[1].decode()
    return next(
        float(line.split()[1]) for line in text.splitlines() if line.startswith("trivium_web_processes ")
    )


def publish(home: Path, trees: int) -> Path:
    """Publish a forest twice, as `demo`; the first version is champion."""
    model, example, _ = cancer_forest(trees)
    with serving(home) as server:
        server.publish("demo", model, example, alias="champion")
        server.publish("demo", model, example, tags={"copy": "yes"})
    return home


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = cancer_forest(1)[2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        homes = {
            "no model": folder / "empty",
            "100 trees": publish(folder / "100", 100),
            "500 trees": publish(folder / "500", 500),
        }
        figures: dict[str, Any] = {
            "memory_mb": memory(homes, rows),
            "throughput": throughput(homes["100 trees"], rows[0], options.seconds),
        }
        with serving(homes["100 trees"], workers=4) as server:
            await_template(server)
            figures["distribution"] = distribution(server)
        with serving(homes["100 trees"], workers=2) as server:
            await_template(server)
            figures["promotion_ms"] = promotion_ms(server, rows[0])
            figures["killed"] = killed(server, rows[0])
    print(json.dumps(figures) if options.json else report(figures))


def report(figures: dict[str, Any]) -> str:
    lines = [
        describe_machine(),
        "",
        f"{'MB (PSS)':<12}{'one':>8}{'each more':>11}{'parent':>9}{'template':>10}",
    ]
    for name, by_count in figures["memory_mb"].items():
        extra = by_count[3]["web"] - by_count[2]["web"]
        lines.append(
            f"{name:<12}{by_count[1]['web']:>8.0f}{extra:>11.0f}{by_count[3]['parent']:>9.0f}"
            f"{by_count[3]['template']:>10.0f}"
        )
    lines += ["", f"{'processes':<12}{'per s':>8}{'CPU us':>9}{'p50 ms':>9}{'p99 ms':>9}"]
    for workers, f in figures["throughput"].items():
        lines.append(
            f"{workers:<12}{f['per_s']:>8.0f}{f['cpu_us']:>9.0f}{f['p50_ms']:>9.2f}{f['p99_ms']:>9.2f}"
        )
    ratio = figures["throughput"][2]["per_s"] / figures["throughput"][1]["per_s"]
    lines.append(f"two processes: {ratio:.2f} times the requests of one, with {os.cpu_count()} cores")
    lines += ["", "connections of four processes"]
    lines += [f"{count:<12}{counts}" for count, counts in figures["distribution"].items()]
    moves = sorted(figures["promotion_ms"])
    median, worst = moves[len(moves) // 2], moves[-1]
    kill = figures["killed"]
    lines += [
        "",
        f"promotion: the version before answered for {median:.0f} ms (median), {worst:.0f} ms (worst)",
        f"kill -9: {kill['failed_connections']:.0f} connections failed of {kill['its_connections']:.0f} that "
        f"the process had, {kill['other_errors']:.0f} other errors in {kill['requests']:.0f} requests; "
        f"all processes serve again after {kill['replaced_s']:.1f} s",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
