"""A real server for the command line, and the command itself, run in the tests' process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import joblib
import msgspec
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from service import cli
from service.client import Client
from tests.harness import machine
from tests.harness.server import Server
from tests.service.model_rows import copy_version


class CommandServer(Server):
    """`trivium serve` below `folder`, with the batch root `root`."""

    def __init__(
        self,
        folder: Path,
        *,
        worker: bool = True,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.root = folder / "data"
        self.root.mkdir(exist_ok=True)
        super().__init__(
            folder / "home",
            folder / "log",
            worker=worker,
            port=port,
            environment=environment,
            batch_roots=str(self.root),
        )

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which the command uses this server."""
        return {"TRIVIUM_URL": self.url, "TRIVIUM_HOME": str(self.home)}

    def connect(self) -> Client:
        return Client(self.url, self.key)


class CommandResult(NamedTuple):
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    @property
    def record(self):
        """The JSON on stdout."""
        return msgspec.json.decode(self.out)


class ModelFiles(NamedTuple):
    """A small classifier, an example for it, and a file that is not a model."""

    model: Path
    example: Path
    broken: Path


@contextmanager
def command_server(folder: Path, worker: bool = True, port: int = 0) -> Iterator[CommandServer]:
    """A running server; another one on the same folder continues with its data."""
    with CommandServer(folder, worker=worker, port=port) as server:
        server.start()
        yield server
        assert server.terminate() in (0, 143, -15)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[CommandServer]:
    with command_server(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def free_port() -> int:
    return machine.free_port()


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("files")
    rows = pd.DataFrame(
        {"age": [20, 30, 40, 50, 60, 70, 25, 65], "income": [1.5, 2.0, 3.0, 4.5, 5.0, 6.0, 1.0, 7.5]}
    )
    labels = pd.Series(["no", "no", "no", "yes", "yes", "yes", "no", "yes"], name="good")
    joblib.dump(LogisticRegression().fit(rows, labels), folder / "model.joblib")
    rows.join(labels).to_csv(folder / "sample.csv", index=False)
    (folder / "broken.joblib").write_bytes(b"not a pickle")
    return ModelFiles(folder / "model.joblib", folder / "sample.csv", folder / "broken.joblib")


@pytest.fixture
def trivium(monkeypatch, capsys) -> Callable[..., CommandResult]:
    """Run the command in this process: `trivium("models", "--json", env={...})`."""

    def run(*args: object, env: dict[str, str] | None = None) -> CommandResult:
        for name in ("TRIVIUM_API_KEY", "TRIVIUM_DATABASE_URL"):
            monkeypatch.delenv(name, raising=False)
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["trivium", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capsys.readouterr()
        return CommandResult(int(exit_info.value.code or 0), out, err)

    return run


@pytest.fixture
def live(trivium, server) -> Callable[..., CommandResult]:
    """Run the command with the environment of the running server."""
    return lambda *args: trivium(*args, env=server.env)


@pytest.fixture(scope="session")
def prototype(server, files) -> str:
    """A published model that no test uses itself."""
    example = files.example.read_bytes()
    server.publish("prototype", joblib.load(files.model), example, target="good")
    return "prototype"


@pytest.fixture
def published(server, prototype, unique_name) -> str:
    """Copy version 1 of the prototype to a model that only this test uses, and return the model's name."""
    copy_version(server.home, prototype, unique_name)
    while server.call("POST", f"/v1/models/{unique_name}/versions/1/predict", b"{}")[0] == 404:
        time.sleep(0.01)  # the server looks for changes every 100 ms
    return unique_name


@pytest.fixture
def two_versions(server, prototype, published) -> str:
    """A model with two ready versions and no alias."""
    copy_version(server.home, prototype, published, {"round": "two"})
    while server.call("POST", f"/v1/models/{published}/versions/2/predict", b"{}")[0] == 404:
        time.sleep(0.01)  # the server looks for changes every 100 ms
    return published
