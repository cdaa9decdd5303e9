#!/usr/bin/env python3
"""Keep the newest .tflite file of a model on this device, signed and verified.

Polls the manifest with its ETag, verifies the offered file against the signed TUF documents, resumes
interrupted downloads, verifies length and sha256, and installs by an atomic rename. The previous file is
kept. With `--self-test`, a command of yours must accept the new file, otherwise the previous file is
restored.

Needs Python 3.9 or newer and two packages: pip install httpx tuf

    TRIVIUM_API_KEY=... edge_pull.py --url http://server:8080 --model fraud --dir /var/lib/fraud

Your program reads DIR/MODEL.tflite, which is always a complete file. `--root` is the output of `trivium tuf
root` on the server; without it, the first root document from the server is trusted and stored.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import FetcherInterface, Updater

BLOCK_BYTES = 256 * 1024
TIMEOUT_S = 30.0
SIGNATURE_WAIT_S = 15.0  # a promotion is signed within a second, unless the targets key is offline
MAX_BACKOFF_S = 3600.0
MAX_REJECTED = 20  # sha256 of files that failed their self-test, as many as are remembered
EXIT_FAILED = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("edge_pull")


class UpdateRefused(Exception):
    """The file that the server offers must not be installed here."""


class State:
    """The device's state across restarts: a small JSON file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.etag: str | None = None  # of the last manifest that was handled
        self.sha256: str | None = None  # of the installed file
        self.version: int | None = None
        self.bad: list[str] = []  # sha256 of files that failed their self-test here
        self.trying: str | None = None  # sha256 of an installed file whose self-test is not finished
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.__dict__.update(json.loads(path.read_text()))

    def save(self) -> None:
        fields = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        write_atomically(self._path, json.dumps(fields).encode())


class AuthorizedFetcher(FetcherInterface):
    """Downloads TUF documents with this device's key."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self._client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code != 200:
                raise DownloadHTTPError(f"{url} returned status {response.status_code}", response.status_code)
            yield from response.iter_raw(BLOCK_BYTES)


class ModelUpdater:
    """Updates one model on this device: the installed file, the previous file and the state."""

    def __init__(self, args: argparse.Namespace, client: httpx.Client) -> None:
        self.args = args
        self.client = client
        self.directory: Path = args.dir
        self.current = self.directory / f"{args.model}.tflite"
        self.previous = self.directory / f"{args.model}.previous.tflite"
        self.partial: Path = self.directory / "incoming"
        self.trusted: Path = self.directory / "tuf"
        for folder in (self.directory, self.partial, self.trusted):
            folder.mkdir(parents=True, exist_ok=True)
        self.state = State(self.directory / "state.json")

    def poll(self) -> bool:
        """Poll once; return whether a new file was installed. Raises `UpdateRefused` and transport errors."""
        if self.state.trying is not None:
            log.warning("an update was interrupted; the previous file is restored and the update repeated")
            self._restore_previous()
        response = self._get_manifest()
        if response is None:
            return False
        manifest = parse_manifest(response)
        sha256 = str(manifest["sha256"])
        if sha256 == self.state.sha256 and self.current.exists():
            self._remember_etag(response)
            return False
        if sha256 in self.state.bad:
            self._remember_etag(response)
            raise UpdateRefused(f"version {manifest['version']} failed its self-test here before")
        target = self._wait_for_target(manifest)
        file = self._download(manifest, target)
        self._install(file, manifest)
        self._remember_etag(response)
        return True

    def _get_manifest(self) -> httpx.Response | None:
        """Return the manifest, or None when it has not changed since it was last handled."""
        headers = {}
        if self.state.etag and self.current.exists():
            headers["If-None-Match"] = self.state.etag
        params = {"alias": self.args.alias, "quantize": self.args.quantize}
        response = self.client.get(f"/v1/edge/{self.args.model}", params=params, headers=headers)
        if response.status_code == 304:
            return None
        raise_for_status(response)
        return response

    def _wait_for_target(self, manifest: dict[str, Any]) -> TargetFile:
        """Return the signed entry of the manifest's file. Waits for the signature of a new promotion."""
        deadline = time.monotonic() + SIGNATURE_WAIT_S
        while True:
            target = self._find_target(manifest)
            if target is not None:
                return target
            if time.monotonic() >= deadline:
                raise UpdateRefused(f"version {manifest['version']} is not among the signed files")
            time.sleep(1.0)

    def _find_target(self, manifest: dict[str, Any]) -> TargetFile | None:
        updater = Updater(
            metadata_dir=str(self.trusted),
            metadata_base_url=f"{self.args.url}/tuf/metadata/",
            fetcher=AuthorizedFetcher(self.client),
            bootstrap=self._trusted_root(),
        )
        updater.refresh()
        name = f"{self.args.model}/{self.args.alias}/{self.args.quantize}"
        older = f"{name}.{manifest.get('min_runtime')}"  # a file for devices with an older runtime
        for path in (f"{n}{kind}.tflite" for n in (name, older) for kind in ("", ".rollout")):
            target = updater.get_targetinfo(path)
            if target is None or target.hashes.get("sha256") != manifest["sha256"]:
                continue
            if target.unrecognized_fields.get("custom", {}).get("version") == manifest["version"]:
                return target
        return None

    def _trusted_root(self) -> bytes:
        """Return the root document that this device trusts initially."""
        if self.args.root is not None:
            return bytes(self.args.root.read_bytes())
        first_root = self.trusted / "first.root.json"
        if not first_root.exists():
            response = self.client.get("/tuf/metadata/1.root.json")
            raise_for_status(response)
            Metadata.from_bytes(response.content)  # the page of a portal would block all later updates
            log.warning("trusting the root document from the server; pass --root to verify it")
            write_atomically(first_root, response.content)
        return bytes(first_root.read_bytes())

    def _download(self, manifest: dict[str, Any], target: TargetFile) -> Path:
        """Return the complete, verified file. Continues an interrupted download."""
        sha256 = str(manifest["sha256"])
        file: Path = self.partial / f"{sha256}.part"
        for other in self.partial.iterdir():
            if other != file:
                other.unlink()
        with file.open("ab") as out:
            self._download_rest(out, sha256, target.length)
            out.flush()
            os.fsync(out.fileno())
        try:
            with file.open("rb") as content:
                target.verify_length_and_hashes(content)
        except RepositoryError as error:
            file.unlink()
            raise UpdateRefused(f"the downloaded file is not the signed one: {error}") from error
        return file

    def _download_rest(self, out: BinaryIO, sha256: str, length: int) -> None:
        """Append the bytes that `out` does not contain yet."""
        size = out.seek(0, os.SEEK_END)
        if size > length:
            size = out.seek(0)
            out.truncate()
        if size == length:
            return
        headers = {"Accept-Encoding": "identity"}  # the signed length is that of the plain bytes
        if size:
            headers.update({"Range": f"bytes={size}-", "If-Range": f'"{sha256}"'})
        with self.client.stream("GET", f"/v1/blobs/{sha256}", headers=headers) as response:
            raise_for_status(response)
            if response.status_code == 200 and size:  # the whole file instead of the range
                out.seek(0)
                out.truncate()
                size = 0
            log.info("downloading %s bytes, %s are already here", length, size)
            for block in response.iter_raw(BLOCK_BYTES):
                size += len(block)
                if size > length:
                    raise UpdateRefused(f"the server sends more than the signed length of {length} bytes")
                out.write(block)

    def _install(self, file: Path, manifest: dict[str, Any]) -> None:
        """Put the file in place and test it; restore the previous file if it fails. Report the result."""
        version = int(manifest["version"])
        sha256 = str(manifest["sha256"])
        if self.current.exists():
            temporary = self.directory / "spare"
            temporary.unlink(missing_ok=True)
            os.link(self.current, temporary)
            temporary.replace(self.previous)
            if self.state.sha256 is None:  # the state file was lost; a failed update restores this file
                self.state.sha256 = hashlib.sha256(self.current.read_bytes()).hexdigest()
        self.state.trying = sha256  # after a power cut, `poll` restores the previous file
        self.state.save()
        file.replace(self.current)
        sync_directory(self.directory)
        start = time.monotonic()
        problem = self._self_test()
        if problem is None:
            self.state.sha256, self.state.version, self.state.trying = sha256, version, None
            self.state.save()
            log.info("installed version %s as %s", version, self.current)
            test_ms = (time.monotonic() - start) * 1000
            self._report(version, "ok", test_ms if self.args.self_test else None)
            return
        self.state.bad = [*self.state.bad, sha256][-MAX_REJECTED:]
        self._restore_previous()
        self._report(version, "failed", None, problem)
        raise UpdateRefused(f"version {version} failed its self-test and was removed: {problem}")

    def _restore_previous(self) -> None:
        """Replace a file that has not passed its self-test by the previous one."""
        if self.state.sha256 is None:
            self.current.unlink(missing_ok=True)
        elif self.previous.exists():
            self.previous.replace(self.current)
        sync_directory(self.directory)
        self.state.trying = self.state.etag = None
        self.state.save()

    def _self_test(self) -> str | None:
        """Run the self-test with the installed file as last argument; return the failure, or None."""
        if not self.args.self_test:
            return None
        command = [*shlex.split(self.args.self_test), str(self.current)]
        try:
            process = subprocess.run(command, capture_output=True, timeout=self.args.self_test_timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)[:500]
        output = (process.stderr or process.stdout).decode("utf-8", "replace").strip()[-500:]
        return None if process.returncode == 0 else f"exit code {process.returncode}: {output}"

    def _report(
        self, version: int, status: str, latency_ms: float | None, message: str | None = None
    ) -> None:
        """Report an installation to the server. A failed report changes nothing on the device."""
        body = {"device": self.args.device, "version": version, "status": status}
        if latency_ms is not None:
            body["latency_ms"] = round(latency_ms, 3)
        if message is not None:
            body["message"] = message
        try:
            raise_for_status(self.client.post(f"/v1/edge/{self.args.model}/reports", json=body))
        except (httpx.HTTPError, UpdateRefused) as error:
            log.warning("the server did not accept the report: %s", error)

    def _remember_etag(self, response: httpx.Response) -> None:
        self.state.etag = response.headers.get("ETag")
        self.state.save()


def parse_manifest(response: httpx.Response) -> dict[str, Any]:
    """Raises `UpdateRefused` for other content: a portal or proxy may answer 200 with its own page."""
    try:
        manifest: dict[str, Any] = response.json()
        str(manifest["sha256"]), int(manifest["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UpdateRefused(f"the response is not a manifest ({type(error).__name__}: {error})") from error
    return manifest


def raise_for_status(response: httpx.Response) -> None:
    """Raises `UpdateRefused` with the server's message for status 400 and above."""
    if response.status_code < 400:
        return
    response.read()
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.text[:200]
    raise UpdateRefused(f"the server answered {response.status_code}: {detail}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush renames in `directory` to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("TRIVIUM_URL", "http://127.0.0.1:8080"),
        help="the server (default: TRIVIUM_URL, else http://127.0.0.1:8080)",
    )
    parser.add_argument("--model", required=True, help="the model's name")
    parser.add_argument("--dir", type=Path, required=True, help="the directory for the files")
    parser.add_argument("--alias", default="champion", help="the alias to follow (default: champion)")
    parser.add_argument(
        "--quantize",
        default="none",
        help="the quantization of the export to follow, such as int8 (default: none)",
    )
    parser.add_argument("--key-file", type=Path, help="a file with the API key (default: TRIVIUM_API_KEY)")
    parser.add_argument(
        "--device",
        default=socket.gethostname(),
        help="this device's name in rollouts and reports (default: the host name)",
    )
    parser.add_argument(
        "--runtime-version", help="version of LiteRT on this device; only files that run on it are installed"
    )
    parser.add_argument("--root", type=Path, help="the root document to trust, from `trivium tuf root`")
    parser.add_argument(
        "--self-test", help="a command that gets the file's path and exits 0 if the file works"
    )
    parser.add_argument(
        "--self-test-timeout", type=float, default=60.0, help="longest run of the command in seconds"
    )
    parser.add_argument("--once", action="store_true", help="poll once; exit with 1 if the poll fails")
    parser.add_argument(
        "--interval", type=float, default=300.0, help="seconds between two polls, +/- 20 %% (default: 300)"
    )
    return parser.parse_args(argv)


def request_headers(args: argparse.Namespace) -> dict[str, str]:
    key = args.key_file.read_text().strip() if args.key_file else os.environ.get("TRIVIUM_API_KEY", "")
    if not key:
        raise SystemExit("an API key is required: set TRIVIUM_API_KEY or pass --key-file")
    headers = {"Authorization": f"Bearer {key}", "X-Device-Id": args.device}
    if args.runtime_version:
        headers["X-Runtime-Version"] = args.runtime_version
    return headers


def stop_signal() -> Callable[[float], bool]:
    """Catch SIGTERM and SIGINT; return a function that waits for one for the given seconds.

    A socket instead of a `threading.Event`: the handler could need a lock that the main thread holds, and a
    signal that arrives just before the wait is still in the socket.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.detach())
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)

    def stopped(seconds: float) -> bool:
        if not select.select([reading], [], [], seconds)[0]:
            return False
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a second signal must not change the exit code
        return True

    return stopped


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    args.url = args.url.rstrip("/")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopped = stop_signal()
    wait = args.interval
    with httpx.Client(base_url=args.url, headers=request_headers(args), timeout=TIMEOUT_S) as client:
        updater = ModelUpdater(args, client)
        while True:
            failed = False
            try:
                if not updater.poll():
                    log.info("version %s is current", updater.state.version)
            except (UpdateRefused, httpx.HTTPError, DownloadError, RepositoryError, OSError) as error:
                failed = True
                log.error("%s: %s", type(error).__name__, error)
            if args.once:
                return EXIT_FAILED if failed else 0
            # Random intervals: devices that were switched on together do not poll together.
            wait = min(wait * 2, max(MAX_BACKOFF_S, args.interval)) if failed else args.interval
            if stopped(wait * random.uniform(0.8, 1.2)):  # noqa: S311 - not a secret
                return 0


if __name__ == "__main__":
    sys.exit(main())
