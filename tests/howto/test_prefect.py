"""docs/howto/prefect_flow.py, run by a real Prefect in a virtual environment of its own, on loopback only."""

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
from tests.conftest import need_prefect
from tests.repository.tree import ROOT
from tests.service.cli.conftest import TRIVIUM, Server, serving, unused_port
from tests.service.cli.lossy import lossy

FLOW = ROOT / "docs/howto/prefect_flow.py"
PATIENCE_S = 90.0
FIRST_IN_S = 8  # time for Prefect's scheduler to see the schedule before it is due
pytestmark = [pytest.mark.prefect, pytest.mark.slow]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter that has Prefect."""
    return need_prefect()


@contextmanager
def champion(folder: Path, *more: str) -> Iterator[Server]:
    """A server with a champion, and rows that it may read."""
    rows = pd.DataFrame({"age": [20.0, 30.0, 60.0, 70.0], "income": [1.0, 2.0, 6.0, 7.0]})
    joblib.dump(LogisticRegression().fit(rows, ["no", "no", "yes", "yes"]), folder / "model.joblib")
    with serving(folder, *more) as server:
        rows.to_csv(server.root / "rows.csv", index=False)
        order = [TRIVIUM, "publish", folder / "model.joblib", "--name", "m", "--alias", "champion"]
        example = ["--example", server.root / "rows.csv"]
        subprocess.run([*order, *example], env=os.environ | server.env, check=True, capture_output=True)
        yield server


@pytest.fixture(scope="module")
def trivium(tmp_path_factory, python) -> Iterator[Server]:
    with champion(tmp_path_factory.mktemp("trivium")) as server:
        yield server


@pytest.fixture(scope="module")
def prefect(tmp_path_factory, python) -> Iterator[dict[str, str]]:
    """The environment of a Prefect server that is ready; it is stopped by its own process id."""
    home, port = tmp_path_factory.mktemp("prefect"), unused_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "TRIVIUM_"))} | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_INTERVAL": "1",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }
    order = [
        python.with_name("prefect"),
        "server",
        "start",
        "--no-ui",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with running(order, env, home / "server.log") as server:
        for _ in patiently(server, home / "server.log"):
            try:
                if httpx.get(env["PREFECT_API_URL"] + "/health", timeout=5).is_success:
                    break
            except httpx.TransportError:
                continue
        yield env


@contextmanager
def running(order: list[object], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        child = subprocess.Popen(list(map(str, order)), env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(60)


def patiently(child: subprocess.Popen[bytes], log: Path) -> Iterator[None]:
    """Look again and again while the process lives, for as long as a slow machine may need."""
    given_up = time.monotonic() + PATIENCE_S
    while child.poll() is None and time.monotonic() < given_up:
        yield
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def jobs_of(server: Server) -> list[dict[str, Any]]:
    with server.client() as client:
        found: list[dict[str, Any]] = client.pages(path("jobs"))["items"]
        return found


def test_the_weekly_flow_is_served_and_its_first_run_scores(python, prefect, trivium, tmp_path):
    uri = (trivium.root / "rows.csv").as_uri()
    env = prefect | {"TRIVIUM_URL": trivium.url, "TRIVIUM_API_KEY": trivium.key}
    api, log = httpx.Client(base_url=prefect["PREFECT_API_URL"] + "/"), tmp_path / "flow.log"
    order = [python, FLOW, "m", uri, "--first-in", FIRST_IN_S]
    with api, running(order, env, log) as serving_flow:
        for _ in patiently(serving_flow, log):
            runs = api.post("flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
            if runs and runs[0]["state_type"] in ("COMPLETED", "FAILED", "CRASHED"):
                break
        assert runs[0]["state_type"] == "COMPLETED", log.read_text()
        deployment = api.post("deployments/filter", json={}).json()[0]
    assert deployment["schedules"][0]["schedule"]["interval"] == 7 * 24 * 3600
    (job,) = jobs_of(trivium)
    assert (job["state"], job["rows_done"], job["model"], job["version"]) == ("done", 4, "m", 1)


RETRIED = """
import sys, prefect_flow
print(prefect_flow.score.with_options(retry_delay_seconds=0.1)(*sys.argv[1:]))
"""


def test_a_run_that_is_tried_again_finds_its_job_and_starts_no_second_one(python, prefect, trivium):
    """The answers to the first looks at the job are lost, and each costs the flow a try."""
    before = len(jobs_of(trivium))
    with lossy(trivium.url) as proxy:
        proxy.faulty = "GET"
        proxy.faults.extend(["lose", "lose"])
        env = prefect | {
            "TRIVIUM_URL": proxy.url,
            "TRIVIUM_API_KEY": trivium.key,
            "PYTHONPATH": str(FLOW.parent),
        }
        order = [python, "-c", RETRIED, "m", (trivium.root / "rows.csv").as_uri()]
        done = subprocess.run(order, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not proxy.faults
    started = jobs_of(trivium)[: len(jobs_of(trivium)) - before]
    assert [job["state"] for job in started] == ["done"]
    assert done.stdout.strip() == f"/v1/jobs/{started[0]['id']}/output"


STARTED = """
import os, sys, httpx, prefect_flow
headers = {"Authorization": "Bearer " + os.environ["TRIVIUM_API_KEY"]}
with httpx.Client(base_url=os.environ["TRIVIUM_URL"], headers=headers) as trivium:
    request = {"kind": "score", "model": "m", "input": {"uri": sys.argv[1]}}
    print(prefect_flow.start(trivium, request, "prefect-run"))
"""


def test_a_run_whose_job_was_stopped_resumes_it(python, tmp_path):
    """On a server without a worker, so that the job stays where it is put."""
    with champion(tmp_path, "--no-worker") as server, server.client() as client:
        own = {"TRIVIUM_URL": server.url, "TRIVIUM_API_KEY": server.key, "PYTHONPATH": str(FLOW.parent)}
        order = [python, "-c", STARTED, (server.root / "rows.csv").as_uri()]

        def start() -> int:
            done = subprocess.run(order, env=os.environ | own, capture_output=True, text=True, check=True)
            return int(done.stdout)

        job = start()
        assert client.call("POST", path("jobs", job, "cancel"))["state"] == "cancelled"
        assert start() == job
        assert client.call("GET", path("jobs", job))["state"] == "queued"
