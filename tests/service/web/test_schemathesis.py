"""Generated valid and invalid requests against the server's own OpenAPI document (schemathesis).

No response may be a 5xx or undocumented, and the server must reject what the document forbids.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from tests.harness.server import serving

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 10  # per operation, in addition to the coverage phase
MODELS = {"flag", "mixed", "price"}  # few, because each has its own operation


def test_schemathesis_finds_no_errors(published_home: Path, tmp_path: Path):
    home = Path(shutil.copytree(published_home, tmp_path / "home"))
    with serving(home) as server:
        with server.client() as client:
            _delete_other_models(client)
        argv = [
            *(SCHEMATHESIS, "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {server.key}"),
            *("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing"),
            *("--generation-deterministic", "--no-color"),
            # A request that the document allows can still be rejected because of the registry's state: a
            # missing column, a key that was used before.
            *("--exclude-checks", "positive_data_acceptance"),
        ]
        environment = os.environ | {"COLUMNS": "120"}
        completed = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert completed.returncode == 0, completed.stdout[-20_000:] + completed.stderr


def _delete_other_models(client: httpx.Client) -> None:
    for model in client.get("/v1/models").json()["items"]:
        if model["name"] not in MODELS:
            client.delete(f"/v1/models/{model['name']}/aliases/champion").raise_for_status()
            client.delete(f"/v1/models/{model['name']}").raise_for_status()
