"""Generated valid and invalid requests against the server's own OpenAPI document (schemathesis).

No response may be a 5xx or undocumented, and the server must reject what the document forbids.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from tests.harness.server import serving

ROOT = Path(__file__).parents[3]
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 5  # per operation, in addition to the coverage phase
MODELS = {"flag", "mixed", "price"}  # few, because each has its own operation


def test_schemathesis_finds_no_errors(published_home: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(published_home, tmp_path / "home"))
    with serving(home) as server:
        with server.client() as client:
            _delete_other_models(client)
            _assert_jobs_of_schedules_are_those_of_jobs(client.get("/openapi.json").json())
        argv = [
            *(str(SCHEMATHESIS), "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {server.key}"),
            *("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing"),
            *("--generation-deterministic", "--no-color"),
            # A request that the document allows can still be rejected because of the registry's state: a
            # missing column, a key that was used before.
            *("--exclude-checks", "positive_data_acceptance"),
        ]
        # A few variables only: for each request, the client searches all of them for proxies.
        environment = {
            "COLUMNS": "120",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis"),  # tables of Unicode, for all runs
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.service.web.schemathesis_hooks",
        }
        completed = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert completed.returncode == 0, completed.stdout[-20_000:] + completed.stderr


def _delete_other_models(client: httpx.Client) -> None:
    for model in client.get("/v1/models").json()["items"]:
        if model["name"] not in MODELS:
            client.delete(f"/v1/models/{model['name']}/aliases/champion").raise_for_status()
            client.delete(f"/v1/models/{model['name']}").raise_for_status()


def _assert_jobs_of_schedules_are_those_of_jobs(document: Any) -> None:
    """The reason why schemathesis_hooks.py does not repeat the cases of POST /v1/jobs for schedules."""
    schemas = document["components"]["schemas"]
    job = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schemas["ScheduleBody"]["properties"]["job"]["oneOf"] == job["oneOf"]
    assert schemas["ScheduleEdit"]["properties"]["job"]["anyOf"][0]["oneOf"] == job["oneOf"]
