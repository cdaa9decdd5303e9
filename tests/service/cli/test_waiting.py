"""Following a job and fetching what it made: over bad networks, through restarts, with somebody at Ctrl-C."""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from service.client import Client, WrongBytes, download, jobs, path
from tests.service.cli.conftest import TRIVIUM, Server, serving
from tests.service.cli.lossy import lossy

ROWS = 20_000
NAME = "waited-for"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("waiting") / "rows.csv"
    number = pd.Series(range(ROWS))
    pd.DataFrame({"age": 20.0 + number % 50, "income": 1.0 + number % 7}).to_csv(file, index=False)
    return file


def publish(server: Server, files) -> None:
    order = [TRIVIUM, "publish", files.model, "--name", NAME, "--example", files.example, "--target", "good"]
    subprocess.run(order, env=os.environ | server.env, check=True, capture_output=True)


def request_for(client: Client, data: Path) -> dict[str, object]:
    given = {"artifact": client.upload(data), "media_type": "text/csv"}
    return {
        "kind": "score",
        "model": NAME,
        "version": 1,
        "input": given,
        "output": {"media_type": "text/csv"},
    }


@pytest.fixture(scope="module")
def idle(tmp_path_factory, files) -> Iterator[Server]:
    """A server without a worker: its jobs wait, and can be stopped at leisure."""
    with serving(tmp_path_factory.mktemp("idle"), "--no-worker") as server:
        publish(server, files)
        yield server


@pytest.fixture(scope="module")
def done(server, files, data):
    """A job that is done, on a server that works."""
    publish(server, files)
    with server.client() as client:
        record = jobs.wait(client, jobs.start(client, request_for(client, data))["id"])
    assert record["state"] == "done", record
    return record


@pytest.fixture
def bad_network(server):
    with lossy(server.url) as proxy, Client(proxy.url, server.key) as client:
        client.call("GET", "/readyz")  # from now on it is known to be there
        yield proxy, client


def test_a_job_whose_answer_was_lost_is_started_once(bad_network, done, data):
    proxy, client = bad_network
    request = request_for(client, data)
    before = len(client.pages(path("jobs"))["items"])
    proxy.faults.extend(["lose", "lose", "busy"])
    record = jobs.wait(client, jobs.start(client, request)["id"])
    assert record["state"] == "done"
    assert not proxy.faults
    assert len(client.pages(path("jobs"))["items"]) == before + 1


@pytest.mark.parametrize("deaf", [False, True], ids=["events held back", "no events"])
def test_a_job_is_followed_where_no_event_stream_comes_through(bad_network, done, data, deaf):
    proxy, client = bad_network
    proxy.deaf, proxy.faulty = deaf, "GET"
    started = jobs.start(client, request_for(client, data))
    proxy.faults.extend(["lose", "away", "away"])
    seen: list[str] = []
    troubles: list[str] = []
    record = jobs.wait(client, started["id"], lambda r: seen.append(r["state"]), troubles.append)
    assert len(troubles) == 1
    assert "waiting for the server" in troubles[0]
    assert record["state"] == seen[-1] == "done"
    assert record["rows_done"] == ROWS


def test_following_a_job_outlasts_a_restart_of_the_server(tmp_path, files, data):
    """The second server has a worker, so the job is done; nobody has to ask anew."""
    ended: list[dict[str, object]] = []
    seen = threading.Event()

    def follow(url: str, key: str, job: int) -> None:
        with Client(url, key) as client:
            ended.append(jobs.wait(client, job, lambda record: seen.set()))

    with serving(tmp_path, "--no-worker") as first:
        publish(first, files)
        with first.client() as client:
            job = jobs.start(client, request_for(client, data))["id"]
        following = threading.Thread(target=follow, args=(first.url, first.key, job))
        following.start()
        assert seen.wait(60)
    with serving(tmp_path, port=int(first.url.rpartition(":")[2])):
        following.join(60)
    assert [record["state"] for record in ended] == ["done"]


def test_a_download_that_breaks_off_goes_on_from_there(bad_network, done, tmp_path):
    proxy, client = bad_network
    proxy.faulty = "GET"
    proxy.faults.extend(["cut", "away", "cut"])
    file = tmp_path / "scores.csv"
    remote = download.save(client, done["output"], file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == remote.sha256
    half = remote.bytes // 2
    assert proxy.ranges[:4] == [f"bytes={n}-" for n in (0, half, half, half + (remote.bytes - half) // 2)]
    assert [f.name for f in tmp_path.iterdir()] == ["scores.csv"]
    assert b"".join(download.verified_blocks(client, remote)) == file.read_bytes()


def test_a_later_download_goes_on_where_one_before_it_ended(bad_network, done, tmp_path):
    proxy, client = bad_network
    remote = download.head(client, done["output"])
    content = b"".join(download.blocks(client, remote))
    part = tmp_path / f"scores.csv.{remote.sha256[:8]}.part"
    part.write_bytes(content[:1000])
    proxy.ranges.clear()
    told: list[tuple[int, int]] = []
    download.save(client, done["output"], tmp_path / "scores.csv", lambda have, of: told.append((have, of)))
    assert proxy.ranges == ["bytes=1000-"]
    assert (tmp_path / "scores.csv").read_bytes() == content
    assert told[-1] == (len(content), len(content))


def test_bytes_that_are_not_those_announced_are_thrown_away(bad_network, done, tmp_path):
    _, client = bad_network
    remote = download.head(client, done["output"])
    (tmp_path / f"scores.csv.{remote.sha256[:8]}.part").write_bytes(b"x" * 1000)
    with pytest.raises(WrongBytes, match=r"scores\.csv"):
        download.save(client, done["output"], tmp_path / "scores.csv")
    assert list(tmp_path.iterdir()) == []
    download.save(client, done["output"], tmp_path / "scores.csv")


def test_an_output_that_is_not_there_yet_is_refused_with_its_state(idle, data, trivium):
    with idle.client() as client:
        job = jobs.start(client, request_for(client, data))["id"]
    ran = trivium("jobs", "output", job, env=idle.env)
    assert (ran.code, ran.out) == (1, "")
    assert "queued" in ran.err


def test_a_job_is_cancelled_once_resumed_and_cancelled_again(idle, data, trivium):
    with idle.client() as client:
        job = jobs.start(client, request_for(client, data))["id"]
    assert trivium("jobs", "cancel", job, env=idle.env).err == f"job {job} is cancelled\n"
    assert trivium("jobs", "cancel", job, "--json", env=idle.env).record["state"] == "cancelled"
    watched = trivium("jobs", "watch", job, env=idle.env)
    assert watched.code == 1
    assert f"job {job} was cancelled" in watched.err
    assert f"trivium jobs watch {job}" in trivium("jobs", "resume", job, env=idle.env).err
    assert trivium("jobs", "show", job, "--json", env=idle.env).record["state"] == "queued"
    refused = trivium("jobs", "resume", job, env=idle.env)
    assert refused.code == 1
    assert "queued" in refused.err


@contextmanager
def waiting_command(
    server: Server, data: Path, out: Path, **streams: int
) -> Iterator[subprocess.Popen[bytes]]:
    order = [TRIVIUM, "batch", "score", data, "--model", f"{NAME}:1", "--out", out]
    with subprocess.Popen(order, env=os.environ | server.env | {"COLUMNS": "200"}, **streams) as command:
        try:
            yield command
        finally:
            command.kill()


def newest(server: Server) -> dict[str, object]:
    with server.client() as client:
        found: dict[str, object] = client.pages(path("jobs"))["items"][0]
        return found


def test_an_interrupt_with_nobody_to_ask_leaves_the_job_running_and_says_how_to_follow_it(
    idle, data, tmp_path
):
    pipes = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    with waiting_command(idle, data, tmp_path / "s.csv", **pipes) as command:
        assert b"waiting for a worker" in command.stderr.readline()
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    job = newest(idle)
    assert (command.returncode, out) == (130, b"")
    assert f"trivium jobs watch {job['id']}" in err.decode()
    assert "Traceback" not in err.decode()
    assert job["state"] == "queued"


class Terminal:
    """The other side of a terminal: what is shown, and what is typed."""

    def __init__(self, side: int) -> None:
        self._side = side
        self.shown = ""

    def until(self, words: str) -> None:
        start = len(self.shown)
        while words not in self.shown[start:]:
            assert select.select([self._side], [], [], 60)[0], self.shown
            self.shown += os.read(self._side, 65536).decode(errors="replace")

    def write(self, words: str) -> None:
        os.write(self._side, words.encode())


@pytest.fixture
def terminal() -> Iterator[tuple[Terminal, int]]:
    ours, theirs = pty.openpty()
    yield Terminal(ours), theirs
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [("cancel\n", "cancelled", "trivium jobs resume"), ("L\n", "queued", "trivium jobs watch")],
)
def test_an_interrupt_at_a_terminal_asks_and_does_what_is_answered(
    idle, data, tmp_path, terminal, answer, state, said
):
    screen, side = terminal
    with waiting_command(idle, data, tmp_path / "s.csv", stdin=side, stdout=side, stderr=side) as command:
        screen.until("waiting for a worker")
        command.send_signal(signal.SIGINT)
        screen.until("[wait]")
        screen.write("what?\n")
        screen.until("is not one of")
        screen.write("w\n")
        screen.until("waiting for a worker")
        command.send_signal(signal.SIGINT)
        screen.until("[wait]")
        screen.write(answer)
        screen.until(said)
        assert command.wait(30) == 130
    assert newest(idle)["state"] == state


def test_interrupts_faster_than_the_question_do_not_leave_without_a_word(idle, data, tmp_path, terminal):
    screen, side = terminal
    with waiting_command(idle, data, tmp_path / "s.csv", stdin=side, stdout=side, stderr=side) as command:
        screen.until("waiting for a worker")
        command.send_signal(signal.SIGINT)
        command.send_signal(signal.SIGINT)
        screen.write("l\n")  # if the question comes all the same, as it does when both arrive as one
        screen.until("trivium jobs watch")
        assert command.wait(30) == 130
    assert newest(idle)["state"] == "queued"
