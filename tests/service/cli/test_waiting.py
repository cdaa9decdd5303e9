"""Following jobs and downloading outputs: over bad networks, through restarts, and with Ctrl-C."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from service.client import Client, WrongBytes, download, jobs, path
from tests.harness.server import TRIVIUM
from tests.service.cli.conftest import CommandServer, command_server
from tests.service.cli.unreliable_proxy import unreliable_proxy
from tests.service.estimators import sign_classifier

ROWS = 5_000
NAME = "flag"


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("waiting") / "rows.csv"
    number = pd.Series(range(ROWS))
    pd.DataFrame({"x0": number % 50 - 25.0, "x1": number % 7, "x2": 0.5}).to_csv(file, index=False)
    return file


def home_with_models(published_home: Path, folder: Path) -> Path:
    """A folder for `command_server` whose registry contains the models of `published_home`."""
    shutil.copytree(published_home, folder / "home")
    return folder


def request_for(client: Client, data: Path) -> dict[str, object]:
    return {
        "kind": "score",
        "model": NAME,
        "version": 1,
        "input": {"artifact": client.upload(data), "media_type": "text/csv"},
        "output": {"media_type": "text/csv"},
    }


@pytest.fixture(scope="module")
def server_without_worker(published_home, tmp_path_factory) -> Iterator[CommandServer]:
    """A server without a worker: its jobs stay queued."""
    folder = home_with_models(published_home, tmp_path_factory.mktemp("idle"))
    with command_server(folder, worker=False) as server:
        yield server


@pytest.fixture(scope="session")
def done_job(server, data):
    """The record of a finished job."""
    server.publish(NAME, sign_classifier().model, b"x0,x1,x2\n1.5,0.5,0.5\n-1.5,0.5,0.5\n")
    with server.connect() as client:
        record = jobs.wait(client, jobs.start(client, request_for(client, data))["id"])
    assert record["state"] == "done", record
    return record


@pytest.fixture
def bad_network(server):
    with unreliable_proxy(server.url) as proxy, Client(proxy.url, server.key) as client:
        client.call("GET", "/readyz")  # later calls are repeated, because the server has answered once
        yield proxy, client


def test_a_job_whose_response_was_lost_is_started_once(bad_network, done_job, data):
    proxy, client = bad_network
    request = request_for(client, data)
    before = len(client.pages(path("jobs"))["items"])
    proxy.faults.extend(["lose", "lose", "busy"])
    record = jobs.wait(client, jobs.start(client, request)["id"])
    assert record["state"] == "done"
    assert not proxy.faults
    assert len(client.pages(path("jobs"))["items"]) == before + 1


@pytest.mark.parametrize("blocks_events", [False, True], ids=["lost events", "no event stream"])
def test_a_job_is_followed_without_an_event_stream(bad_network, done_job, data, blocks_events):
    proxy, client = bad_network
    proxy.deaf, proxy.faulty_method = blocks_events, "GET"
    started = jobs.start(client, request_for(client, data))
    proxy.faults.extend(["lose", "away", "away"])
    states: list[str] = []
    problems: list[str] = []
    record = jobs.wait(client, started["id"], lambda r: states.append(r["state"]), problems.append)
    assert len(problems) == 1
    assert "waiting for the server" in problems[0]
    assert record["state"] == states[-1] == "done"
    assert record["rows_done"] == ROWS


def test_following_a_job_survives_a_restart_of_the_server(server_without_worker, data):
    """The job ends after the restart, while the client follows it."""
    final_records: list[dict[str, object]] = []
    following_started = threading.Event()

    def follow(url: str, key: str, job: int) -> None:
        with Client(url, key) as client:
            final_records.append(jobs.wait(client, job, lambda record: following_started.set()))

    server = server_without_worker
    with server.connect() as client:
        job = jobs.start(client, request_for(client, data))["id"]
    following = threading.Thread(target=follow, args=(server.url, server.key, job))
    following.start()
    assert following_started.wait(60)
    assert server.terminate() in (0, 143, -15)
    assert following.is_alive()
    server.start()
    assert following.is_alive()
    server.call_json("POST", f"/v1/jobs/{job}/cancel", {})
    following.join(60)
    assert [record["state"] for record in final_records] == ["cancelled"]


def test_an_interrupted_download_is_resumed(bad_network, done_job, tmp_path):
    proxy, client = bad_network
    proxy.faulty_method = "GET"
    proxy.faults.extend(["cut", "away", "cut"])
    file = tmp_path / "scores.csv"
    remote = download.save(client, done_job["output"], file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == remote.sha256
    half = remote.bytes // 2
    assert proxy.ranges[:4] == [f"bytes={n}-" for n in (0, half, half, half + (remote.bytes - half) // 2)]
    assert [f.name for f in tmp_path.iterdir()] == ["scores.csv"]
    assert b"".join(download.verified_blocks(client, remote)) == file.read_bytes()


def test_a_later_download_continues_an_earlier_one(bad_network, done_job, tmp_path):
    proxy, client = bad_network
    remote = download.head(client, done_job["output"])
    content = b"".join(download.blocks(client, remote))
    part = tmp_path / f"scores.csv.{remote.sha256[:8]}.part"
    part.write_bytes(content[:1000])
    proxy.ranges.clear()
    progress: list[tuple[int, int]] = []
    download.save(
        client,
        done_job["output"],
        tmp_path / "scores.csv",
        lambda received, total: progress.append((received, total)),
    )
    assert proxy.ranges == ["bytes=1000-"]
    assert (tmp_path / "scores.csv").read_bytes() == content
    assert progress[-1] == (len(content), len(content))


def test_a_download_with_the_wrong_digest_is_discarded(bad_network, done_job, tmp_path):
    _, client = bad_network
    remote = download.head(client, done_job["output"])
    (tmp_path / f"scores.csv.{remote.sha256[:8]}.part").write_bytes(b"x" * 1000)
    with pytest.raises(WrongBytes, match=r"scores\.csv"):
        download.save(client, done_job["output"], tmp_path / "scores.csv")
    assert list(tmp_path.iterdir()) == []
    download.save(client, done_job["output"], tmp_path / "scores.csv")


def test_the_output_of_an_unfinished_job_is_refused_with_its_state(server_without_worker, data, trivium):
    with server_without_worker.connect() as client:
        job = jobs.start(client, request_for(client, data))["id"]
    result = trivium("jobs", "output", job, env=server_without_worker.env)
    assert (result.code, result.out) == (1, "")
    assert "queued" in result.err


def test_a_job_is_cancelled_once_resumed_and_cancelled_again(server_without_worker, data, trivium):
    with server_without_worker.connect() as client:
        job = jobs.start(client, request_for(client, data))["id"]
    assert trivium("jobs", "cancel", job, env=server_without_worker.env).err == f"job {job} is cancelled\n"
    assert (
        trivium("jobs", "cancel", job, "--json", env=server_without_worker.env).record["state"] == "cancelled"
    )
    watched = trivium("jobs", "watch", job, env=server_without_worker.env)
    assert watched.code == 1
    assert f"job {job} was cancelled" in watched.err
    assert f"trivium jobs watch {job}" in trivium("jobs", "resume", job, env=server_without_worker.env).err
    assert trivium("jobs", "show", job, "--json", env=server_without_worker.env).record["state"] == "queued"
    failure = trivium("jobs", "resume", job, env=server_without_worker.env)
    assert failure.code == 1
    assert "queued" in failure.err


@contextmanager
def waiting_command(
    server: CommandServer, data: Path, out: Path, **streams: int
) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [TRIVIUM, "batch", "score", data, "--model", f"{NAME}:1", "--out", out]
    with subprocess.Popen(arguments, env=os.environ | server.env | {"COLUMNS": "200"}, **streams) as command:
        try:
            yield command
        finally:
            command.kill()


def newest_job(server: CommandServer) -> dict[str, object]:
    with server.connect() as client:
        record: dict[str, object] = client.pages(path("jobs"))["items"][0]
        return record


def test_an_interrupt_without_a_terminal_leaves_the_job_running_and_names_the_command_to_follow_it(
    server_without_worker, data, tmp_path
):
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with waiting_command(server_without_worker, data, tmp_path / "s.csv", **pipes) as command:
        assert b"waiting for a worker" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    job = newest_job(server_without_worker)
    assert (command.returncode, out) == (130, b"")
    assert f"trivium jobs watch {job['id']}" in err.decode()
    assert "Traceback" not in err.decode()
    assert job["state"] == "queued"


class Terminal:
    """The controlling side of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.output = ""

    def wait_for(self, text: str) -> None:
        """Read output until it contains `text`."""
        start = len(self.output)
        while text not in self.output[start:]:
            assert select.select([self._descriptor], [], [], 60)[0], self.output
            self.output += os.read(self._descriptor, 65536).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())


@pytest.fixture
def terminal() -> Iterator[tuple[Terminal, int]]:
    """A terminal, and the descriptor for the command's streams."""
    controller, command_side = pty.openpty()
    yield Terminal(controller), command_side
    os.close(controller)
    os.close(command_side)


@pytest.mark.parametrize(
    ("answer", "state", "message"),
    [("cancel\n", "cancelled", "trivium jobs resume"), ("L\n", "queued", "trivium jobs watch")],
)
def test_an_interrupt_at_a_terminal_prompts_and_obeys_the_answer(
    server_without_worker, data, tmp_path, terminal, answer, state, message
):
    screen, stream = terminal
    with waiting_command(
        server_without_worker, data, tmp_path / "s.csv", stdin=stream, stdout=stream, stderr=stream
    ) as command:
        screen.wait_for("waiting for a worker")
        command.send_signal(signal.SIGINT)
        screen.wait_for("[wait]")
        screen.type("what?\n")
        screen.wait_for("is not one of")
        screen.type("w\n")
        screen.wait_for("waiting for a worker")
        command.send_signal(signal.SIGINT)
        screen.wait_for("[wait]")
        screen.type(answer)
        screen.wait_for(message)
        assert command.wait(30) == 130
    assert newest_job(server_without_worker)["state"] == state


def test_two_interrupts_at_once_end_with_a_message_and_leave_the_job(
    server_without_worker, data, tmp_path, terminal
):
    screen, stream = terminal
    with waiting_command(
        server_without_worker, data, tmp_path / "s.csv", stdin=stream, stdout=stream, stderr=stream
    ) as command:
        screen.wait_for("waiting for a worker")
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGINT)
        screen.type("l\n")  # in case both signals were delivered as one, and the question is displayed
        screen.wait_for("trivium jobs watch")
        assert command.wait(30) == 130
    assert newest_job(server_without_worker)["state"] == "queued"
