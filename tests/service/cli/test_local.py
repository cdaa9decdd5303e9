"""The commands that work on the data directory: migrate, gc, doctor, worker, serve."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrations import HEAD
from registry import db
from registry.artifacts import Store
from registry.garbage import GRACE_S
from registry.jobs import jobs
from service.submit.score_admission import ScoreAdmission
from tests.harness.server import TRIVIUM
from tests.service.estimators import sign_classifier


@pytest.fixture
def home(tmp_path) -> Path:
    """An empty data directory with private permissions."""
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


@pytest.fixture
def local(trivium, home):
    """Run the command on `home`, without a server."""
    return lambda *args: trivium(*args, env={"TRIVIUM_HOME": str(home), "TRIVIUM_URL": "http://127.0.0.1:9"})


def statuses(result) -> dict[str, str]:
    """Return the status of each check of `trivium doctor --json`."""
    return {check["check"]: check["status"] for check in result.record["checks"]}


def test_migrate_creates_the_schema_and_accepts_a_current_one(local):
    assert local("migrate", "--json").record == {"before": None, "after": HEAD}
    assert local("migrate", "--json").record == {"before": HEAD, "after": HEAD}


def test_an_unreachable_database_exits_with_1_and_hides_the_password(trivium, home):
    url = "postgresql+psycopg://me:secret@127.0.0.1:9/none"
    result = trivium("migrate", env={"TRIVIUM_HOME": str(home), "TRIVIUM_DATABASE_URL": url})
    assert result.code == 1
    assert "the database does not answer" in result.err
    assert "secret" not in result.err


def test_gc_deletes_old_unreferenced_blobs_and_lists_them_with_dry_run(local, home):
    local("migrate")
    store = Store(home / "blobs")
    old_blob, new_blob = store.put([b"old"]).sha256, store.put([b"new"]).sha256
    before_grace_period = time.time() - GRACE_S - 1
    os.utime(store.path(old_blob), (before_grace_period, before_grace_period))

    report = local("gc", "--dry-run", "--json").record
    assert (report["blobs"], report["dry_run"]) == ([old_blob], True)
    assert store.path(old_blob).exists()

    assert local("gc", "--json").record["blobs"] == [old_blob]
    assert {blob.sha256 for blob in store} == {new_blob}


def test_gc_on_an_outdated_database_names_the_command_to_run(local):
    result = local("gc")
    assert result.code == 1
    assert "trivium migrate" in result.err


def test_doctor_accepts_a_missing_data_directory_and_creates_nothing(local, home):
    home.rmdir()
    result = local("doctor", "--json")
    assert result.code == 0
    assert result.record["ok"]
    assert not home.exists()


def test_doctor_prints_the_versions_of_libraries_and_sqlite(local):
    import sqlite3

    description = local("doctor").out
    for text in ("scikit-learn", "onnxruntime", "GiB free", sqlite3.sqlite_version):
        assert text in description
    assert ("WAL-reset bug" in description) == (sqlite3.sqlite_version_info < (3, 51, 3))


def test_doctor_names_a_variable_that_is_no_setting(local, monkeypatch):
    monkeypatch.setenv("TRIVIUM_BATCH_ROOT", "/data")
    result = local("doctor")
    assert "warning  settings: TRIVIUM_BATCH_ROOT: no setting has this name" in result.out
    monkeypatch.delenv("TRIVIUM_BATCH_ROOT")
    assert "settings" not in statuses(local("doctor", "--json"))


def test_doctor_reports_an_admin_key_that_others_can_read(local, home):
    local("migrate")
    (home / "admin.key").write_text("secret")
    (home / "admin.key").chmod(0o644)
    result = local("doctor", "--json")
    assert result.code == 1
    assert statuses(result)["admin key"] == "wrong"
    (home / "admin.key").chmod(0o600)
    assert local("doctor").code == 0


def test_doctor_reports_a_data_directory_that_others_can_write(local, home):
    home.chmod(0o777)
    assert statuses(local("doctor", "--json"))["data directory"] == "wrong"


def test_doctor_reports_a_damaged_database(local, home):
    local("migrate")
    file = home / "registry.db"
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)
    result = local("doctor", "--json")
    assert result.code == 1
    assert statuses(result)["database"] == "wrong"


def test_doctor_reports_an_unreachable_database_and_hides_the_password(trivium, home):
    env = {"TRIVIUM_HOME": str(home), "TRIVIUM_DATABASE_URL": "postgresql+psycopg://me:secret@127.0.0.1:9/no"}
    result = trivium("doctor", "--json", env=env)
    assert result.code == 1
    assert statuses(result)["database"] == "wrong"
    assert "secret" not in result.out


def test_doctor_accepts_a_running_server(live):
    result = live("doctor", "--json")
    assert result.code == 0, result.out
    assert statuses(result)["server"] == "ok"


def test_serve_names_the_port_that_is_in_use(server, tmp_path):
    port = server.url.rpartition(":")[2]
    env = os.environ | {"TRIVIUM_HOME": str(tmp_path)}
    result = subprocess.run(
        [TRIVIUM, "serve", "--port", port], env=env, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert port in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_process_completes_a_job_without_a_server_and_ends_at_a_signal(published_home, tmp_path):
    home = Path(shutil.copytree(published_home, tmp_path / "published"))
    (home / "rows.csv").write_bytes(sign_classifier().frame.to_csv(index=False).encode())
    engine = db.connect(f"sqlite:///{home / 'registry.db'}")
    spec = {
        "kind": "score",
        "model": "flag",
        "input": {"uri": str(home / "rows.csv")},
        "output": {"media_type": "text/csv"},
        "engine": "local",
        "max_attempts": 1,
        "expires_in": None,
    }
    with db.sessions(engine).begin() as session:
        admission = ScoreAdmission()
        version = admission.resolve_version(session, spec)
        job_id = admission.accept(session, Store(home / "blobs"), spec, version, by="a test").id
    env = os.environ | {"TRIVIUM_HOME": str(home), "TRIVIUM_BATCH_ROOTS": str(home)}
    worker = subprocess.Popen([TRIVIUM, "worker"], env=env, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        state = jobs.QUEUED
        while state in jobs.OPEN_STATES and time.monotonic() < deadline and worker.poll() is None:
            with db.reading(db.sessions(engine)) as session:
                state = jobs.get(session, job_id).state
            time.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)  # two signals at once must not make it hang
        assert worker.wait(60) == 0
    with db.reading(db.sessions(engine)) as session:
        job = jobs.get(session, job_id)
        assert (job.state, job.error) == (jobs.DONE, None)
    engine.dispose()


def test_a_worker_creates_a_missing_data_directory_and_imports_no_web_framework(tmp_path):
    home = tmp_path / "new"
    env = os.environ | {"TRIVIUM_HOME": str(home)}
    code = "import sys; from service import cli; sys.argv = ['trivium', 'worker']\n"
    code += "try: cli.main()\nfinally: print('fastapi' in sys.modules)"
    command = [sys.executable, "-c", code]
    worker = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (home / "admin.key").exists() and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)  # until the worker has created it
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=60)
    assert (home / "registry.db").exists(), err
    assert (worker.returncode, out) == (0, "False\n"), err
