#!/usr/bin/env python3
"""A device's side of the edge road: keep the newest .tflite of a model here, verified and signed.

It polls the manifest with its ETag, checks what it is offered against the signed TUF documents, resumes
an interrupted download, verifies length and sha256, and installs by atomic rename, keeping the file
before. With `--self-test` the new file must pass a command of yours, or the one before comes back.

Needs Python 3.9 or newer and two packages: pip install httpx tuf

    TRIVIUM_API_KEY=... edge_pull.py --url http://server:8080 --model fraud --dir /var/lib/fraud

Your program reads DIR/MODEL.tflite; it is always one whole file. `--root` is what `trivium tuf root`
prints on the server; without it the first root that the server shows is trusted, and kept.
"""

from __future__ import annotations

import argparse
import contextlib
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
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater

BLOCK = 256 * 1024
TIMEOUT_S = 30.0
SIGNATURE_WAIT_S = 15.0  # a promotion is signed within a second; one that waits for an offline key is not
MOST_BACKOFF_S = 3600.0
EXIT_FAILED = 1
STOPS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("edge_pull")


class Refused(Exception):
    """What the server offers must not be installed here."""


class State:
    """What this device knows across restarts, in one small file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.etag: str | None = None  # of the manifest that was dealt with
        self.sha256: str | None = None  # installed
        self.version: int | None = None
        self.bad: list[str] = []  # failed the self-test here
        self.trying: str | None = None  # installed, and its self-test not over
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.__dict__.update(json.loads(path.read_text()))

    def save(self) -> None:
        known = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        replace(self._path, json.dumps(known).encode())


class Fetcher(FetcherInterface):
    """How python-tuf asks the server: with this device's key."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self._client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer:
            if answer.status_code != 200:
                raise DownloadHTTPError(f"{url} answers {answer.status_code}", answer.status_code)
            yield from answer.iter_raw(BLOCK)


class Device:
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
        """Ask once; True when a new file was installed. Raises `Refused` and the transport's errors."""
        if self.state.trying is not None:
            log.warning("an update was cut off; the file before is put back and the update tried again")
            self._take_back()
        answer = self._manifest()
        if answer is None:
            return False
        offered = manifest_of(answer)
        sha256 = str(offered["sha256"])
        if sha256 == self.state.sha256 and self.current.exists():
            self._remember(answer)
            return False
        if sha256 in self.state.bad:
            self._remember(answer)
            raise Refused(f"version {offered['version']} failed its self-test here before")
        target = self._signed(offered)
        file = self._download(offered, target)
        self._install(file, offered)
        self._remember(answer)
        return True

    def _manifest(self) -> httpx.Response | None:
        """The manifest, or None when it is the one that was dealt with."""
        headers = {}
        if self.state.etag and self.current.exists():
            headers["If-None-Match"] = self.state.etag
        answer = self.client.get(f"/v1/edge/{self.args.model}", params=self._wanted(), headers=headers)
        if answer.status_code == 304:
            return None
        check(answer)
        return answer

    def _wanted(self) -> dict[str, str]:
        return {"alias": self.args.alias, "quantize": self.args.quantize}

    def _signed(self, offered: dict[str, Any]) -> TargetFile:
        """What the signed documents say of this very file. Waits a little for a new promotion's signature."""
        until = time.monotonic() + SIGNATURE_WAIT_S
        while True:
            target = self._find(offered)
            if target is not None:
                return target
            if time.monotonic() >= until:
                raise Refused(f"version {offered['version']} is not among the signed files")
            time.sleep(1.0)

    def _find(self, offered: dict[str, Any]) -> TargetFile | None:
        updater = Updater(
            metadata_dir=str(self.trusted),
            metadata_base_url=f"{self.args.url}/tuf/metadata/",
            fetcher=Fetcher(self.client),
            bootstrap=self._root(),
        )
        updater.refresh()
        name = f"{self.args.model}/{self.args.alias}/{self.args.quantize}"
        older = f"{name}.{offered.get('min_runtime')}"  # a file for runtimes that the newest does not run on
        for path in (f"{n}{kind}.tflite" for n in (name, older) for kind in ("", ".rollout")):
            target = updater.get_targetinfo(path)
            if target is None or target.hashes.get("sha256") != offered["sha256"]:
                continue
            if target.unrecognized_fields.get("custom", {}).get("version") == offered["version"]:
                return target
        return None

    def _root(self) -> bytes:
        """The root that this device trusts from the start."""
        kept = self.trusted / "first.root.json"
        if self.args.root is not None:
            return bytes(self.args.root.read_bytes())
        if not kept.exists():
            answer = self.client.get("/tuf/metadata/1.root.json")
            check(answer)
            log.warning("trusting the root key that the server shows; give --root to be sure of it")
            replace(kept, answer.content)
        return bytes(kept.read_bytes())

    def _download(self, offered: dict[str, Any], target: TargetFile) -> Path:
        """The file, complete and verified. What an earlier attempt left is carried on with."""
        sha256 = str(offered["sha256"])
        file: Path = self.partial / f"{sha256}.part"
        for other in self.partial.iterdir():
            if other != file:
                other.unlink()
        with file.open("ab") as out:
            self._fetch_rest(out, sha256, target.length)
            out.flush()
            os.fsync(out.fileno())
        try:
            with file.open("rb") as content:
                target.verify_length_and_hashes(content)
        except RepositoryError as error:
            file.unlink()
            raise Refused(f"what came is not what was signed: {error}") from error
        return file

    def _fetch_rest(self, out: BinaryIO, sha256: str, length: int) -> None:
        have = out.seek(0, os.SEEK_END)
        if have > length:
            have = out.seek(0)
            out.truncate()
        if have == length:
            return
        headers = {"Accept-Encoding": "identity"}  # bytes are counted against the signed length
        if have:
            headers.update({"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'})
        with self.client.stream("GET", f"/v1/blobs/{sha256}", headers=headers) as answer:
            check(answer)
            if answer.status_code == 200 and have:  # the server starts from the beginning
                out.seek(0)
                out.truncate()
                have = 0
            log.info("downloading %s bytes, %s are here already", length, have)
            for block in answer.iter_raw(BLOCK):
                have += len(block)
                if have > length:
                    raise Refused(f"the server sends more than the {length} bytes that were signed")
                out.write(block)

    def _install(self, file: Path, offered: dict[str, Any]) -> None:
        """Put the file in place, try it, and go back when it fails. Reports either."""
        version = int(offered["version"])
        sha256 = str(offered["sha256"])
        if self.current.exists():
            spare = self.directory / "spare"
            spare.unlink(missing_ok=True)
            os.link(self.current, spare)
            spare.replace(self.previous)
        self.state.trying = sha256  # a power cut from here on leaves an untried file: see `_take_back`
        self.state.save()
        file.replace(self.current)
        sync(self.directory)
        started = time.monotonic()
        problem = self._self_test()
        if problem is None:
            self.state.sha256, self.state.version, self.state.trying = sha256, version, None
            self.state.save()
            log.info("installed version %s as %s", version, self.current)
            took_ms = (time.monotonic() - started) * 1000
            self._report(version, "ok", took_ms if self.args.self_test else None)
            return
        self.state.bad = [*self.state.bad, sha256][-20:]
        self._take_back()
        self._report(version, "failed", None, problem)
        raise Refused(f"version {version} fails its self-test and was taken back: {problem}")

    def _take_back(self) -> None:
        """Put the file before back in place of one that has not passed its self-test."""
        if self.state.sha256 is None:
            self.current.unlink(missing_ok=True)
        elif self.previous.exists():
            self.previous.replace(self.current)
        sync(self.directory)
        self.state.trying = self.state.etag = None
        self.state.save()

    def _self_test(self) -> str | None:
        """Why the installed file is not good, or None. The command gets its path as last argument."""
        if not self.args.self_test:
            return None
        command = [*shlex.split(self.args.self_test), str(self.current)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=self.args.self_test_timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)[:500]
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-500:]
        return None if done.returncode == 0 else f"exit code {done.returncode}: {said}"

    def _report(
        self, version: int, status: str, latency_ms: float | None, message: str | None = None
    ) -> None:
        """Tell the server. That it does not hear is no reason to undo anything."""
        body = {"device": self.args.device, "version": version, "status": status}
        if latency_ms is not None:
            body["latency_ms"] = round(latency_ms, 3)
        if message is not None:
            body["message"] = message
        try:
            check(self.client.post(f"/v1/edge/{self.args.model}/reports", json=body))
        except (httpx.HTTPError, Refused) as error:
            log.warning("the report was not taken: %s", error)

    def _remember(self, answer: httpx.Response) -> None:
        self.state.etag = answer.headers.get("ETag")
        self.state.save()


def manifest_of(answer: httpx.Response) -> dict[str, Any]:
    """Raises `Refused` for what is no manifest: a portal or proxy may answer 200 with a page of its own."""
    try:
        offered: dict[str, Any] = answer.json()
        str(offered["sha256"]), int(offered["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"the answer is no manifest ({type(error).__name__}: {error})") from error
    return offered


def check(answer: httpx.Response) -> None:
    """Raises `Refused` with the server's own words when it did not do what it was asked."""
    if answer.status_code < 400:
        return
    answer.read()
    try:
        said = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        said = answer.text[:200]
    raise Refused(f"the server answers {answer.status_code}: {said}")


def replace(path: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    spare = path.with_name(path.name + ".new")
    with spare.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    spare.replace(path)
    sync(path.parent)


def sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default=os.environ.get("TRIVIUM_URL", "http://127.0.0.1:8080"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--dir", type=Path, required=True, help="where the files are kept")
    parser.add_argument("--alias", default="champion")
    parser.add_argument("--quantize", default="none", choices=["none", "float16", "dynamic", "int8"])
    parser.add_argument("--key-file", type=Path, help="a file with the API key (else TRIVIUM_API_KEY)")
    parser.add_argument(
        "--device", default=socket.gethostname(), help="this device's name in rollouts and reports"
    )
    parser.add_argument(
        "--runtime-version", help="LiteRT's version here; only files that run on it are taken"
    )
    parser.add_argument("--root", type=Path, help="the root document to trust, from `trivium tuf root`")
    parser.add_argument("--self-test", help="a command that gets the file's path and must exit 0")
    parser.add_argument("--self-test-timeout", type=float, default=60.0, help="seconds")
    parser.add_argument("--once", action="store_true", help="ask once; exit 1 when that failed")
    parser.add_argument(
        "--interval", type=float, default=300.0, help="seconds between two polls, more or less"
    )
    return parser.parse_args(argv)


def headers(args: argparse.Namespace) -> dict[str, str]:
    key = args.key_file.read_text().strip() if args.key_file else os.environ.get("TRIVIUM_API_KEY", "")
    if not key:
        raise SystemExit("no API key: set TRIVIUM_API_KEY or give --key-file")
    sent = {"Authorization": f"Bearer {key}", "X-Device-Id": args.device}
    if args.runtime_version:
        sent["X-Runtime-Version"] = args.runtime_version
    return sent


def stop_signal() -> Callable[[float], bool]:
    """Take SIGTERM and SIGINT from now on; what is returned waits for one, so many seconds at most.

    Not a `threading.Event`: its lock may be ours when the handler wants to set it. And a signal that comes
    just before we block is in the socket.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.detach())
    for number in STOPS:
        signal.signal(number, lambda *_: None)

    def stopped(seconds: float) -> bool:
        if not select.select([reading], [], [], seconds)[0]:
            return False
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)  # another one would end us with its number on the way out
        return True

    return stopped


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    args.url = args.url.rstrip("/")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopped = stop_signal()
    wait = args.interval
    with httpx.Client(base_url=args.url, headers=headers(args), timeout=TIMEOUT_S) as client:
        device = Device(args, client)
        while True:
            failed = False
            try:
                if not device.poll():
                    log.info("version %s is current", device.state.version)
            except (Refused, httpx.HTTPError, DownloadError, RepositoryError, OSError) as error:
                failed = True
                log.error("%s: %s", type(error).__name__, error)
            if args.once:
                return EXIT_FAILED if failed else 0
            # Jitter keeps a fleet that was switched on together from asking together for ever.
            wait = min(wait * 2, max(MOST_BACKOFF_S, args.interval)) if failed else args.interval
            if stopped(wait * random.uniform(0.8, 1.2)):  # noqa: S311 - no secret
                return 0


if __name__ == "__main__":
    sys.exit(main())
