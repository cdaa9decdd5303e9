"""A server, its registry, and devices with their own directories."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts import edge_pull
from tests.harness.server import Server, serving
from tests.service.edge.tuf_registry import Registry

BIG = os.urandom(600_000)  # more than two blocks
SHA256 = hashlib.sha256(BIG).hexdigest()
Forgery = Callable[[httpx.Request], httpx.Response]


class Network(httpx.BaseTransport):
    """Sends a device's requests to the server. `forged` replaces responses, as an attacker would."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.forged: dict[str, Forgery] = {}  # by the start of the path
        self._transport = httpx.HTTPTransport(verify=False)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        for start, forgery in self.forged.items():
            if request.url.path.startswith(start):
                return forgery(request)
        return self.server(request)

    def server(self, request: httpx.Request) -> httpx.Response:
        return self._transport.handle_request(request)

    def paths(self) -> list[str]:
        """Return the paths of the requests since the last call."""
        paths = [request.url.path for request in self.requests]
        self.requests.clear()
        return paths

    def close(self) -> None:
        self._transport.close()


class Device:
    """A device with its own directory, whose script runs in the tests' process."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.file, self.previous = folder / "m.tflite", folder / "m.previous.tflite"
        self.network = Network()
        self._clients: list[httpx.Client] = []

    def arguments(self, *options: str) -> list[str]:
        device = ["--dir", str(self.folder), "--device", self.folder.name]
        return ["--url", self.server.url, "--model", "m", "--key-file", str(self.key_file), *device, *options]

    @property
    def key_file(self) -> Path:
        return self.server.home / "admin.key"

    def updater(self, *options: str) -> edge_pull.ModelUpdater:
        """Return what the script creates when it starts with these options."""
        args = edge_pull.parse_arguments(self.arguments(*options))
        headers = edge_pull.request_headers(args)
        client = httpx.Client(base_url=args.url, headers=headers, transport=self.network)
        self._clients.append(client)
        return edge_pull.ModelUpdater(args, client)

    def poll(self, *options: str) -> bool:
        """Poll as the script does after a restart."""
        return self.updater(*options).poll()

    def state(self) -> edge_pull.State:
        """Return the stored state."""
        return edge_pull.State(self.folder / "state.json")

    def reports(self) -> list[dict[str, Any]]:
        """Return this device's reports to the server, newest first."""
        with self.server.client() as client:
            items: list[dict[str, Any]] = client.get("/v1/edge/m/reports").json()["items"]
        return [r for r in items if r["device"] == self.folder.name]

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.network.close()


class Blocks(httpx.SyncByteStream):
    """The bytes of a response in blocks; `sent` counts them."""

    def __init__(self, block: bytes, count: int) -> None:
        self._block, self._count, self.sent = block, count, 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._count):
            self.sent += len(self._block)
            yield self._block


def answer(status: int, content: bytes) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, stream=Blocks(content, 1))


def partial(device: Device, content: bytes | None = None, sha256: str = SHA256) -> Path:
    """Return the file of an unfinished download; create it with `content`."""
    file = device.folder / "incoming" / f"{sha256}.part"
    if content is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return file


def forge_manifest(device: Device, **fields: Any) -> None:
    """Replace fields of the server's manifest on its way to the device."""

    def forged(request: httpx.Request) -> httpx.Response:
        response = device.network.server(request)
        manifest = json.loads(response.read()) | fields
        return httpx.Response(200, json=manifest, headers={"ETag": '"forged"'})

    device.network.forged["/v1/edge/m"] = forged


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("edge_pull") / "home") as server:
        yield server


class ServedRegistry(Registry):
    """The registry of the running server."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.home)
        self._server = server
        self.offered = b""

    def export(self, content: bytes, *, promote: bool = True, percent: int | None = None) -> int:
        self.offered = content
        return super().export(content, promote=promote, percent=percent)

    def provide(self, content: bytes, *, sign: bool = True, percent: int | None = None) -> int:
        """Promote and sign a version with an export of these bytes; return its number."""
        number = self.export(content, percent=percent)
        if sign:
            self.sign()
        self.show()
        return number

    def show(self) -> None:
        """Let the server read the registry now: it does so before it answers that an alias is unknown."""
        with self._server.client() as client:
            assert client.get("/v1/edge/m", params={"alias": "unknown"}).status_code == 404


@pytest.fixture(scope="session")
def served_registry(server: Server) -> Iterator[ServedRegistry]:
    registry = ServedRegistry(server)
    yield registry
    registry.engine.dispose()


@pytest.fixture
def registry(served_registry: ServedRegistry) -> ServedRegistry:
    """A registry whose champion has the file `BIG`."""
    if served_registry.offered != BIG:
        served_registry.provide(BIG)
    return served_registry


@pytest.fixture
def device(server: Server, registry: ServedRegistry, tmp_path: Path) -> Iterator[Device]:
    device = Device(server, tmp_path / f"device-{tmp_path.name}")
    yield device
    device.close()
