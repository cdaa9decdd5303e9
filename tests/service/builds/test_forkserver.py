"""The fork server with a real template: children, their environment, and the end of each process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.errors import Unavailable
from service.builds import forkserver, supervised_process
from service.builds.forkserver import ForkServer
from tests.service.builds import small_template
from tests.service.builds.processes import alive, wait_for_end

ROOT = Path(forkserver.__file__).parents[2]

PARENT = """
import sys, time
from service.builds.forkserver import ForkServer
forks = ForkServer("tests.service.builds.small_template")
forks.start()
children = [forks.fork("build"), forks.fork("isolated")]
print(forks.pid, *[child.pid for child in children], flush=True)
time.sleep(60)
"""


def test_the_template_has_one_thread_so_that_forking_is_safe(shared_forks: ForkServer) -> None:
    shared_forks.fork("build").end()
    assert len(list(Path(f"/proc/{shared_forks.pid}/task").iterdir())) == 1


def test_the_first_fork_starts_the_template() -> None:
    forks = ForkServer(small_template.NAME)
    try:
        assert forks.pid is None
        forks.fork("build").end()
        assert forks.pid is not None
    finally:
        forks.stop()


def test_a_fork_server_that_was_never_started_can_be_stopped() -> None:
    forks = ForkServer()
    forks.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        forks.fork("build")


def test_a_childs_environment_contains_no_secret_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRIVIUM_API_KEY", "TRIVIUM_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret")
    forks = ForkServer(small_template.NAME)
    forks.start()
    try:
        child = forks.fork("build")
        environments = [Path(f"/proc/{pid}/environ").read_bytes() for pid in (forks.pid, child.pid)]
        child.end()
    finally:
        forks.stop()
    assert not any(b"s3cret" in environment for environment in environments)
    assert all(b"OMP_NUM_THREADS=1" in environment for environment in environments)


def test_a_child_has_only_its_channel_and_the_standard_descriptors(shared_forks: ForkServer) -> None:
    other = shared_forks.fork("isolated")
    child = shared_forks.fork("build")
    links = Path(f"/proc/{child.pid}/fd")
    deadline = time.monotonic() + 20
    while len(open_files := sorted(links.iterdir())) > 4 and time.monotonic() < deadline:
        time.sleep(0.01)  # it is still closing inherited descriptors
    assert [int(file.name) for file in open_files][:3] == [0, 1, 2]
    assert len(open_files) == 4
    child.end()
    other.end()


def test_ending_a_child_returns_its_exit_code_or_signal(shared_forks: ForkServer) -> None:
    child = shared_forks.fork("build")
    os.kill(child.pid, signal.SIGTERM)
    assert wait_for_end(child.pid)
    assert child.end() == -signal.SIGTERM
    assert child.end() == -signal.SIGTERM  # a second call returns the same


def test_ending_a_running_child_leaves_neither_process_nor_zombie(shared_forks: ForkServer) -> None:
    child = shared_forks.fork("isolated")
    child.end()
    assert not Path(f"/proc/{child.pid}").exists()


def test_the_children_of_a_killed_template_end_and_it_is_replaced(own_forks: ForkServer) -> None:
    child = own_forks.fork("isolated")
    first = own_forks.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert wait_for_end(child.pid)
    another = own_forks.fork("isolated")
    assert own_forks.pid != first
    assert alive(another.pid)
    assert child.end() is None
    another.end()
    assert own_forks.problem() is None


def test_a_template_that_does_not_answer_is_replaced(
    own_forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_forks.fork("build").end()
    first = own_forks.pid
    assert first is not None
    monkeypatch.setattr(forkserver, "COMMAND_S", 0.3)
    os.kill(first, signal.SIGSTOP)
    own_forks.fork("build").end()
    assert own_forks.pid != first
    assert not alive(first)


def test_stopping_ends_the_template_and_every_child() -> None:
    forks = ForkServer(small_template.NAME)
    forks.start()
    child = forks.fork("isolated")
    template = forks.pid
    assert template is not None
    forks.stop()
    assert wait_for_end(template)
    assert wait_for_end(child.pid)
    child.end()
    with pytest.raises(Unavailable, match="shutting down"):
        forks.fork("build")


def test_a_killed_server_leaves_no_child_running() -> None:
    server = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    server.kill()
    server.wait()
    assert all(wait_for_end(pid) for pid in pids)


@pytest.mark.skipif(
    sys.platform != "linux", reason="only there the kernel tells a child that its parent died"
)
def test_a_killed_server_ends_a_template_that_is_still_starting(tmp_path: Path) -> None:
    """The template reads its socket only after its imports, which may take long on a busy machine."""
    (tmp_path / "joblib.py").write_text("import time\ntime.sleep(60)\n")
    code = "\n".join((*PARENT.splitlines()[:5], "for _ in range(3000): forks.pid or time.sleep(0.01)"))
    code += "\nprint(forks.pid, flush=True)\ntime.sleep(60)\n"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        template = int(server.stdout.readline())
        assert alive(template)
        server.kill()
    assert wait_for_end(template, 30)


def test_a_template_that_cannot_start_is_reported_and_does_not_block_forks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervised_process, "BACKOFF_S", 0.02)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    forks = ForkServer()
    forks.start()
    try:
        with pytest.raises(Unavailable, match="cannot be started"):
            forks.fork("build")
        assert "cannot be started" in (forks.problem() or "")
    finally:
        forks.stop()


def test_a_template_that_fails_at_its_start_is_reported_with_exit_code_and_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "joblib.py").write_text("import no_such_module\n")  # a module that the template imports
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forks = ForkServer()
    forks.start()
    try:
        with pytest.raises(Unavailable) as raised:
            forks.fork("build")
    finally:
        forks.stop()
    words = "ended with exit code 1 (ModuleNotFoundError: No module named 'no_such_module'), 3 times in a row"
    assert str(raised.value) == f"the build template {words}"
    assert "Traceback" in capfd.readouterr().err  # the complete traceback is in the server's log
