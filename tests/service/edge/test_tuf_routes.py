"""The signed documents and their files over HTTP, at the paths that TUF clients request."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from registry import db, tuf_documents
from registry.tuf_documents import ROLES
from service.config import Settings
from service.edge.tuf_keys import RoleKeys
from service.edge.tuf_repository import TufRepository
from tests.service.api import Api, check_problem, running_app
from tests.service.edge.export_helpers import File, add_export, some_file

pytestmark = pytest.mark.anyio


class SignedApi(NamedTuple):
    api: Api
    file: File  # of `flag`'s champion, version 1

    def stored(self, role: str, version: int) -> bytes:
        with db.reading(self.api.services.sessions) as session:
            return tuf_documents.get(session, role, version).encode()


@pytest.fixture(scope="module")
async def signed(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SignedApi]:
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("tuf_routes") / "home")
    async with running_app(Settings(home=home)) as api:
        answers = [await api.client.get(f"/tuf/metadata/{f}") for f in ("timestamp.json", "1.root.json")]
        assert "nothing has been exported yet" in check_problem(answers[0], 404)["detail"]
        check_problem(answers[1], 404)
        file = add_export(api.services, some_file(1))
        with db.locked(home / "tuf.lock"), api.services.sessions.begin() as session:
            TufRepository(session, RoleKeys(home / "tuf")).refresh()
        yield SignedApi(api, file)


@pytest.mark.parametrize("role", ROLES)
async def test_documents_are_sent_as_they_were_signed(signed: SignedApi, role: str) -> None:
    stored = signed.stored(role, 1)
    for name, caching in (
        (f"1.{role}.json", "private, max-age=31536000, immutable"),
        (f"{role}.json", "private, no-cache"),
    ):
        answer = await signed.api.client.get(f"/tuf/metadata/{name}")
        assert (answer.status_code, answer.content) == (200, stored)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == caching


@pytest.mark.parametrize(
    "name",
    [
        "2.root.json",
        "0.root.json",
        "01.root.json",
        "1000000000.root.json",
        "999999999.root.json",
        "-1.root.json",
        "1.mirrors.json",
        "mirrors.json",
        "root.pem",
        "root.json.json",
        "x1.root.json",
        "root",
    ],
)
async def test_other_documents_are_404(signed: SignedApi, name: str) -> None:
    assert name in check_problem(await signed.api.client.get(f"/tuf/metadata/{name}"), 404)["detail"]


async def test_a_signed_file_is_sent_uncompressed(signed: SignedApi) -> None:
    sha256 = signed.file.sha256
    for name in (f"{sha256}.none.tflite", f"{sha256}.none.rollout.tflite", f"{sha256}.none.2.1.0.tflite"):
        answer = await signed.api.client.get(
            f"/tuf/targets/flag/champion/{name}", headers={"Accept-Encoding": "zstd"}
        )
        assert (answer.status_code, answer.content) == (200, signed.file.content)
        assert "content-encoding" not in answer.headers
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"


@pytest.mark.parametrize(
    "path",
    [
        "flag/champion/none.tflite",
        "flag/champion/SHA.tflite",
        "flag/champion/SHA.int4.tflite",
        "flag/champion/SHA.none",
        "flag/champion/xSHA.none.tflite",
        "flag/champion/SHA.none.tflite.pem",
        "price/champion/SHA.none.tflite",
        "missing/champion/SHA.none.tflite",
        f"flag/champion/{'0' * 64}.none.tflite",
    ],
)
async def test_other_files_are_404(signed: SignedApi, path: str) -> None:
    path = path.replace("SHA", signed.file.sha256)
    problem = check_problem(await signed.api.client.get(f"/tuf/targets/{path}"), 404)
    assert path in problem["detail"]


async def test_tuf_files_require_the_edge_scope_and_access_to_the_model(signed: SignedApi) -> None:
    paths = ["/tuf/metadata/root.json", f"/tuf/targets/flag/champion/{signed.file.sha256}.none.tflite"]
    assert [(await signed.api.anonymous.get(p)).status_code for p in paths] == [401, 401]
    for scopes, models, statuses in [
        (["predict", "publish", "promote"], None, [403, 403]),
        (["edge"], None, [200, 200]),
        (["edge"], ["flag"], [200, 200]),
        (["edge"], ["price"], [200, 403]),
    ]:
        async with signed.api.with_key(await signed.api.key(*scopes, models=models)) as client:
            assert [(await client.get(p)).status_code for p in paths] == statuses
