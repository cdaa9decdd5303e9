"""The HTTP connection to one server: keys, retries and errors.

Records are the API's own JSON. Calls that cannot take effect twice are retried: those whose connection was
refused, and those that are idempotent by their method or by an `Idempotency-Key`.
"""

from __future__ import annotations

import hashlib
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from service.client.builder_watch import BuilderWatch
from service.client.client_errors import Record, ServerRefused, Unreachable, WrongBytes
from service.client.refs import ModelRef, path

CHUNK_BYTES = 1 << 20
"""Bytes of an upload between two calls of `progress`."""
FIRST_PATIENCE_S = 1.0
"""A server that has never answered is waited for this long."""


class Client:
    """A connection to one server with one key."""

    def __init__(
        self,
        url: str,
        key: str | None,
        timeout_s: float = 60.0,
        patience_s: float = 20.0,
        first_patience_s: float = FIRST_PATIENCE_S,
    ) -> None:
        """`patience_s`: calls are repeated for this long when a server that has answered before is lost.

        `first_patience_s`: the same for a server that has never answered.
        """
        address = httpx.URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            raise httpx.InvalidURL(f"{url!r} is not the address of a server; write http://host:port")
        self.url = url.rstrip("/")
        self._patience_s = first_patience_s
        self._later_patience_s = patience_s
        self.is_local = address.host in ("127.0.0.1", "localhost", "::1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # Calls to this machine must not go through a proxy from the environment.
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout_s, trust_env=not self.is_local
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(
        self,
        method: str,
        url: str,
        *,
        json: object = None,
        content: bytes | Callable[[], Iterator[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> httpx.Response:
        """Send a request, with retries, and return the response. Raises `ServerRefused` and `Unreachable`."""
        all_headers = dict(headers or {})
        if json is not None:
            content, all_headers["Content-Type"] = msgspec.json.encode(json), "application/json"
        deadline, pause, lost_response = time.monotonic() + self._patience_s, 0.05, False
        while True:
            try:
                body = content() if callable(content) else content
                response = self._http.request(
                    method, url, content=body, headers=all_headers, params=_drop_none(params)
                )
                self._patience_s = self._later_patience_s
                # After a lost response, 409 means that the server still works on the first try.
                if not (lost_response and response.status_code == 409):
                    return _raise_for_status(response)
                failure: Exception = ServerRefused(response.status_code, _problem(response))
            except httpx.TransportError as error:
                failure = Unreachable(self.url, str(error) or type(error).__name__)
                if not _is_repeatable(error, method, all_headers):
                    raise failure from error
                lost_response = "Idempotency-Key" in all_headers
            if time.monotonic() + pause > deadline:
                raise failure
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    @contextmanager
    def stream(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Iterator[httpx.Response]:
        """Send a GET whose body is read as it arrives; `timeout_s` is the longest pause. No retries.

        Raises `ServerRefused`, and `Unreachable` also when the body breaks off.
        """
        try:
            with self._http.stream("GET", url, headers=dict(headers or {}), timeout=timeout_s) as response:
                if response.status_code >= 400:
                    response.read()
                yield _raise_for_status(response)
        except httpx.TransportError as error:
            raise Unreachable(self.url, str(error) or type(error).__name__) from error

    def call(
        self, method: str, url: str, json: object = None, params: Mapping[str, Any] | None = None
    ) -> Any:
        """Send a request and return the JSON of the response, or None if the body is empty."""
        response = self.send(method, url, json=json, params=params)
        return msgspec.json.decode(response.content) if response.content else None

    def pages(self, url: str, params: Mapping[str, Any] | None = None) -> Record:
        """Return all pages of a list as one: `{"items": [...], "next_page_token": null}`."""
        items: list[Any] = []
        query = {"page_size": 1000, **(params or {})}
        while True:
            page = self.call("GET", url, params=query)
            items += page["items"]
            if not page.get("next_page_token"):
                return {**page, "items": items}
            query["page_token"] = page["next_page_token"]

    def upload(self, file: Path, progress: Callable[[int], None] = lambda bytes_sent: None) -> str:
        """Upload `file` as an artifact and return its sha256. `progress` gets the number of bytes sent."""
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        headers = {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"}
        self.send("PUT", path("artifacts", sha256), content=lambda: _chunks(file, progress), headers=headers)
        return sha256

    def create(self, url: str, json: object) -> Record:
        """Send a POST with an Idempotency-Key: it takes effect once, however often it is repeated."""
        response = self.send("POST", url, json=json, headers={"Idempotency-Key": str(uuid.uuid4())})
        record: Record = msgspec.json.decode(response.content)
        return record

    def publish(self, name: str, request: Record) -> Record:
        """Create a version of uploaded artifacts: `artifact`, `format` and the API's other fields.

        Adds the versions of the libraries that are installed here.
        """
        body = {"published_from": installed_versions(), **request}
        return self.create(path("models", name, "versions"), body)

    def wait(
        self,
        name: str,
        version: int,
        on_state: Callable[[Record], None] = lambda record: None,
        on_problem: Callable[[str], None] = lambda message: None,
    ) -> Record:
        """Return the version's record when its build is over; `on_state` gets it at every look.

        `on_problem` is called once if the server's builder does not work. Raises `BuilderBroken` if it stays
        so.
        """
        return self._wait_for_build(path("models", name, "versions", version), on_state, on_problem)

    def export(self, name: str, version: int, request: Record) -> Record:
        """Create an export of a ready version: `format` and the API's other fields."""
        return self.create(path("models", name, "versions", version, "exports"), request)

    def wait_export(
        self,
        export: Record,
        on_state: Callable[[Record], None] = lambda record: None,
        on_problem: Callable[[str], None] = lambda message: None,
    ) -> Record:
        """Return the export's record when it is ready or rejected; otherwise as `wait`."""
        parts = ("models", export["model"], "versions", export["version"], "exports", export["id"])
        return self._wait_for_build(path(*parts), on_state, on_problem)

    def verify(self, name: str, version: int, accept: bool = False) -> Record:
        """Have the version measured again and return its record, in which the check is pending."""
        record: Record = self.call(
            "POST", path("models", name, "versions", version, "verify"), {"accept": accept}
        )
        return record

    def wait_verified(
        self,
        name: str,
        version: int,
        on_state: Callable[[Record], None] = lambda record: None,
        on_problem: Callable[[str], None] = lambda message: None,
    ) -> Record:
        """Return the version's record when its check is over; otherwise as `wait`."""
        url = path("models", name, "versions", version)
        return self._wait_for_build(
            url, on_state, on_problem, lambda r: r["verification"]["state"] == "pending"
        )

    def readiness(self) -> dict[str, str]:
        """Return the server's checks, each "ok" or a description of the problem. Raises as `send`."""
        try:
            answer = self.call("GET", "/readyz")
        except ServerRefused as error:
            answer = error.problem
            if not isinstance(answer.get("checks"), dict):  # not a Trivium server
                raise
        checks: dict[str, str] = answer["checks"]
        return checks

    def download(self, sha256: str) -> bytes:
        """Return the file of a ready export. Raises `WrongBytes`."""
        content = self.send("GET", path("blobs", sha256), headers={"Accept-Encoding": "identity"}).content
        if hashlib.sha256(content).hexdigest() != sha256:
            raise WrongBytes("the downloaded file", sha256)
        return content

    def predict(self, model: ModelRef, rows: bytes, media_type: str = "application/json") -> Record:
        """Return the answer to the body of a predict call, JSON or CSV."""
        version = ("versions", model.version) if model.version is not None else ()
        response = self.send(
            "POST",
            path("models", model.name, *version, "predict"),
            content=rows,
            headers={"Content-Type": media_type, "Accept": "application/json"},
            params={"alias": model.alias},
        )
        answer: Record = msgspec.json.decode(response.content)
        return answer

    def _wait_for_build(
        self,
        url: str,
        on_state: Callable[[Record], None],
        on_problem: Callable[[str], None],
        is_running: Callable[[Record], bool] = lambda record: record["state"] == "building",
    ) -> Record:
        pause, watch = 0.05, BuilderWatch(self._builder_state, on_problem)
        while True:
            record: Record = self.call("GET", url)
            on_state(record)
            if not is_running(record):
                return record
            watch.check()
            time.sleep(pause)
            pause = min(pause * 1.2, 1.0)

    def _builder_state(self) -> str | None:
        """Return "ok" or the builder's problem; None if the server does not report it."""
        try:
            return self.readiness().get("builder")
        except (ServerRefused, Unreachable):  # a proxy that blocks /readyz, or a server that restarts
            return None


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and, if installed, scikit-learn and numpy, without importing them."""
    versions = {"python": platform.python_version()}
    for library in ("scikit-learn", "numpy"):
        try:
            versions[library] = installed_version(library)
        except PackageNotFoundError:
            continue
    return versions


def _is_repeatable(error: httpx.TransportError, method: str, headers: Mapping[str, str]) -> bool:
    """Return whether the call never arrived, or cannot take effect twice."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return True
    idempotent = method != "POST" or "Idempotency-Key" in headers
    return idempotent and not isinstance(error, httpx.TimeoutException)


def _raise_for_status(response: httpx.Response) -> httpx.Response:
    """Return the response. Raises `ServerRefused` for status 400 and above."""
    if response.status_code >= 400:
        raise ServerRefused(response.status_code, _problem(response))
    return response


def _drop_none(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: value for key, value in (params or {}).items() if value is not None} or None


def _chunks(file: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    bytes_sent = 0
    with file.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            yield chunk
            bytes_sent += len(chunk)
            progress(bytes_sent)


def _problem(response: httpx.Response) -> Record:
    """Return the problem document of an error, or the status as one if another program answered."""
    try:
        problem = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        problem = None
    if isinstance(problem, dict):
        return problem
    return {"title": response.reason_phrase, "detail": f"{response.status_code} {response.reason_phrase}"}
