#!/usr/bin/env python3
"""Keep the newest .tflite file of a model on this device, signed and verified.

Polls the manifest with its ETag, verifies the offered file against the signed TUF documents, resumes
interrupted downloads, verifies length and sha256, and installs by an atomic rename. The previous file is
kept. With `--self-test`, a command of yours must accept the new file, otherwise the previous file is
restored. Each poll also verifies the installed file, and replaces it when it was deleted or damaged.

Needs Python 3.9 or newer and two packages: pip install httpx tuf

    TRIVIUM_API_KEY=... edge_pull.py --url http://server:8080 --model fraud --dir /var/lib/fraud

Your program reads DIR/MODEL.tflite, which is always a complete file. `--root` is the output of `trivium tuf
root` on the server; without it, the first root document from the server is trusted and stored.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import random
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, TargetFile
from tuf.ngclient import FetcherInterface, Updater

BLOCK_BYTES = 256 * 1024
TIMEOUT_S = 30.0
SIGNATURE_WAIT_S = 15.0  # a promotion is signed within a second, unless the targets key is offline
MAX_BACKOFF_S = 3600.0
MAX_REJECTED = 20  # sha256 of files that failed their self-test, as many as are remembered
MAX_DEVICE_LENGTH = 200  # characters that the server accepts
RESERVE_BYTES = 256 * 1024  # stay free for the state and the signed documents
DAY_S = 86400.0  # validity of a signed timestamp: older answers of a proxy are refused
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")  # of a model or an alias
RUNTIME_VERSION = re.compile(r"v?[0-9]{1,9}(\.[0-9]{1,9})*[0-9A-Za-z.+-]*")
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)", re.IGNORECASE)
EXIT_FAILED = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("edge_pull")


class UpdateRefused(Exception):
    """The file that the server offers must not be installed here."""


class FaultyPart(UpdateRefused):
    """The part of the file that is here, or the response that continues it, cannot be used."""


class State:
    """The device's state across restarts: a small JSON file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.model: str | None = None  # whose files are in this directory
        self.etag: str | None = None  # of the last manifest that was handled
        self.sha256: str | None = None  # of the installed file
        self.version: int | None = None
        self.previous_sha256: str | None = None
        self.previous_version: int | None = None
        self.trying: str | None = None  # sha256 of an installed file whose self-test is not finished
        self.failed_version: int | None = None  # the server's version, if it failed its self-test here
        self.bad: list[str] = []  # sha256 of files that failed their self-test here
        self.report: dict[str, Any] = {}  # that the server has not accepted yet
        self.verified_at = 0.0  # Unix time of the last look at the signed documents
        self._stored: dict[str, Any] = {}
        self._load()

    def _load(self) -> None:
        """Read the file. Unknown fields are not used: another version of the script may have written it."""
        try:
            stored = json.loads(self._path.read_text())
            fields = {name: stored.get(name, default) for name, default in self._fields().items()}
            for name, default in self._fields().items():
                kind = type(default) if default is not None else int if "version" in name else str
                if fields[name] != default and not isinstance(fields[name], kind):
                    raise ValueError(f"{name} is {fields[name]!r}")
        except FileNotFoundError:
            return
        except (ValueError, AttributeError) as error:
            log.warning("%s is damaged and starts empty: %s", self._path, error)
            return
        self.__dict__.update(fields)
        self._stored = stored

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def save(self) -> None:
        """Write the file if the state changed, which spares the memory card."""
        fields = self._fields()
        if fields != self._stored:
            content = json.dumps(fields)
            write_atomically(self._path, content.encode())
            self._stored = json.loads(content)


class DocumentFetcher(FetcherInterface):
    """Downloads TUF documents with this device's key."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self._client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
            if response.status_code != 200:
                raise DownloadHTTPError(f"{url} returned status {response.status_code}", response.status_code)
            yield from response.iter_bytes(BLOCK_BYTES)


class DocumentUpdater(Updater):
    """Works on file systems without symbolic links, too. `root.json`, the link, is read by nothing here."""

    def _update_root_symlink(self) -> None:
        pass


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
        if self.state.model not in (None, args.model):
            raise UpdateRefused(
                f"{args.dir} has the files of model {self.state.model}; pass another --dir for {args.model}"
            )
        self.state.model = args.model

    def __str__(self) -> str:
        if self.state.failed_version:
            return (
                f"version {self.state.version or 'unknown'} is installed; version "
                f"{self.state.failed_version} of the server failed its self-test here"
            )
        return f"version {self.state.version} is current"

    def poll(self) -> bool:
        """Poll once; return whether a new file was installed. Raises `UpdateRefused` and transport errors."""
        self._check_installed()
        response = self._get_manifest()
        self._send_report()
        if response is None:
            return False
        manifest = parse_manifest(response, self.args)
        sha256, version = manifest["sha256"], manifest["version"]
        if sha256 in self.state.bad and sha256 != self.state.sha256:
            self.state.failed_version = int(version)
            self._remember_etag(response)
            raise UpdateRefused(f"version {version} failed its self-test here before")
        self.state.failed_version = None
        installed = sha256 == self.state.sha256
        if installed and version == self.state.version and not self._is_check_due():
            self._remember_etag(response)
            return False
        target = self._wait_for_target(manifest)
        self.state.verified_at = time.time()
        if not installed:
            self._install(self._download(manifest, target), manifest)
        elif version != self.state.version:  # another version with the same bytes
            self.state.version = int(version)
            self._report(int(version), "ok")
        self._remember_etag(response)
        return not installed

    def _check_installed(self) -> None:
        """Verify the installed file: it may be damaged, deleted, or not tested because of a power failure.

        The whole file is read: damage on a memory card changes neither its size nor its date.
        """
        digest = file_sha256(self.current)
        if self.state.trying is None and self.state.sha256 in (None, digest):
            return  # whole; or the state was lost, and the server's file replaces this one
        if self.state.trying is not None:
            log.warning("an update was interrupted; the previous file is restored and the update repeated")
        else:
            log.error("%s is %s; it is downloaded again", self.current, "damaged" if digest else "missing")
        self._restore_whole_file()

    def _restore_whole_file(self) -> None:
        """Put the newest file in place that passed its self-test and is whole; record which one it is.

        A file that is neither the installed nor the previous one is removed: a runtime does not notice
        damage, and would give wrong answers. A previous file of a later version was taken back.
        """
        state = self.state
        versions = {state.sha256: state.version}
        if state.previous_version is not None and state.previous_version < (state.version or 0):
            versions[state.previous_sha256] = state.previous_version
        digest = file_sha256(self.current)
        if digest is None or digest not in versions:
            digest = file_sha256(self.previous)
            if digest is not None and digest in versions:
                self.previous.replace(self.current)
            else:
                digest = None
                self.current.unlink(missing_ok=True)
            state.previous_sha256 = state.previous_version = None
        sync_directory(self.directory)
        state.sha256, state.version = digest, versions.get(digest)
        state.trying = state.etag = None
        state.save()

    def _get_manifest(self) -> httpx.Response | None:
        """Return the manifest, or None when it has not changed since it was last handled."""
        headers = {"Cache-Control": "no-cache"}  # a proxy must ask the server
        if self.state.etag and self.state.sha256 and not self._is_check_due():
            headers["If-None-Match"] = self.state.etag
        params = {"alias": self.args.alias, "quantize": self.args.quantize}
        response = self.client.get(f"/v1/edge/{self.args.model}", params=params, headers=headers)
        warn_about_clock(response)
        if response.status_code == 304 and "If-None-Match" in headers:
            return None
        require_status(response, 200)
        return response

    def _is_check_due(self) -> bool:
        """Return whether an unchanged manifest, too, must agree with the signed documents."""
        return abs(time.time() - self.state.verified_at) > DAY_S

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
        updater = DocumentUpdater(
            metadata_dir=str(self.trusted),
            metadata_base_url=f"{self.args.url}/tuf/metadata/",
            fetcher=DocumentFetcher(self.client),
            bootstrap=self._trusted_root(),
        )
        try:
            updater.refresh()
        except (BadVersionNumberError, UnsignedMetadataError) as error:
            raise UpdateRefused(
                f"the server's signed documents do not continue those that this device trusts ({error}); if "
                "the server was restored from a backup, run `trivium tuf recover` there"
            ) from error
        except ExpiredMetadataError as error:
            raise UpdateRefused(f"{error} by the clock of this device, {time.strftime('%c')}") from error
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
        for file in (first_root, self.trusted / "root_history" / "1.root.json"):
            with contextlib.suppress(OSError, RepositoryError):
                content = file.read_bytes()
                Metadata.from_bytes(content)
                return content
        response = self.client.get("/tuf/metadata/1.root.json")
        require_status(response, 200)
        Metadata.from_bytes(response.content)  # the page of a portal would block all later updates
        log.warning("trusting the root document from the server; pass --root to verify it")
        write_atomically(first_root, response.content)
        return response.content

    def _download(self, manifest: dict[str, Any], target: TargetFile) -> Path:
        """Return the complete, verified file. Continues an interrupted download, or starts it again once."""
        sha256 = str(manifest["sha256"])
        file: Path = self.partial / f"{sha256}.part"
        for other in self.partial.iterdir():
            if other != file:
                other.unlink()
        size = file.stat().st_size if file.exists() else 0
        self._require_space(target.length - size + self._copy_bytes())
        try:
            self._download_rest(file, sha256, target, {})
        except FaultyPart as error:
            log.warning("%s; the download starts again", error)
            self._download_rest(file, sha256, target, {"Cache-Control": "no-cache"})
        return file

    def _download_rest(self, file: Path, sha256: str, target: TargetFile, headers: dict[str, str]) -> None:
        """Append the bytes that `file` does not contain yet, and verify it. Raises `FaultyPart`."""
        with deleted_if_unusable(file):
            file.touch()
            size, length = file.stat().st_size, target.length
            if size > length:
                raise FaultyPart(f"{file} is longer than the signed length of {length} bytes")
            if size < length:
                headers = {"Accept-Encoding": "identity", **headers}  # the signed length is of plain bytes
                if size:
                    headers.update({"Range": f"bytes={size}-", "If-Range": f'"{sha256}"'})
                log.info("downloading %s bytes, %s are already here", length, size)
                with self.client.stream("GET", f"/v1/blobs/{sha256}", headers=headers) as response:
                    self._write_body(file, response, size, length)
            try:
                with file.open("rb") as content:
                    target.verify_length_and_hashes(content)
            except RepositoryError as error:
                raise FaultyPart(f"the downloaded file is not the signed one: {error}") from error

    def _write_body(self, file: Path, response: httpx.Response, size: int, length: int) -> None:
        """Write the response to its place in `file`, which has `size` bytes of `length`."""
        position = body_position(response, size, length)
        with file.open("r+b") as out:
            out.seek(position)
            out.truncate()
            for block in response.iter_bytes():
                position += len(block)
                if position > length:
                    raise FaultyPart(f"the server sends more than the signed length of {length} bytes")
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if position <= size:
            raise FaultyPart("the server sent nothing beyond the bytes that are already here")
        if position < length:
            raise UpdateRefused(
                f"the response ended after {position} of {length} bytes; the next poll continues"
            )

    def _copy_bytes(self) -> int:
        """Return the size of the copy that an update makes of the installed file: 0 with hard links."""
        if not self.current.exists():
            return 0
        probe = self.partial / "probe"
        try:
            os.link(self.current, probe)
        except OSError:
            return int(self.current.stat().st_size)
        probe.unlink()
        return 0

    def _require_space(self, needed: int) -> None:
        """Raises `UpdateRefused` when less is free. File systems without sizes report a total of 0."""
        total, _, free = shutil.disk_usage(self.directory)
        if total and free < needed + RESERVE_BYTES:
            raise UpdateRefused(
                f"the update needs {needed + RESERVE_BYTES} free bytes in {self.directory}; {free} are free"
            )

    def _install(self, file: Path, manifest: dict[str, Any]) -> None:
        """Put the file in place and test it; restore the previous file if it fails. Report the result."""
        state, version, sha256 = self.state, int(manifest["version"]), str(manifest["sha256"])
        if self.current.exists():
            self._keep_previous()
            if not state.sha256:  # the state was lost; a failed update restores this file
                state.sha256 = file_sha256(self.current)
        state.previous_sha256, state.previous_version = state.sha256, state.version
        state.trying = sha256  # after a power failure, `poll` restores the previous file
        state.save()
        file.replace(self.current)
        sync_directory(self.directory)
        start = time.monotonic()
        problem = self._self_test()
        if problem is None:
            state.sha256, state.version, state.trying = sha256, version, None
            log.info("installed version %s as %s", version, self.current)
            test_ms = (time.monotonic() - start) * 1000
            self._report(version, "ok", test_ms if self.args.self_test else None)
            return
        state.bad = [*state.bad, sha256][-MAX_REJECTED:]
        self._restore_whole_file()
        installed = f"version {state.version or 'unknown'}" if state.sha256 else "no version"
        self._report(version, "failed", None, f"{problem}; {installed} is installed")
        raise UpdateRefused(f"version {version} failed its self-test and was removed: {problem}")

    def _keep_previous(self) -> None:
        """Keep the installed file as the previous one, by a hard link, or a copy where there are none."""
        spare = self.directory / "spare"
        spare.unlink(missing_ok=True)
        try:
            os.link(self.current, spare)
        except OSError:  # vfat, exFAT and some network file systems
            try:
                copy_durably(self.current, spare)
            except OSError:
                spare.unlink(missing_ok=True)
                raise
        spare.replace(self.previous)

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
        self, version: int, status: str, latency_ms: float | None = None, message: str | None = None
    ) -> None:
        """Store the state with a report, and send the report to the server."""
        report = {"device": self.args.device, "version": version, "status": status}
        if latency_ms is not None:
            report["latency_ms"] = round(latency_ms, 3)
        if message is not None:
            report["message"] = message.replace("\0", "\N{REPLACEMENT CHARACTER}")
        self.state.report = report
        self.state.save()
        self._send_report()

    def _send_report(self) -> None:
        """Send the stored report. When the server cannot be reached, the next poll sends it again."""
        if not self.state.report:
            return
        try:
            response = self.client.post(f"/v1/edge/{self.args.model}/reports", json=self.state.report)
            if response.status_code in (201, 404, 413, 422):  # a repetition would not change the answer
                self.state.report = {}
            require_status(response, 201)
        except (httpx.HTTPError, UpdateRefused) as error:
            log.warning("the server did not accept the report: %s", error)
        self.state.save()

    def _remember_etag(self, response: httpx.Response) -> None:
        self.state.etag = response.headers.get("ETag")
        self.state.save()


def parse_manifest(response: httpx.Response, args: argparse.Namespace) -> dict[str, Any]:
    """Raises `UpdateRefused` for other content: a portal or proxy may answer 200 with its own page."""
    try:
        manifest: dict[str, Any] = response.json()
        int(manifest["version"])
        if not re.fullmatch("[0-9a-f]{64}", manifest["sha256"]):
            raise ValueError("its sha256 is not 64 hex digits")
        for name in ("model", "alias", "quantize"):
            if manifest[name] != getattr(args, name):
                raise ValueError(f"its {name} is {manifest[name]!r} instead of {getattr(args, name)!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise UpdateRefused(
            f"the response is not a manifest of {args.model} ({type(error).__name__}: {error})"
        ) from error
    return manifest


def body_position(response: httpx.Response, size: int, length: int) -> int:
    """Return where in the file the body of a response begins, for a request of the bytes from `size` on.

    Raises `FaultyPart` for a part that does not continue the file: caches send blocks that begin earlier or
    later, of another file, or several parts. A part that begins earlier is used.
    """
    if response.status_code == 416:
        raise FaultyPart("the server does not have the requested range")
    require_status(response, 200, 206)
    coding = response.headers.get("Content-Encoding", "identity")
    if response.status_code == 200:
        announced = response.headers.get("Content-Length", str(length))
        if coding == "identity" and announced != str(length):
            raise FaultyPart(f"the server sends {announced} bytes instead of the signed {length}")
        return 0
    content_range = response.headers.get("Content-Range", "missing")
    match = CONTENT_RANGE.fullmatch(content_range)
    if not match or int(match[1]) > size or match[2] not in ("*", str(length)) or coding != "identity":
        raise FaultyPart(
            f"the response does not continue the file at byte {size} of {length} (Content-Range: "
            f"{content_range}, Content-Encoding: {coding})"
        )
    return int(match[1])


def require_status(response: httpx.Response, *expected: int) -> None:
    """Raises `UpdateRefused` with the server's message for another status."""
    if response.status_code in expected:
        return
    response.read()
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.headers.get("Location") or response.text[:200]
    raise UpdateRefused(f"the server answered {response.status_code}: {detail}")


def warn_about_clock(response: httpx.Response) -> None:
    """Log a clock that is wrong by more than a day: it decides whether signed documents have expired."""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        difference = time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
        if abs(difference) > DAY_S:
            log.warning(
                "the clock of this device differs from the server's by %.0f s; correct it", difference
            )


@contextlib.contextmanager
def deleted_if_unusable(part: Path) -> Iterator[None]:
    """Delete the part of a download when it is at fault, or when it filled the disk."""
    try:
        yield
    except FaultyPart:
        part.unlink(missing_ok=True)
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        part.unlink(missing_ok=True)
        raise UpdateRefused(f"the disk is full; the part of the download was deleted: {error}") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of the directory. Raises `UpdateRefused` when another process has it."""
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UpdateRefused(f"another edge_pull.py is running on {directory}") from error
        except OSError as error:
            log.warning("%s has no locks (%s): run one edge_pull.py on it at a time", directory, error)
        yield


def file_sha256(path: Path) -> str | None:
    """Return the digest of the file's bytes, or None when there is no file."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as content:
            for block in iter(lambda: content.read(BLOCK_BYTES), b""):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()


def copy_durably(source: Path, target: Path) -> None:
    with source.open("rb") as content, target.open("wb") as out:
        shutil.copyfileobj(content, out, BLOCK_BYTES)
        out.flush()
        os.fsync(out.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush renames in `directory` to the disk, if its file system can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_DIRECTORY_SYNC:
            raise


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
    args = parser.parse_args(argv)
    args.url = args.url.rstrip("/")
    for option, problem in option_problems(args):
        parser.error(f"argument --{option}: {problem}")
    return args


def option_problems(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield options that no poll could work with."""
    try:
        url = httpx.URL(args.url)
    except httpx.InvalidURL as error:
        yield "url", str(error)
    else:
        if url.scheme not in ("http", "https") or not url.host:
            yield "url", f"{args.url!r} is not the http:// or https:// address of a server"
    for name in ("model", "alias"):
        if not NAME.fullmatch(getattr(args, name)):
            yield name, "a name is 1 to 63 of a-z 0-9 _ . - and starts with a letter or digit"
    if not args.device.isprintable() or not args.device.strip():
        yield "device", f"{args.device!r} must have visible characters and no line breaks or other controls"
    if len(args.device) > MAX_DEVICE_LENGTH:
        yield "device", f"its {len(args.device)} characters are more than {MAX_DEVICE_LENGTH}"
    if args.runtime_version and not RUNTIME_VERSION.fullmatch(args.runtime_version):
        yield "runtime-version", f"{args.runtime_version!r} is not a version such as 2.1.0"
    for name in ("interval", "self_test_timeout"):
        if not 0 < getattr(args, name) < math.inf:
            yield name.replace("_", "-"), "a positive number of seconds is required"
    try:
        shlex.split(args.self_test or "")
    except ValueError as error:
        yield "self-test", f"{args.self_test!r} is not a command: {error}"


def request_headers(args: argparse.Namespace) -> dict[str, str]:
    """Return the headers of all requests. Headers are ASCII, so the device's name is percent-encoded."""
    try:
        key = args.key_file.read_text().strip() if args.key_file else os.environ.get("TRIVIUM_API_KEY", "")
    except (OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"the file of the API key cannot be read: {error}") from error
    if not key:
        raise SystemExit("an API key is required: set TRIVIUM_API_KEY or pass --key-file")
    if not re.fullmatch("[!-~]+", key):
        raise SystemExit("the API key has spaces or characters outside ASCII: copy it again")
    headers = {"Authorization": f"Bearer {key}", "X-Device-Id": quote(args.device, safe="")}
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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopped = stop_signal()
    try:
        args.dir.mkdir(parents=True, exist_ok=True)
        headers = request_headers(args)
        with locked(args.dir), httpx.Client(base_url=args.url, headers=headers, timeout=TIMEOUT_S) as client:
            return run(ModelUpdater(args, client), stopped)
    except (UpdateRefused, OSError) as error:
        log.error("%s: %s", type(error).__name__, error)
        return EXIT_FAILED


def run(updater: ModelUpdater, stopped: Callable[[float], bool]) -> int:
    """Poll once, or until a signal arrives. Return the exit code."""
    wait = interval = updater.args.interval
    while True:
        failed = False
        try:
            if not updater.poll():
                log.info("%s", updater)
        except (UpdateRefused, httpx.HTTPError, DownloadError, RepositoryError, OSError) as error:
            failed = True
            log.error("%s: %s", type(error).__name__, error)
        if updater.args.once:
            return EXIT_FAILED if failed else 0
        # Random intervals: devices that were switched on together do not poll together.
        wait = min(wait * 2, max(MAX_BACKOFF_S, interval)) if failed else interval
        if stopped(wait * random.uniform(0.8, 1.2)):  # noqa: S311 - not a secret
            return 0


if __name__ == "__main__":
    sys.exit(main())
