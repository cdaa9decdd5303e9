"""The server as a process: its imports, its shutdown, and its first start."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from service.config import Settings
from service.prepare import prepare
from tests.harness.server import Server, serving
from tests.service.estimators import SLEEP_OFFSET

ARROW = "application/vnd.apache.arrow.stream"
ROW = {"x0": 2.0, "x1": 0.0, "x2": 0.0}
UNPICKLING_LIBRARIES = (
    *("sklearn", "joblib", "skl2onnx", "pandas", "scipy", "alembic", "onnx", "pickle5", "cloudpickle"),
    "numba",
)

IMPORTS_PROBE = """
import sys, threading
from service.config import Settings
from service.serve import serve
from service.web import health

async def imported_modules(request):
    from starlette.responses import JSONResponse
    return JSONResponse(sorted({{name.partition(".")[0] for name in sys.modules}}))

health.livez = imported_modules
sys.exit(serve(Settings(port=0), workers={workers}, worker=False))
"""
"""A server whose `/livez` returns the modules that it has imported."""


def test_the_server_never_imports_a_library_that_unpickles(published_home: Path, tmp_path: Path, home: Path):
    with serving(home, main=IMPORTS_PROBE) as server, server.client() as client:
        at_start = set(client.get("/livez").json())
        for model in ("flag", "forest", "sleeper"):
            answer = client.post(f"/v1/models/{model}/predict", json={"instances": [ROW]})
            assert answer.status_code == 200, answer.text
        after = set(client.get("/livez").json())
        rows = pa.table({name: [value] for name, value in ROW.items()})
        with io.BytesIO() as body:
            with pa.ipc.new_stream(body, rows.schema) as stream:
                stream.write_table(rows)
            headers = {"Content-Type": ARROW, "Accept": ARROW}
            answer = client.post("/v1/models/forest/predict", content=body.getvalue(), headers=headers)
        assert answer.status_code == 200, answer.text
        data = (",".join(ROW) + "\n" + ",".join(map(str, ROW.values())) + "\n").encode()
        digest = hashlib.sha256(data).hexdigest()
        assert client.put(f"/v1/artifacts/{digest}", content=data).status_code == 201
        job = {
            "kind": "score",
            "model": "forest",
            "input": {"artifact": digest, "media_type": "text/csv"},
            "output": {"media_type": "text/csv"},
            "dry_run": True,
        }
        answer = client.post("/v1/jobs", json=job)
        assert answer.status_code == 200, answer.text
        with_arrow = set(client.get("/livez").json()) - {"cloudpickle"}  # imported by pyarrow itself
    assert "onnxruntime" in after
    assert "pyarrow" in with_arrow
    assert [name for name in UNPICKLING_LIBRARIES if name in at_start | after | with_arrow] == []


BEFORE_READINESS = """
import sys
from pathlib import Path
from service import app, prepare, serve
from service.config import Settings
settings = Settings(home=Path(sys.argv[1]))
prepare.prepare(settings)
app.create_app(settings)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_no_heavy_library_is_imported_before_readiness(home: Path):
    argv = [sys.executable, "-c", BEFORE_READINESS, home]
    imported = subprocess.run(argv, capture_output=True, check=True, text=True).stdout.split()
    assert {"starlette", "sqlalchemy"} <= set(imported)
    assert not {
        "fastapi",
        "google",
        "grpc",
        "numpy",
        "onnxruntime",
        "pyarrow",
        "tuf",
        "cryptography",
        *UNPICKLING_LIBRARIES,
    } & set(imported)


BROKEN_ROUTES = """
import sys
from service import app, serve
from service.config import Settings

def broken(services):
    raise RuntimeError("a route requires no scope")

app._create_management = broken
sys.exit(serve.serve(Settings(port=0)))
"""


def test_a_server_whose_management_routes_cannot_be_created_ends_with_the_error(home: Path):
    environment = os.environ | {"TRIVIUM_HOME": str(home)}
    completed = subprocess.run(
        [sys.executable, "-c", BROKEN_ROUTES], env=environment, capture_output=True, timeout=60, text=True
    )
    assert completed.returncode == 1
    assert "RuntimeError: a route requires no scope" in completed.stderr


def test_a_running_request_is_answered_before_the_server_ends(home: Path):
    with (
        serving(home) as server,
        server.client() as client,
        ThreadPoolExecutor() as threads,
    ):
        client.post("/v1/models/sleeper/predict", json={"instances": [ROW]})  # loads it
        slow_row = ROW | {"x0": SLEEP_OFFSET + 2.5}
        slow = threads.submit(client.post, "/v1/models/sleeper/predict", json={"instances": [slow_row]})
        _until_in_flight(server)
        server.process.terminate()
        _until_refused(server)
        assert not slow.done()
        assert slow.result(30).json()["predictions"] == [{"value": SLEEP_OFFSET + 2.5}]
        assert server.process.wait(30) == 0


def _until_in_flight(server: Server) -> None:
    """Wait until a short request takes long: an isolated model handles one request at a time."""
    with server.client() as other:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                other.post("/v1/models/sleeper/predict", json={"instances": [ROW]}, timeout=0.25)
            except httpx.ReadTimeout:
                return
    raise AssertionError("the request never arrived")


def _until_refused(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            return
        except OSError:
            continue
        time.sleep(0.01)
    raise AssertionError("the server still accepts connections")


def test_the_first_start_creates_one_admin_key_readable_only_by_its_owner(tmp_path: Path):
    settings = Settings(home=tmp_path / "new")
    prepare(settings)
    first = settings.admin_key_file.read_text()
    assert stat.S_IMODE(settings.admin_key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
    prepare(settings)
    assert settings.admin_key_file.read_text() == first


def test_the_log_is_json_with_the_request_id(server: Server):
    with server.client() as client:
        client.get("/v1/models", headers={"X-Request-ID": "look-for-me"})
    line, deadline = None, time.monotonic() + 30
    while line is None:  # it is written after the answer
        line = next((x for x in server.log_records() if x.get("request_id") == "look-for-me"), None)
        assert time.monotonic() < deadline
    assert (line["event"], line["method"], line["path"], line["status"], line["level"]) == (
        "request",
        "GET",
        "/v1/models",
        200,
        "info",
    )


def test_a_variable_that_is_no_setting_is_logged_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVIUM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TRIVIUM_URL", "http://127.0.0.1:8080")
    prepare(Settings(home=tmp_path / "home"))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "setting.unknown" in line]
    assert len(warnings) == 1
    assert "TRIVIUM_DATA_DIR" in warnings[0]


def test_a_missing_batch_root_is_logged_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    prepare(Settings(home=tmp_path / "home", batch_roots=f"{tmp_path}/data:{tmp_path}/dtaa:s3://bucket/data"))
    warnings = [line for line in capsys.readouterr().out.splitlines() if "batch_root.missing" in line]
    assert len(warnings) == 1
    assert f"{tmp_path}/dtaa" in warnings[0]
