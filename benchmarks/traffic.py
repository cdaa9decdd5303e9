"""Split traffic over HTTP: shares, sticky callers, a bad canary that goes back, and the cost of a shadow.

    python -m benchmarks.traffic [--calls 100000] [--callers 3000] [--seconds 4] [--rounds 5] [--json]

- `--calls` calls of an alias whose weights are 90, 9.5 and 0.5: the share of each version, and how many
  standard deviations it is from its weight
- `--callers` values of the sticky header, sent to two web processes, and again after a restart: how many got
  another version; then 90/10 becomes 80/20: how many changed their version
- two web processes under load whose canary has other features than the callers send: how many calls failed
  until it went back, how long that took, and what the history says
- requests per second, CPU of the event loop's thread and of the process per request, without and with a
  shadow, in turns: medians, and the least CPU of a round, which depends less on other load

The exit code is 1 if a share is more than 4 standard deviations off, a caller changed without a reason, the
canary did not go back, or the shadow costs the event loop's thread 5 % or more: it is what callers wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.processes import web_processes
from tests.harness.load import for_seconds, generate_load, post_request
from tests.harness.machine import describe_machine
from tests.harness.models import cancer_forest
from tests.harness.server import Server, serving

TRAFFIC = "/v1/models/demo/aliases/champion/traffic"
PREDICT = "/v1/models/demo/predict"
WEIGHTS = {"1": 90, "2": 9.5, "3": 0.5}
MAX_DEVIATIONS = 4.0
MAX_COST = 1.05


def put(server: Server, **body: Any) -> None:
    server.call_json("PUT", TRAFFIC, body)
    time.sleep(0.5)  # every process sees it


def version_in(answer: bytes) -> str:
    return str(json.loads(answer)["model"]["version"])


def shares(server: Server, row: bytes, calls: int) -> dict[str, dict[str, float]]:
    """Return the share of each version in percent, and its distance from the weight."""
    put(server, weights=WEIGHTS)
    counts: Counter[str] = Counter()
    load = asyncio.run(
        generate_load(
            server.port,
            post_request(server.port, PREDICT, row, server.key),
            keep_going=lambda: counts.total() < calls,
            on_response=lambda _, answer: counts.update([version_in(answer)]),
        )
    )
    assert not load.errors, load.errors[:1]
    total, result = counts.total(), {}
    for version, percent in WEIGHTS.items():
        weight, count = percent / 100, counts[version]
        deviations = (count - total * weight) / math.sqrt(total * weight * (1 - weight))
        result[version] = {"percent": count / total * 100, "standard_deviations": deviations}
    return result


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        yield connection


def versions_of_callers(server: Server, row: bytes, callers: int) -> list[str]:
    """Return the version of each caller. New connections reach both processes."""
    versions: list[str] = []
    for first in range(0, callers, 50):
        with connected(server) as connection:
            for number in range(first, min(first + 50, callers)):
                user = f"user-{number}"
                connection.sendall(post_request(server.port, PREDICT, row, server.key, X_User=user))
                versions.append(version_in(_answer(connection)))
    return versions


def _answer(connection: socket.socket) -> bytes:
    received = b""
    while True:
        received += connection.recv(65536)
        head, end, body = received.partition(b"\r\n\r\n")
        if end:
            length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(body) >= length:
                assert head.startswith(b"HTTP/1.1 200"), received
                return body


def sticky(home: Path, row: bytes, callers: int) -> dict[str, int]:
    with serving(home, workers=2) as server:
        put(server, weights={"1": 90, "2": 10}, sticky_header="X-User")
        before = versions_of_callers(server, row, callers)
        again = versions_of_callers(server, row, callers)
    with serving(home, workers=2) as server:
        restarted = versions_of_callers(server, row, callers)
        put(server, weights={"1": 80, "2": 20}, sticky_header="X-User")
        wider = versions_of_callers(server, row, callers)
    return {
        "callers": callers,
        "on_version_2": before.count("2"),
        "changed_by_repetition": _changed(before, again),
        "changed_by_restart": _changed(before, restarted),
        "changed_by_wider_split": _changed(before, wider),
        "on_version_2_then": wider.count("2"),
    }


def _changed(first: list[str], second: list[str]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


def bad_canary(server: Server, row: bytes, seconds: float) -> dict[str, Any]:
    """Send load to a split whose canary refuses every call that the alias's version accepts."""
    put(server, weights={"1": 90, "4": 10}, bounds={"error_rate": 0.02})
    start, failed_at = time.perf_counter(), list[float]()

    def record(_: float, answer: bytes) -> None:
        if b'"model"' not in answer:
            failed_at.append(time.perf_counter() - start)

    request = post_request(server.port, PREDICT, row, server.key)
    load = asyncio.run(
        generate_load(server.port, request, keep_going=for_seconds(seconds), on_response=record)
    )
    record_ = server.call_json("GET", TRAFFIC)
    return {
        "calls": load.requests,
        "failed": len(failed_at),
        "last_failure_s": max(failed_at, default=0.0),
        "weights": record_["weights"],
        "by": record_["by"],
        "reason": record_["reason"],
    }


def shadow_cost(server: Server, row: bytes, seconds: float, rounds: int) -> dict[str, Any]:
    """Return the figures of the rounds without and with the shadow."""
    (process,) = web_processes(server)
    figures: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for number in range(rounds * 2 + 2):
        name = "with" if number % 2 else "without"
        put(server, weights={"1": 100}, **({"shadow": 2} if name == "with" else {}))
        before, thread = cpu(process), loop_cpu(process)
        request = post_request(server.port, PREDICT, row, server.key)
        load = asyncio.run(generate_load(server.port, request, keep_going=for_seconds(seconds)))
        assert not load.errors
        if number < 2:  # warms up
            continue
        figures[name].append(
            {
                "per_s": load.requests / load.wall_s,
                "loop_cpu_us": (loop_cpu(process) - thread) / load.requests * 1e6,
                "cpu_us": (cpu(process) - before) / load.requests * 1e6,
                "p99_ms": load.percentile(99),
            }
        )
    time.sleep(6)  # the figures of the shadow are stored every 5 seconds
    least = {name: min(figure["loop_cpu_us"] for figure in rows) for name, rows in figures.items()}
    return {
        **{name: {k: median(f[k] for f in rows) for k in rows[0]} for name, rows in figures.items()},
        "least_loop_cpu_us": least,
        "loop_cpu_ratio": least["with"] / least["without"],
        "report": server.call_json("GET", TRAFFIC)["shadow_report"],
    }


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def loop_cpu(process: psutil.Process) -> float:
    """Return the CPU time of the main thread, which runs the event loop."""
    schedstat = Path(f"/proc/{process.pid}/task/{process.pid}/schedstat")
    return int(schedstat.read_text().split()[0]) / 1e9


def publish(server: Server) -> bytes:
    """Publish four versions; the last has other features. Return the body of a call."""
    _, _, rows = cancer_forest()
    for trees in (100, 90, 80):
        model, example, _ = cancer_forest(trees)
        server.publish("demo", model, example)
    from sklearn.datasets import load_breast_cancer
    from sklearn.ensemble import RandomForestClassifier

    data = load_breast_cancer(as_frame=True)
    other = data.data.iloc[:, :10].add_suffix(" (cm)")
    model = RandomForestClassifier(10, random_state=0).fit(other, data.target)
    server.publish("demo", model, other.head(50).to_csv(index=False).encode())
    server.call_json("PUT", "/v1/models/demo/aliases/champion", {"version": 1})
    return json.dumps({"instances": [rows[0]]}).encode()


def faults(result: dict[str, Any]) -> list[str]:
    found = []
    for version, share in result["shares"].items():
        if abs(share["standard_deviations"]) > MAX_DEVIATIONS:
            found.append(f"version {version} answered {share['percent']:.3f} % of the calls")
    sticky_ = result["sticky"]
    if sticky_["changed_by_repetition"] or sticky_["changed_by_restart"]:
        found.append("a caller changed its version")
    if sticky_["changed_by_wider_split"] != sticky_["on_version_2_then"] - sticky_["on_version_2"]:
        found.append("a wider split changed more callers than necessary")
    if result["bad_canary"]["weights"] != {"1": 100, "4": 0}:
        found.append("the bad canary did not go back")
    if result["shadow"]["loop_cpu_ratio"] >= MAX_COST:
        found.append("the shadow costs the callers 5 % or more")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--callers", type=int, default=3000)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with serving(home) as server:
            row = publish(server)
            result["shares"] = shares(server, row, arguments.calls)
            result["shadow"] = shadow_cost(server, row, arguments.seconds, arguments.rounds)
        result["sticky"] = sticky(home, row, arguments.callers)
        with serving(home, workers=2) as server:
            result["bad_canary"] = bad_canary(server, row, arguments.seconds)
    result["faults"] = faults(result)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
