"""One connection to a server: what the `trivium` command, the demo and scripts talk through.

It knows addresses, keys, retries and errors, not what a record means: answers are the API's own
JSON. Retried is what cannot take effect twice: connections that were refused, and calls that are
idempotent by their method or by an `Idempotency-Key`.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import msgspec

from service.client.builder_watch import BuilderWatch
from service.client.environment import environment
from service.client.errors import Record, ServerRefused, Unreachable, WrongBytes
from service.client.refs import ModelRef, path

CHUNK = 1 << 20  # bytes of an upload between two calls of `progress`


class Client:
    """Talks to one server with one key. `patience_s` is how long a lost server is waited for once it
    has answered; one that never answered is given a single second."""

    def __init__(self, url: str, key: str | None, timeout_s: float = 60.0, patience_s: float = 20.0) -> None:
        address = httpx.URL(url)
        if address.scheme not in ("http", "https") or not address.host:
            raise httpx.InvalidURL(f"{url!r} is not the address of a server; write http://host:port")
        self.url = url.rstrip("/")
        self._patience = 1.0
        self._patience_later = patience_s
        # A proxy from the environment has no business between this machine and itself.
        self.is_local = address.host in ("127.0.0.1", "localhost", "::1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
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
        """One call; its answer below 400. Raises `ServerRefused` and `Unreachable`."""
        sent = dict(headers or {})
        if json is not None:
            content, sent["Content-Type"] = msgspec.json.encode(json), "application/json"
        given_up, pause, lost = time.monotonic() + self._patience, 0.05, False
        while True:
            try:
                body = content() if callable(content) else content
                response = self._http.request(method, url, content=body, headers=sent, params=_set(params))
                self._patience = self._patience_later
                # After a lost connection a 409 says that the first try is still at work.
                if not (lost and response.status_code == 409):
                    return _accepted(response)
                failure: Exception = ServerRefused(response.status_code, _problem(response))
            except httpx.TransportError as error:
                failure = Unreachable(self.url, str(error) or type(error).__name__)
                if not _repeatable(error, method, sent):
                    raise failure from error
                lost = "Idempotency-Key" in sent
            if time.monotonic() + pause > given_up:
                raise failure
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    @contextmanager
    def stream(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 60.0
    ) -> Iterator[httpx.Response]:
        """A GET whose body is read as it comes; `timeout_s` is the longest silence. Nothing is sent again.

        Raises `ServerRefused`, and `Unreachable` also when the body breaks off.
        """
        try:
            with self._http.stream("GET", url, headers=dict(headers or {}), timeout=timeout_s) as response:
                if response.status_code >= 400:
                    response.read()
                yield _accepted(response)
        except httpx.TransportError as error:
            raise Unreachable(self.url, str(error) or type(error).__name__) from error

    def call(
        self, method: str, url: str, json: object = None, params: Mapping[str, Any] | None = None
    ) -> Any:
        """`send`, with the answer's JSON (None when there is none)."""
        response = self.send(method, url, json=json, params=params)
        return msgspec.json.decode(response.content) if response.content else None

    def pages(self, url: str, params: Mapping[str, Any] | None = None) -> Record:
        """A list's every page as one: `{"items": [...], "next_page_token": null}`."""
        items: list[Any] = []
        asked = {"page_size": 1000, **(params or {})}
        while True:
            page = self.call("GET", url, params=asked)
            items += page["items"]
            if not page.get("next_page_token"):
                return {**page, "items": items}
            asked["page_token"] = page["next_page_token"]

    def upload(self, file: Path, progress: Callable[[int], None] = lambda sent: None) -> str:
        """Streams `file` into the artifact store; its sha256. `progress` gets the bytes sent so far."""
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        headers = {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"}
        self.send("PUT", path("artifacts", sha256), content=lambda: _chunks(file, progress), headers=headers)
        return sha256

    def create(self, url: str, json: object) -> Record:
        """A POST that makes something. Its key makes it take effect once, however often it is sent."""
        answer = self.send("POST", url, json=json, headers={"Idempotency-Key": str(uuid.uuid4())})
        created: Record = msgspec.json.decode(answer.content)
        return created

    def publish(self, name: str, request: Record) -> Record:
        """A new version of uploaded artifacts: `artifact`, `format` and whatever else the API takes.

        Says beside it which versions are installed here.
        """
        said = {"published_from": environment(), **request}
        return self.create(path("models", name, "versions"), said)

    def wait(
        self,
        name: str,
        version: int,
        on_state: Callable[[Record], None] = lambda record: None,
        on_trouble: Callable[[str], None] = lambda words: None,
    ) -> Record:
        """The version's record once its build is over. `on_trouble` is told, once, why nothing is built.

        Raises `BuilderBroken` when the server's builder does not work and stays so.
        """
        return self._settled(path("models", name, "versions", version), on_state, on_trouble)

    def export(self, name: str, version: int, request: Record) -> Record:
        """A new export of a ready version: `format` and whatever else the API takes."""
        return self.create(path("models", name, "versions", version, "exports"), request)

    def wait_export(
        self,
        export: Record,
        on_state: Callable[[Record], None] = lambda record: None,
        on_trouble: Callable[[str], None] = lambda words: None,
    ) -> Record:
        """The export's record once it is ready or rejected; all else as `wait`."""
        where = ("models", export["model"], "versions", export["version"], "exports", export["id"])
        return self._settled(path(*where), on_state, on_trouble)

    def readiness(self) -> dict[str, str]:
        """The server's parts, each "ok" or what is wrong with it. Raises as `send`."""
        try:
            answer = self.call("GET", "/readyz")
        except ServerRefused as error:
            answer = error.problem
            if not isinstance(answer.get("checks"), dict):  # some other server's
                raise
        checks: dict[str, str] = answer["checks"]
        return checks

    def download(self, sha256: str) -> bytes:
        """The file of a ready export. Raises `WrongBytes`."""
        content = self.send("GET", path("blobs", sha256), headers={"Accept-Encoding": "identity"}).content
        if hashlib.sha256(content).hexdigest() != sha256:
            raise WrongBytes("what came", sha256)
        return content

    def _builder(self) -> str | None:
        """What is wrong with the builder, or "ok"; None when the server does not tell."""
        try:
            return self.readiness().get("builder")
        except (ServerRefused, Unreachable):  # a proxy that hides /readyz, or a server on its way back
            return None

    def _settled(
        self, url: str, on_state: Callable[[Record], None], on_trouble: Callable[[str], None]
    ) -> Record:
        pause, watch = 0.05, BuilderWatch(self._builder, on_trouble)
        while True:
            record: Record = self.call("GET", url)
            on_state(record)
            if record["state"] != "building":
                return record
            watch.look()
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def predict(self, model: ModelRef, rows: bytes, media_type: str = "application/json") -> Record:
        """The API's answer to a whole predict body, JSON or CSV."""
        where = ("versions", model.version) if model.version is not None else ()
        answer = self.send(
            "POST",
            path("models", model.name, *where, "predict"),
            content=rows,
            headers={"Content-Type": media_type, "Accept": "application/json"},
            params={"alias": model.alias},
        )
        answered: Record = msgspec.json.decode(answer.content)
        return answered


def _repeatable(error: httpx.TransportError, method: str, headers: Mapping[str, str]) -> bool:
    """May the call be sent again? Yes when it never arrived, or cannot take effect twice."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return True
    harmless = method != "POST" or "Idempotency-Key" in headers
    return harmless and not isinstance(error, httpx.TimeoutException)


def _accepted(response: httpx.Response) -> httpx.Response:
    if response.status_code >= 400:
        raise ServerRefused(response.status_code, _problem(response))
    return response


def _set(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: value for key, value in (params or {}).items() if value is not None} or None


def _chunks(file: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    sent = 0
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            yield chunk
            sent += len(chunk)
            progress(sent)


def _problem(response: httpx.Response) -> Record:
    try:
        problem = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        problem = None
    if isinstance(problem, dict):
        return problem
    # Something other than our server answered, a proxy say: its status is all there is to show.
    return {"title": response.reason_phrase, "detail": f"{response.status_code} {response.reason_phrase}"}
