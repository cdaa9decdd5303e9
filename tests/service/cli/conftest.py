"""A real server for the command line to talk to, and the command itself, run in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import joblib
import msgspec
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from service import cli
from service.client import Client, ServerRefused, Unreachable

TRIVIUM = Path(sys.executable).with_name("trivium")


class Server(NamedTuple):
    url: str
    home: Path
    key: str

    @property
    def env(self) -> dict[str, str]:
        return {"TRIVIUM_URL": self.url, "TRIVIUM_HOME": str(self.home)}

    @property
    def root(self) -> Path:
        """A directory that its jobs may read from."""
        return self.home.parent / "data"

    def client(self) -> Client:
        return Client(self.url, self.key)


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def record(self):
        return msgspec.json.decode(self.out)


class Files(NamedTuple):
    """A small classifier, the rows it was made for, and a file that is no model."""

    model: Path
    example: Path
    broken: Path


@contextmanager
def serving(folder: Path, *more: str, port: int = 0) -> Iterator[Server]:
    """`trivium serve` in a process of its own; what is in `folder` stays for the next one."""
    home, data, log = folder / "home", folder / "data", folder / "log"
    data.mkdir(exist_ok=True)
    env = os.environ | {"TRIVIUM_HOME": str(home), "TRIVIUM_BATCH_ROOTS": str(data)}
    with log.open("wb") as out:
        child = subprocess.Popen([TRIVIUM, "serve", "--port", str(port), *more], env=env, stderr=out)
    try:
        url = url_of(log, child)
        wait_until_ready(url, child)
        yield Server(url, home, (home / "admin.key").read_text().strip())
    finally:
        child.terminate()
        assert child.wait(60) in (0, 143, -15)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server


def url_of(log: Path, child: subprocess.Popen[bytes], at_most_s: float = 60.0) -> str:
    """Where a server that was started with port 0 listens: its log says so."""
    given_up = time.monotonic() + at_most_s
    while time.monotonic() < given_up and child.poll() is None:
        for line in log.read_text().rpartition("\n")[0].splitlines():
            if '"serving"' in line:
                return str(msgspec.json.decode(line)["url"])
        time.sleep(0.02)
    pytest.fail(f"the server does not say where it listens: {log.read_text()}")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    return unused_port()


def wait_until_ready(url: str, child: subprocess.Popen[bytes], at_most_s: float = 60.0) -> None:
    given_up = time.monotonic() + at_most_s
    with Client(url, None, timeout_s=5.0) as client:
        while time.monotonic() < given_up and child.poll() is None:
            try:
                client.call("GET", "/readyz")
            except (Unreachable, ServerRefused):
                continue  # a client waits a moment by itself before it gives up
            return
    pytest.fail(f"the server did not get ready; exit code {child.poll()}")


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    rows = pd.DataFrame(
        {"age": [20, 30, 40, 50, 60, 70, 25, 65], "income": [1.5, 2.0, 3.0, 4.5, 5.0, 6.0, 1.0, 7.5]}
    )
    good = pd.Series(["no", "no", "no", "yes", "yes", "yes", "no", "yes"], name="good")
    joblib.dump(LogisticRegression().fit(rows, good), folder / "model.joblib")
    rows.join(good).to_csv(folder / "sample.csv", index=False)
    (folder / "broken.joblib").write_bytes(b"no pickle at all")
    return Files(folder / "model.joblib", folder / "sample.csv", folder / "broken.joblib")


@pytest.fixture
def trivium(monkeypatch, capsys) -> Callable[..., Ran]:
    """Run the command in this process: `trivium("models", "--json", env={...})`."""

    def run(*args: object, env: dict[str, str] | None = None) -> Ran:
        for name in ("TRIVIUM_API_KEY", "TRIVIUM_DATABASE_URL"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["trivium", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run


@pytest.fixture
def live(trivium, server) -> Callable[..., Ran]:
    """`trivium`, with the environment of the running server."""
    return lambda *args: trivium(*args, env=server.env)


@pytest.fixture
def published(live, files, request) -> str:
    """A ready version 1 of a model that belongs to this test alone."""
    name = request.node.name.replace("[", "-").replace("]", "").lower()[:60]
    ran = live("publish", files.model, "--name", name, "--example", files.example, "--target", "good")
    assert ran.code == 0, ran.err
    return name
