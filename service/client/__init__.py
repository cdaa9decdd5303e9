"""A client of the HTTP API, for the command line, the demo and scripts.

`http` is the connection, `jobs` follows a job to its end, `download` fetches a large file.
"""

from service.client.client_errors import BuilderBroken, Record, ServerRefused, Unreachable, WrongBytes
from service.client.http import Client
from service.client.refs import ModelRef, path

__all__ = [
    "BuilderBroken",
    "Client",
    "ModelRef",
    "Record",
    "ServerRefused",
    "Unreachable",
    "WrongBytes",
    "path",
]
