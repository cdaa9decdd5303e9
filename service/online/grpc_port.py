"""The port of gRPC, on which all web processes of a server listen.

The kernel distributes connections over sockets that share a port with SO_REUSEPORT, and so it does for two
servers: a port that is taken is detected here, before the processes start.
"""

from __future__ import annotations

import importlib.util
import socket

from service.config import Settings


def reserve_port(settings: Settings) -> socket.socket:
    """Bind `settings.grpc_port` and return the socket, which does not listen, and keeps others from the port.

    Raises `SystemExit` if the port is taken or the extra `grpc` is not installed.
    """
    host, port = settings.host, settings.grpc_port or 0
    if importlib.util.find_spec("grpc") is None:
        raise SystemExit("TRIVIUM_GRPC_PORT and --grpc-port need the extra grpc: pip install 'trivium[grpc]'")
    with _bind(host, port, socket.SO_REUSEADDR) as probe:  # fails where another server listens
        port = probe.getsockname()[1]
    return _bind(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)


def _bind(host: str, port: int, *options: int) -> socket.socket:
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    for option in options:
        reserved.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        reserved.bind((host, port))
    except OSError as error:
        reserved.close()
        raise SystemExit(f"cannot listen on {host}:{port} for gRPC: {error.strerror}") from error
    return reserved
