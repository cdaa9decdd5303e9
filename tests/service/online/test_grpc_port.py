"""The port of gRPC: reserved before the processes start, and shared by them."""

from __future__ import annotations

import re
import socket
import sys
import time
from pathlib import Path

import grpc
import pytest

from service.config import Settings
from service.online.grpc_port import reserve_port
from service.runtime.codec import inference_messages as messages
from tests.harness.machine import free_port
from tests.harness.server import serving
from tests.service.online.grpc_calls import SERVICE, infer_request, matrix


def settings(port: int, host: str = "127.0.0.1") -> Settings:
    return Settings(host=host, grpc_port=port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_zero_reserves_a_free_one(host: str) -> None:
    with reserve_port(settings(0, host)) as first, reserve_port(settings(0, host)) as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_processes_share_a_reserved_port() -> None:
    with reserve_port(settings(0)) as reserved, socket.socket() as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.bind(reserved.getsockname())
        shared.listen()


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_a_port_on_which_another_server_listens_is_refused(option: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = f"cannot listen on 127.0.0.1:{port} for gRPC: Address already in use"
        with pytest.raises(SystemExit, match=re.escape(message)):
            reserve_port(settings(port))


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(SystemExit, match=re.escape("pip install 'trivium[grpc]'")):
        reserve_port(settings(0))


def test_every_web_process_answers_on_the_port(home: Path) -> None:
    port = free_port()
    with serving(home, workers=2, grpc_port=port) as server:
        metadata = [("authorization", f"Bearer {server.key}")]
        body = infer_request("flag", matrix([[2.0, 0.5, -1.0]])).SerializeToString()
        prefixes, deadline = set(), time.monotonic() + 60
        while len(prefixes) < 2:  # the kernel distributes the connections; one process may start later
            assert time.monotonic() < deadline
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                answer = channel.unary_unary(f"{SERVICE}ModelInfer")(body, metadata=metadata, timeout=30)
            decoded = messages.ModelInferResponse.FromString(answer)
            assert list(decoded.outputs[0].contents.bytes_contents) == [b"yes"]
            prefixes.add(decoded.id.split("-")[1])  # one for each process
        (record,) = (r for r in server.log_records() if r["event"] == "serving")
        assert record["grpc"] == f"127.0.0.1:{port}"
