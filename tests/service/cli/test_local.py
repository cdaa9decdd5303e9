"""The commands that work on the data directory itself: migrate, gc, doctor, worker, serve."""

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
from tests.service.cli.conftest import TRIVIUM
from tests.service.estimators import yes_or_no


@pytest.fixture
def home(tmp_path) -> Path:
    """A data directory that has been served once: migrated, with an admin key."""
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


@pytest.fixture
def local(trivium, home):
    """`trivium` on `home`, with no server anywhere."""
    return lambda *args: trivium(*args, env={"TRIVIUM_HOME": str(home), "TRIVIUM_URL": "http://127.0.0.1:9"})


def findings(ran) -> dict[str, str]:
    return {check["check"]: check["status"] for check in ran.record["checks"]}


def test_migrate_makes_the_schema_and_is_content_when_it_is_there(local):
    assert local("migrate", "--json").record == {"before": None, "after": HEAD}
    assert local("migrate", "--json").record == {"before": HEAD, "after": HEAD}


def test_a_database_that_does_not_answer_is_exit_code_1_and_no_password_is_shown(trivium, home):
    url = "postgresql+psycopg://me:secret@127.0.0.1:9/none"
    ran = trivium("migrate", env={"TRIVIUM_HOME": str(home), "TRIVIUM_DATABASE_URL": url})
    assert ran.code == 1
    assert "the database does not answer" in ran.err
    assert "secret" not in ran.err


def test_gc_deletes_orphans_that_are_past_their_grace_and_says_so_before_with_dry_run(local, home):
    local("migrate")
    store = Store(home / "blobs")
    old, new = store.put([b"old"]).sha256, store.put([b"new"]).sha256
    long_ago = time.time() - GRACE_S - 1
    os.utime(store.path(old), (long_ago, long_ago))

    said = local("gc", "--dry-run", "--json").record
    assert (said["blobs"], said["dry_run"]) == ([old], True)
    assert store.path(old).exists()

    assert local("gc", "--json").record["blobs"] == [old]
    assert {blob.sha256 for blob in store} == {new}


def test_gc_on_a_database_of_another_revision_says_what_to_run(local):
    ran = local("gc")
    assert ran.code == 1
    assert "trivium migrate" in ran.err


def test_doctor_finds_nothing_wrong_before_the_first_start_and_makes_nothing(local, home):
    home.rmdir()
    ran = local("doctor", "--json")
    assert ran.code == 0
    assert ran.record["ok"]
    assert not home.exists()


def test_doctor_says_the_versions_and_sqlites_own(local):
    import sqlite3

    shown = local("doctor").out
    for said in ("scikit-learn", "onnxruntime", "GiB free", sqlite3.sqlite_version):
        assert said in shown
    assert ("WAL-reset bug" in shown) == (sqlite3.sqlite_version_info < (3, 51, 3))


def test_doctor_names_an_admin_key_that_others_can_read(local, home):
    local("migrate")
    (home / "admin.key").write_text("secret")
    (home / "admin.key").chmod(0o644)
    ran = local("doctor", "--json")
    assert ran.code == 1
    assert findings(ran)["admin key"] == "wrong"
    (home / "admin.key").chmod(0o600)
    assert local("doctor").code == 0


def test_doctor_names_a_data_directory_that_others_can_write(local, home):
    home.chmod(0o777)
    assert findings(local("doctor", "--json"))["data directory"] == "wrong"


def test_doctor_names_a_damaged_database(local, home):
    local("migrate")
    file = home / "registry.db"
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)
    ran = local("doctor", "--json")
    assert ran.code == 1
    assert findings(ran)["database"] == "wrong"


def test_doctor_names_a_database_that_does_not_answer_and_no_password(trivium, home):
    env = {"TRIVIUM_HOME": str(home), "TRIVIUM_DATABASE_URL": "postgresql+psycopg://me:secret@127.0.0.1:9/no"}
    ran = trivium("doctor", "--json", env=env)
    assert ran.code == 1
    assert findings(ran)["database"] == "wrong"
    assert "secret" not in ran.out


def test_doctor_is_content_with_a_running_server(live):
    ran = live("doctor", "--json")
    assert ran.code == 0, ran.out
    assert findings(ran)["server"] == "ok"


def test_serve_says_which_address_is_taken(server, tmp_path):
    port = server.url.rpartition(":")[2]
    env = os.environ | {"TRIVIUM_HOME": str(tmp_path)}
    ran = subprocess.run(
        [TRIVIUM, "serve", "--port", port], env=env, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 1
    assert port in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_worker_process_does_a_job_without_any_server_and_ends_when_told(published_home, tmp_path):
    home = Path(shutil.copytree(published_home, tmp_path / "published"))
    (home / "rows.csv").write_bytes(yes_or_no().frame.to_csv(index=False).encode())
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
        given_up = time.monotonic() + 60
        state = jobs.QUEUED
        while state in jobs.OPEN_STATES and time.monotonic() < given_up and worker.poll() is None:
            with db.reading(db.sessions(engine)) as session:
                state = jobs.get(session, job_id).state
            time.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)  # two at once are no reason to hang
        assert worker.wait(60) == 0
    with db.reading(db.sessions(engine)) as session:
        job = jobs.get(session, job_id)
        assert (job.state, job.error) == (jobs.DONE, None)
    engine.dispose()


def test_a_worker_makes_a_data_directory_that_is_not_there_as_serve_does(tmp_path):
    home = tmp_path / "new"
    env = os.environ | {"TRIVIUM_HOME": str(home)}
    code = "import sys; from service import cli; sys.argv = ['trivium', 'worker']\n"
    code += "try: cli.main()\nfinally: print('fastapi' in sys.modules)"  # a worker has no web
    order = [sys.executable, "-c", code]
    worker = subprocess.Popen(order, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    given_up = time.monotonic() + 60
    while not (home / "admin.key").exists() and worker.poll() is None and time.monotonic() < given_up:
        time.sleep(0.02)  # it is still making it
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=60)
    assert (home / "registry.db").exists(), err
    assert (worker.returncode, out) == (0, "False\n"), err
