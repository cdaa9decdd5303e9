"""One file over HTTP: which headers, which status, which bytes."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pyarrow as pa
import pytest
from sqlalchemy import event

from service.config import Settings
from tests.service.api import Api, refused, running
from tests.service.edge.exported import File, add_export, some_file

pytestmark = pytest.mark.anyio

LATEST = "/v1/edge/flag/latest.tflite"
IDENTITY = {"accept-encoding": "identity"}


class Edge(NamedTuple):
    api: Api
    file: File  # of `flag`'s champion, version 1

    async def get(self, path: str = LATEST, method: str = "GET", **headers: str) -> httpx.Response:
        named = {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.api.client.request(method, path, headers=IDENTITY | named)


@pytest.fixture(scope="module")
async def edge(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("edge") / "home")
    async with running(Settings(home=home)) as api:
        yield Edge(api, add_export(api.services, some_file(1)))


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def test_the_newest_file_says_what_it_is(edge: Edge):
    answer = await edge.get()
    assert answer.status_code == 200
    assert answer.content == edge.file.content
    expected = {
        "content-type": "application/octet-stream",
        "content-length": str(len(edge.file.content)),
        "content-disposition": 'attachment; filename="flag-1.tflite"',
        "cache-control": "private, no-cache",
        "accept-ranges": "bytes",
        "etag": edge.file.etag,
        "repr-digest": digest(edge.file.content),
        "vary": "Accept-Encoding, X-Device-Id, X-Runtime-Version",
        "x-model-version": "1",
        "x-model-sha256": edge.file.sha256,
        "x-min-runtime": "2.1.0",
    }
    assert {k: v for k, v in answer.headers.items() if k != "x-request-id"} == expected


async def test_who_accepts_zstd_gets_the_compressed_form_with_its_own_tag_and_digest(edge: Edge):
    answer = await edge.get(accept_encoding="gzip, zstd")
    packed = edge.file.zstd
    assert answer.content == packed
    assert pa.decompress(packed, len(edge.file.content), codec="zstd", asbytes=True) == edge.file.content
    assert answer.headers["content-encoding"] == "zstd"
    assert answer.headers["content-length"] == str(len(packed))
    assert answer.headers["etag"] == edge.file.zstd_etag
    assert answer.headers["repr-digest"] == digest(packed)
    assert answer.headers["x-model-sha256"] == edge.file.sha256, "of the file, however it travels"


async def test_a_file_without_a_compressed_form_travels_as_it_is(edge: Edge):
    add_export(edge.api.services, b"plain", quantize="float16", compressed=False)
    answer = await edge.get(f"{LATEST}?quantize=float16", accept_encoding="zstd")
    assert (answer.content, "content-encoding" in answer.headers) == (b"plain", False)
    assert "Accept-Encoding" in answer.headers["vary"]


async def test_who_refuses_every_form_is_told_which_there_are(edge: Edge):
    problem = refused(await edge.get(accept_encoding="gzip, *;q=0"), 406)
    assert "zstd or identity" in problem["detail"]


HEADERS: list[dict[str, str]] = [
    {},
    {"accept_encoding": "zstd"},
    {"if_none_match": "TAG"},
    {"if_none_match": "W/TAG"},
    {"if_none_match": '"other", TAG'},
    {"if_none_match": "*"},
    {"if_none_match": '"other"'},
    {"if_none_match": "TAG", "accept_encoding": "zstd"},
    {"if_none_match": "ZTAG", "accept_encoding": "zstd"},
    {"if_none_match": "ZTAG"},
    {"if_none_match": "TAG", "range": "bytes=0-9"},
    {"if_match": "TAG"},
    {"if_match": "*"},
    {"if_match": "W/TAG"},
    {"if_match": '"other"'},
    {"if_match": '"other"', "if_none_match": "TAG"},
    {"if_match": "TAG", "if_none_match": "TAG"},
    {"if_match": "TAG", "range": "bytes=0-9"},
    {"if_match": '"other"', "range": "bytes=0-9"},
    {"if_modified_since": "Wed, 21 Oct 2099 07:28:00 GMT"},
    {"if_unmodified_since": "Wed, 21 Oct 1999 07:28:00 GMT"},
    {"range": "bytes=0-9"},
    {"range": "bytes=-10"},
    {"range": "bytes=100-"},
    {"range": "bytes=0-9", "if_range": "TAG"},
    {"range": "bytes=0-9", "if_range": "W/TAG"},
    {"range": "bytes=0-9", "if_range": '"other"'},
    {"range": "bytes=0-9", "if_range": "Wed, 21 Oct 2099 07:28:00 GMT"},
    {"range": "bytes=0-9", "if_range": "TAG", "accept_encoding": "zstd"},
    {"range": "bytes=0-9", "if_range": "ZTAG", "accept_encoding": "zstd"},
    {"range": "bytes=0-9", "accept_encoding": "zstd"},
    {"range": "bytes=0-9, 20-29"},
    {"range": "bytes=9-0"},
    {"range": "bytes=1000000-"},
    {"range": "bytes=-0"},
    {"range": "bytes=1000000-", "if_range": '"other"'},
    {"accept_encoding": "identity;q=0, *;q=0"},
]
EXPECTED: list[tuple[int, str | None]] = [  # the status, and of a file or a part of it what is sent
    (200, "plain"),
    (200, "zstd"),
    (304, None),
    (304, None),
    (304, None),
    (304, None),
    (200, "plain"),
    (304, None),
    (304, None),
    (200, "plain"),
    (304, None),
    (200, "plain"),
    (200, "plain"),
    (412, None),
    (412, None),
    (412, None),
    (304, None),
    (206, "plain 0-9"),
    (412, None),
    (200, "plain"),
    (200, "plain"),
    (206, "plain 0-9"),
    (206, "plain 19990-19999"),
    (206, "plain 100-19999"),
    (206, "plain 0-9"),
    (200, "plain"),
    (200, "plain"),
    (200, "plain"),
    (206, "plain 0-9"),
    (206, "zstd 0-9"),
    (206, "zstd 0-9"),
    (200, "plain"),
    (200, "plain"),
    (416, None),
    (416, None),
    (200, "plain"),
    (406, None),
]
CASES = list(zip(HEADERS, EXPECTED, strict=True))


def spelled(headers: dict[str, str], file: File) -> dict[str, str]:
    return {k: v.replace("ZTAG", file.zstd_etag).replace("TAG", file.etag) for k, v in headers.items()}


@pytest.mark.parametrize("path", ["latest", "blob"])
@pytest.mark.parametrize(("headers", "expected"), CASES, ids=[str(h) for h in HEADERS])
async def test_every_header_that_decides(
    edge: Edge, path: str, headers: dict[str, str], expected: tuple[int, str | None]
):
    path = LATEST if path == "latest" else f"/v1/blobs/{edge.file.sha256}"
    answer = await edge.get(path, **spelled(headers, edge.file))
    status, sent = expected
    assert answer.status_code == status, answer.text
    if status in (406, 412, 416):
        refused(answer, status)
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(edge.file.content)}"
    if status == 304:
        assert answer.content == b""
        assert answer.headers["etag"] in (edge.file.etag, edge.file.zstd_etag)
        assert answer.headers["etag"].removeprefix("W/") in spelled(headers, edge.file)["if_none_match"] or (
            headers["if_none_match"] == "*"
        )
        assert {"vary", "cache-control", "x-model-version"} <= set(answer.headers)
        assert not {"content-length", "content-type", "repr-digest"} & set(answer.headers)
    if sent is not None:
        form, _, wanted = sent.partition(" ")
        whole = edge.file.zstd if form == "zstd" else edge.file.content
        assert whole is not None
        assert answer.headers["repr-digest"] == digest(whole), "of the whole, also with a part of it"
        assert answer.headers["etag"] == (edge.file.zstd_etag if form == "zstd" else edge.file.etag)
        assert answer.headers["accept-ranges"] == "bytes"
        if wanted:
            first, last = map(int, wanted.split("-"))
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(whole)}"
            whole = whole[first : last + 1]
        else:
            assert "content-range" not in answer.headers
        assert answer.headers["content-length"] == str(len(whole))
        assert answer.content == whole


@pytest.mark.parametrize("path", ["latest", "blob", "manifest"])
@pytest.mark.parametrize("headers", HEADERS, ids=str)
async def test_head_says_what_get_says_without_a_body(edge: Edge, path: str, headers: dict[str, str]):
    paths = {"latest": LATEST, "blob": f"/v1/blobs/{edge.file.sha256}", "manifest": "/v1/edge/flag"}
    named = spelled(headers, edge.file)
    head = await edge.get(paths[path], "HEAD", **named)
    named.pop("range", None)  # which is for GET alone
    get = await edge.get(paths[path], **named)
    assert head.status_code == get.status_code
    ignored = {"x-request-id"}
    if head.status_code < 400:
        assert head.content == b""
    else:
        ignored.add("content-length")  # the problem names its request
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }


async def test_condition_fields_on_several_lines_are_one_list(edge: Edge):
    lines = [("If-None-Match", '"other"'), ("If-None-Match", edge.file.etag), ("Accept-Encoding", "identity")]
    assert (await edge.api.client.get(LATEST, headers=lines)).status_code == 304


async def test_an_interrupted_download_goes_on_where_it_stopped(edge: Edge):
    first = await edge.get(range="bytes=0-6999")
    tag = first.headers["etag"]
    rest = await edge.get(range="bytes=7000-", if_range=tag)
    assert (first.status_code, rest.status_code) == (206, 206)
    assert first.content + rest.content == edge.file.content


async def test_a_blob_may_be_kept_for_ever(edge: Edge):
    answer = await edge.get(f"/v1/blobs/{edge.file.sha256}")
    assert answer.content == edge.file.content
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["vary"] == "Accept-Encoding"


async def test_only_blobs_of_ready_exports_are_given_out(edge: Edge):
    uploaded = await edge.api.upload(b"an upload that is nobody's export")
    rejected = add_export(edge.api.services, b"not what the model says", state="rejected")
    for sha256 in (uploaded, rejected.sha256, "0" * 64):
        refused(await edge.get(f"/v1/blobs/{sha256}"), 404)
    for odd in ("abc", "A" * 64, edge.file.sha256 + "0"):
        refused(await edge.get(f"/v1/blobs/{odd}"), 422)


async def test_a_rejected_export_is_never_the_newest_file(edge: Edge):
    add_export(edge.api.services, b"worse", state="rejected")
    assert (await edge.get()).content == edge.file.content


async def test_a_file_that_is_gone_from_the_disk_is_not_found(edge: Edge):
    lost = add_export(edge.api.services, b"lost", model="forest")
    edge.api.services.store.delete(lost.sha256)
    path = "/v1/edge/forest/latest.tflite"
    refused(await edge.get(path), 404)
    assert (await edge.get(path, if_none_match=lost.etag)).status_code == 304, "a 304 asks no disk"


async def test_a_304_asks_no_database(edge: Edge):
    def never(*_: object) -> None:
        raise AssertionError("the database was asked")

    event.listen(edge.api.services.engine, "before_cursor_execute", never)
    try:
        manifest = await edge.get("/v1/edge/flag", "HEAD", if_match='"other"')
        tag = manifest.headers["etag"]
        for path, known in ((LATEST, edge.file.etag), ("/v1/edge/flag", tag)):
            assert (await edge.get(path, if_none_match=known)).status_code == 304
    finally:
        event.remove(edge.api.services.engine, "before_cursor_execute", never)


async def test_the_manifest_says_what_there_is_and_how_faithful_it_is(edge: Edge):
    answer = await edge.get("/v1/edge/flag")
    record = answer.json()
    created = record.pop("created_at")
    assert record == {
        "model": "flag",
        "alias": "champion",
        "version": 1,
        "quantize": "none",
        "sha256": edge.file.sha256,
        "bytes": len(edge.file.content),
        "min_runtime": "2.1.0",
        "url": f"/v1/blobs/{edge.file.sha256}",
        "report": {"agreement": 1.0},
    }
    export = await edge.api.client.get(f"/v1/models/flag/versions/1/exports/{edge.file.export}")
    assert created == export.json()["created_at"]
    assert answer.headers["repr-digest"] == digest(answer.content)
    assert answer.headers["x-model-version"] == "1"
    assert (await edge.get(record["url"])).content == edge.file.content


async def test_the_manifest_is_conditional(edge: Edge):
    tag = (await edge.get("/v1/edge/flag")).headers["etag"]
    assert (await edge.get("/v1/edge/flag", if_none_match=tag)).status_code == 304
    refused(await edge.get("/v1/edge/flag", if_match='"other"'), 412)
    other = add_export(edge.api.services, some_file(9), quantize="dynamic")
    assert (await edge.get("/v1/edge/flag", if_none_match=tag)).status_code == 304, "this one is unchanged"
    dynamic = await edge.get("/v1/edge/flag?quantize=dynamic", if_none_match=tag)
    assert (dynamic.status_code, dynamic.json()["sha256"]) == (200, other.sha256)


async def test_a_new_export_of_the_version_changes_the_manifest_also_with_the_same_bytes(edge: Edge):
    add_export(edge.api.services, b"same", quantize="int8")
    before = (await edge.get("/v1/edge/flag?quantize=int8")).headers["etag"]
    add_export(edge.api.services, b"same", quantize="int8", min_runtime="1.0.0")
    after = await edge.get("/v1/edge/flag?quantize=int8", if_none_match=before)
    assert (after.status_code, after.json()["min_runtime"]) == (200, "1.0.0")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/edge/nobody", 404),
        ("/v1/edge/nobody/latest.tflite", 404),
        ("/v1/edge/flag?alias=challenger", 404),
        ("/v1/edge/ridge", 404),  # no export
        ("/v1/edge/flag?quantize=int4", 422),
        ("/v1/edge/flag?alias=Not+A+Name", 422),
        ("/v1/edge/flag?version=1", 422),
        (f"{LATEST}?quantise=none", 422),
        ("/v1/edge/Not%20A%20Name", 422),
    ],
)
async def test_what_is_not_there_is_refused_by_name(edge: Edge, path: str, status: int):
    refused(await edge.get(path), status)
    assert (await edge.get(path, "HEAD")).status_code == status


@pytest.mark.parametrize("path", [LATEST, "/v1/edge/flag"])
async def test_other_methods_are_refused(edge: Edge, path: str):
    answer = await edge.get(path, "DELETE")
    refused(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"


async def test_the_edge_needs_its_scope_and_a_key_of_the_model(edge: Edge):
    paths = [LATEST, "/v1/edge/flag", f"/v1/blobs/{edge.file.sha256}"]
    assert [(await edge.api.anonymous.get(p)).status_code for p in paths] == [401] * 3
    for key, statuses in [
        (await edge.api.key("predict", "publish", "promote"), [403] * 3),
        (await edge.api.key("edge"), [200] * 3),
        (await edge.api.key("edge", models=["flag", "ridge"]), [200] * 3),
        (await edge.api.key("edge", models=["ridge"]), [403, 403, 404]),
    ]:
        async with edge.api.with_key(key) as client:
            assert [(await client.get(p)).status_code for p in paths] == statuses
            assert [(await client.head(p)).status_code for p in paths] == statuses


async def test_a_file_of_two_models_is_for_keys_of_either(edge: Edge):
    shared = add_export(edge.api.services, edge.file.content, model="price")
    assert shared.sha256 == edge.file.sha256
    async with edge.api.with_key(await edge.api.key("edge", models=["price"])) as client:
        answer = await client.get(f"/v1/blobs/{shared.sha256}")
    assert (answer.status_code, answer.headers["content-disposition"]) == (
        200,
        'attachment; filename="price-1.tflite"',
    )
