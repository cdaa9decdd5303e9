"""Generated requests, good and bad, against the document that the server itself gives out: no 5xx, no answer
that the document does not name, nothing taken that it forbids, nothing refused that it allows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

from tests.harness.server import serving

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 10  # for each operation, besides the boundary cases of its coverage phase
KEPT = {"flag", "mixed", "price"}  # a few models: each has operations of its own


def test_schemathesis_finds_nothing(published_home: Path, tmp_path: Path):
    home = Path(shutil.copytree(published_home, tmp_path / "home"))
    with serving(home) as server:
        with server.client() as client:
            _leave_few(client)
        argv = [
            *(SCHEMATHESIS, "run", f"{server.url}/openapi.json"),
            *("--header", f"Authorization: Bearer {server.key}"),
            *("--max-examples", str(EXAMPLES), "--phases", "examples,coverage,fuzzing"),
            *("--generation-deterministic", "--no-color"),
            # What a document allows may still be refused for what the registry holds: a column that a table
            # lacks, a key that was used before.
            *("--exclude-checks", "positive_data_acceptance"),
        ]
        wide = os.environ | {"COLUMNS": "120"}
        ran = subprocess.run(argv, cwd=tmp_path, env=wide, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr


def _leave_few(client: httpx.Client) -> None:
    for model in client.get("/v1/models").json()["items"]:
        if model["name"] not in KEPT:
            client.delete(f"/v1/models/{model['name']}/aliases/champion").raise_for_status()
            client.delete(f"/v1/models/{model['name']}").raise_for_status()
