"""Downloads to a file, from a small HTTP server in this process: durable, verified and resumed."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.client import Client, WrongBytes, download
from tests.harness.durability import Event, recorded

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT)
URL = "/v1/jobs/1/output"


class FileServer:
    """Serves `content`. `body`, if set, is sent instead of it, under the digest of `content`."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.body: bytes | None = None
        self.ranges: list[str] = []
        self.url = ""


@pytest.fixture(scope="module")
def running_server() -> Iterator[FileServer]:
    files = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._send_head(200, files.content)

        def do_GET(self) -> None:
            files.ranges.append(self.headers["Range"])
            first = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            rest = (files.body or files.content)[first:]
            self._send_head(206, rest)
            self.wfile.write(rest)

        def _send_head(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            digest = base64.b64encode(hashlib.sha256(files.content).digest()).decode()
            self.send_header("Repr-Digest", f"sha-256=:{digest}:")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        files.url = f"http://127.0.0.1:{server.server_port}"
        yield files
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running_server: FileServer) -> FileServer:
    running_server.content, running_server.body = CONTENT, None
    running_server.ranges.clear()
    return running_server


@pytest.fixture
def client(server: FileServer) -> Iterator[Client]:
    with Client(server.url, "key") as client:
        yield client


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file to download to, in a directory of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "scores.csv"


@pytest.fixture
def part(file: Path) -> Path:
    return file.with_name(f"scores.csv.{SHA256.hexdigest()[:8]}.part")


def test_a_download_is_durable_when_the_call_returns(client: Client, file: Path, part: Path) -> None:
    with recorded() as log:
        remote = download.save(client, URL, file)
    assert (remote.sha256, remote.bytes) == (SHA256.hexdigest(), len(CONTENT))
    assert file.read_bytes() == CONTENT
    log.saved(file)
    assert log.steps(file.parent) == [
        f"fsync {part.name}",
        f"rename {part.name} -> scores.csv",
        "fsync .",
    ]


def test_the_bytes_of_an_earlier_call_are_part_of_the_fsync(
    client: Client, server: FileServer, file: Path, part: Path
) -> None:
    part.write_bytes(CONTENT[:1000])
    with recorded() as log:
        download.save(client, URL, file)
    assert server.ranges == ["bytes=1000-"]
    log.saved(file)
    assert file.read_bytes() == CONTENT


def test_a_complete_part_is_fsynced_again(client: Client, server: FileServer, file: Path, part: Path) -> None:
    """The earlier call may have ended before its fsync."""
    part.write_bytes(CONTENT)
    with recorded() as log:
        download.save(client, URL, file)
    assert server.ranges == []
    log.saved(file)


def test_the_file_is_never_opened_for_writing_at_its_path(client: Client, file: Path, part: Path) -> None:
    with recorded() as log:
        download.save(client, URL, file)
    assert {event.path for event in log.events if event.kind == "open"} == {part}


def test_wrong_bytes_leave_the_existing_file_and_no_part(
    client: Client, server: FileServer, file: Path
) -> None:
    file.write_bytes(b"the output of yesterday")
    server.body = b"x" + CONTENT[1:]
    with recorded() as log, pytest.raises(WrongBytes, match=r"scores\.csv"):
        download.save(client, URL, file)
    assert log.steps(file.parent, "rename") == []
    assert file.read_bytes() == b"the output of yesterday"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_download_that_is_not_durable_is_continued_later(
    client: Client, server: FileServer, file: Path, part: Path, step: str
) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == step:
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"):
        download.save(client, URL, file)
    assert list(file.parent.iterdir()) == [part]
    server.ranges.clear()
    download.save(client, URL, file)
    assert (server.ranges, file.read_bytes()) == ([], CONTENT)


def test_progress_counts_the_bytes_of_an_earlier_call(client: Client, file: Path, part: Path) -> None:
    part.write_bytes(CONTENT[:1000])
    progress: list[tuple[int, int]] = []
    download.save(client, URL, file, lambda received, total: progress.append((received, total)))
    received = [count for count, _ in progress]
    assert received == sorted(received)
    assert received[0] > 1000
    assert progress[-1] == (len(CONTENT), len(CONTENT))


def test_all_bytes_of_a_small_file_are_part_of_the_fsync(
    client: Client, server: FileServer, file: Path
) -> None:
    server.content = b"id,label\r\n"  # smaller than the buffer of the file
    with recorded() as log:
        download.save(client, URL, file)
    log.saved(file)
    assert file.read_bytes() == server.content


def test_an_empty_file_is_downloaded(client: Client, server: FileServer, file: Path) -> None:
    server.content = b""
    with recorded() as log:
        download.save(client, URL, file)
    log.saved(file)
    assert file.read_bytes() == b""


def test_blocks_are_verified_at_their_end(client: Client, server: FileServer) -> None:
    assert b"".join(download.verified_blocks(client, download.head(client, URL))) == CONTENT
    server.body = b"x" + CONTENT[1:]
    received: list[bytes] = []
    blocks = download.verified_blocks(client, download.head(client, URL))
    with pytest.raises(WrongBytes):
        received.extend(blocks)
    assert len(b"".join(received)) == len(CONTENT)
