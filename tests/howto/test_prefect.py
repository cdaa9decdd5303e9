"""docs/howto/prefect_flow.py with a real Prefect server, in its own virtual environment and on loopback."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import joblib
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from service.client import path
from tests.conftest import require_prefect
from tests.harness.machine import free_port
from tests.harness.server import TRIVIUM
from tests.repository.tree import ROOT
from tests.service.cli.conftest import CommandServer, command_server
from tests.service.cli.unreliable_proxy import unreliable_proxy

FLOW = ROOT / "docs/howto/prefect_flow.py"
TIMEOUT_S = 90.0
FIRST_RUN_IN_S = 8
"""Prefect's scheduler must see the schedule before its first run is due."""
pytestmark = [pytest.mark.prefect, pytest.mark.slow]


@pytest.fixture(scope="module")
def python() -> Path:
    """The Python with Prefect."""
    return require_prefect()


@contextmanager
def server_with_champion(folder: Path, worker: bool = True) -> Iterator[CommandServer]:
    """A server with a champion, and rows below its batch root."""
    rows = pd.DataFrame({"age": [20.0, 30.0, 60.0, 70.0], "income": [1.0, 2.0, 6.0, 7.0]})
    joblib.dump(LogisticRegression().fit(rows, ["no", "no", "yes", "yes"]), folder / "model.joblib")
    with command_server(folder, worker=worker) as server:
        rows.to_csv(server.root / "rows.csv", index=False)
        command = [TRIVIUM, "publish", folder / "model.joblib", "--name", "m", "--alias", "champion"]
        example = ["--example", server.root / "rows.csv"]
        subprocess.run([*command, *example], env=os.environ | server.env, check=True, capture_output=True)
        yield server


@pytest.fixture(scope="module")
def trivium(tmp_path_factory, python) -> Iterator[CommandServer]:
    with server_with_champion(tmp_path_factory.mktemp("trivium")) as server:
        yield server


@pytest.fixture(scope="module")
def prefect(tmp_path_factory, python) -> Iterator[dict[str, str]]:
    """The environment variables for a running Prefect server."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "TRIVIUM_"))} | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_INTERVAL": "1",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    command = [
        python.with_name("prefect"),
        "server",
        "start",
        "--no-ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with running(command, env, home / "server.log") as server:
        for _ in attempts(server, home / "server.log"):
            try:
                if httpx.get(env["PREFECT_API_URL"] + "/health", timeout=5).is_success:
                    break
            except httpx.TransportError:
                continue
        yield env


@contextmanager
def running(command: list[object], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        child = subprocess.Popen(list(map(str, command)), env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(60)


def attempts(child: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Yield every 0.1 s while the process runs. Fails after `TIMEOUT_S`."""
    deadline = time.monotonic() + TIMEOUT_S
    while child.poll() is None and time.monotonic() < deadline:
        yield
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def list_jobs(server: CommandServer) -> list[dict[str, Any]]:
    with server.connect() as client:
        jobs: list[dict[str, Any]] = client.pages(path("jobs"))["items"]
        return jobs


def test_the_weekly_flow_is_served_and_its_first_run_scores_the_rows(python, prefect, trivium, tmp_path):
    uri = (trivium.root / "rows.csv").as_uri()
    env = prefect | {"TRIVIUM_URL": trivium.url, "TRIVIUM_API_KEY": trivium.key}
    api, log = httpx.Client(base_url=prefect["PREFECT_API_URL"] + "/"), tmp_path / "flow.log"
    command = [python, FLOW, "m", uri, "--first-in", FIRST_RUN_IN_S]
    with api, running(command, env, log) as flow:
        for _ in attempts(flow, log):
            runs = api.post("flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
            if runs and runs[0]["state_type"] in ("COMPLETED", "FAILED", "CRASHED"):
                break
        assert runs[0]["state_type"] == "COMPLETED", log.read_text()
        deployment = api.post("deployments/filter", json={}).json()[0]
    assert deployment["schedules"][0]["schedule"]["interval"] == 7 * 24 * 3600
    (job,) = list_jobs(trivium)
    assert (job["state"], job["rows_done"], job["model"], job["version"]) == ("done", 4, "m", 1)


RUN_FLOW = """
import sys, prefect_flow
print(prefect_flow.score.with_options(retry_delay_seconds=0.1)(*sys.argv[1:]))
"""


def test_a_retried_run_continues_with_its_job_and_starts_no_second_one(python, prefect, trivium):
    """Two responses about the job are lost, and each one costs the flow an attempt."""
    before = len(list_jobs(trivium))
    with unreliable_proxy(trivium.url) as proxy:
        proxy.faulty_method = "GET"
        proxy.faults.extend(["lose", "lose"])
        env = prefect | {
            "TRIVIUM_URL": proxy.url,
            "TRIVIUM_API_KEY": trivium.key,
            "PYTHONPATH": str(FLOW.parent),
        }
        command = [python, "-c", RUN_FLOW, "m", (trivium.root / "rows.csv").as_uri()]
        process = subprocess.run(command, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert not proxy.faults
    started = list_jobs(trivium)[: len(list_jobs(trivium)) - before]
    assert [job["state"] for job in started] == ["done"]
    assert process.stdout.strip() == f"/v1/jobs/{started[0]['id']}/output"


START_JOB = """
import os, sys, httpx, prefect_flow
headers = {"Authorization": "Bearer " + os.environ["TRIVIUM_API_KEY"]}
with httpx.Client(base_url=os.environ["TRIVIUM_URL"], headers=headers) as trivium:
    request = {"kind": "score", "model": "m", "input": {"uri": sys.argv[1]}}
    print(prefect_flow.start(trivium, request, "prefect-run"))
"""


def test_a_run_whose_job_was_cancelled_resumes_it(python, tmp_path):
    """On a server without a worker, so that the job stays in its state."""
    with server_with_champion(tmp_path, worker=False) as server, server.connect() as client:
        variables = {"TRIVIUM_URL": server.url, "TRIVIUM_API_KEY": server.key, "PYTHONPATH": str(FLOW.parent)}
        command = [python, "-c", START_JOB, (server.root / "rows.csv").as_uri()]

        def start() -> int:
            process = subprocess.run(
                command, env=os.environ | variables, capture_output=True, text=True, check=True
            )
            return int(process.stdout)

        job = start()
        assert client.call("POST", path("jobs", job, "cancel"))["state"] == "cancelled"
        assert start() == job
        assert client.call("GET", path("jobs", job))["state"] == "queued"
