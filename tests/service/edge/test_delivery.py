"""Downloads of one file over HTTP: headers, statuses and bytes."""

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
from tests.service.api import Api, check_problem, running_app
from tests.service.edge.export_helpers import File, add_export, some_file

pytestmark = pytest.mark.anyio

LATEST = "/v1/edge/flag/latest.tflite"
IDENTITY = {"accept-encoding": "identity"}


class EdgeApi(NamedTuple):
    api: Api
    file: File  # of `flag`'s champion, version 1

    async def get(self, path: str = LATEST, method: str = "GET", **headers: str) -> httpx.Response:
        by_name = {k.replace("_", "-"): v for k, v in headers.items()}
        return await self.api.client.request(method, path, headers=IDENTITY | by_name)


@pytest.fixture(scope="module")
async def edge(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EdgeApi]:
    home = shutil.copytree(published_home, tmp_path_factory.mktemp("edge") / "home")
    async with running_app(Settings(home=home)) as api:
        yield EdgeApi(api, add_export(api.services, some_file(1)))


def repr_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def test_the_latest_file_has_its_headers(edge: EdgeApi):
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
        "repr-digest": repr_digest(edge.file.content),
        "vary": "Accept-Encoding, X-Device-Id, X-Runtime-Version",
        "x-model-version": "1",
        "x-model-sha256": edge.file.sha256,
        "x-min-runtime": "2.1.0",
    }
    assert {k: v for k, v in answer.headers.items() if k != "x-request-id"} == expected


async def test_a_client_that_accepts_zstd_gets_the_compressed_file_with_its_own_tag_and_digest(edge: EdgeApi):
    answer = await edge.get(accept_encoding="gzip, zstd")
    compressed = edge.file.zstd
    assert answer.content == compressed
    assert pa.decompress(compressed, len(edge.file.content), codec="zstd", asbytes=True) == edge.file.content
    assert answer.headers["content-encoding"] == "zstd"
    assert answer.headers["content-length"] == str(len(compressed))
    assert answer.headers["etag"] == edge.file.zstd_etag
    assert answer.headers["repr-digest"] == repr_digest(compressed)
    assert answer.headers["x-model-sha256"] == edge.file.sha256, "the digest of the uncompressed file"


async def test_a_file_without_a_compressed_copy_is_sent_uncompressed(edge: EdgeApi):
    add_export(edge.api.services, b"plain", quantize="float16", compressed=False)
    answer = await edge.get(f"{LATEST}?quantize=float16", accept_encoding="zstd")
    assert (answer.content, "content-encoding" in answer.headers) == (b"plain", False)
    assert "Accept-Encoding" in answer.headers["vary"]


async def test_a_client_that_accepts_no_available_coding_gets_406_with_the_codings(edge: EdgeApi):
    problem = check_problem(await edge.get(accept_encoding="gzip, *;q=0"), 406)
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
EXPECTED: list[tuple[int, str | None]] = [  # the status, the coding and the range of the body
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


def with_tags(headers: dict[str, str], file: File) -> dict[str, str]:
    return {k: v.replace("ZTAG", file.zstd_etag).replace("TAG", file.etag) for k, v in headers.items()}


@pytest.mark.parametrize("path", ["latest", "blob"])
@pytest.mark.parametrize(("headers", "expected"), CASES, ids=[str(h) for h in HEADERS])
async def test_the_response_to_every_conditional_header(
    edge: EdgeApi, path: str, headers: dict[str, str], expected: tuple[int, str | None]
):
    path = LATEST if path == "latest" else f"/v1/blobs/{edge.file.sha256}"
    answer = await edge.get(path, **with_tags(headers, edge.file))
    status, body = expected
    assert answer.status_code == status, answer.text
    if status in (406, 412, 416):
        check_problem(answer, status)
    if status == 416:
        assert answer.headers["content-range"] == f"bytes */{len(edge.file.content)}"
    if status == 304:
        assert answer.content == b""
        assert answer.headers["etag"] in (edge.file.etag, edge.file.zstd_etag)
        assert answer.headers["etag"].removeprefix("W/") in with_tags(headers, edge.file)[
            "if_none_match"
        ] or (headers["if_none_match"] == "*")
        assert {"vary", "cache-control", "x-model-version"} <= set(answer.headers)
        assert not {"content-length", "content-type", "repr-digest"} & set(answer.headers)
    if body is not None:
        coding, _, byte_range = body.partition(" ")
        representation = edge.file.zstd if coding == "zstd" else edge.file.content
        assert representation is not None
        assert answer.headers["repr-digest"] == repr_digest(representation), (
            "of the whole representation, also with a range"
        )
        assert answer.headers["etag"] == (edge.file.zstd_etag if coding == "zstd" else edge.file.etag)
        assert answer.headers["accept-ranges"] == "bytes"
        if byte_range:
            first, last = map(int, byte_range.split("-"))
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(representation)}"
            representation = representation[first : last + 1]
        else:
            assert "content-range" not in answer.headers
        assert answer.headers["content-length"] == str(len(representation))
        assert answer.content == representation


@pytest.mark.parametrize("path", ["latest", "blob", "manifest"])
@pytest.mark.parametrize("headers", HEADERS, ids=str)
async def test_head_has_the_status_and_headers_of_get_and_no_body(
    edge: EdgeApi, path: str, headers: dict[str, str]
):
    paths = {"latest": LATEST, "blob": f"/v1/blobs/{edge.file.sha256}", "manifest": "/v1/edge/flag"}
    tagged = with_tags(headers, edge.file)
    head = await edge.get(paths[path], "HEAD", **tagged)
    tagged.pop("range", None)  # defined for GET only
    get = await edge.get(paths[path], **tagged)
    assert head.status_code == get.status_code
    differing_headers = {"x-request-id"}
    if head.status_code < 400:
        assert head.content == b""
    else:
        differing_headers.add("content-length")  # the problem document contains the request id
    assert {k: v for k, v in head.headers.items() if k not in differing_headers} == {
        k: v for k, v in get.headers.items() if k not in differing_headers
    }


async def test_a_header_on_several_lines_is_one_list(edge: EdgeApi):
    lines = [("If-None-Match", '"other"'), ("If-None-Match", edge.file.etag), ("Accept-Encoding", "identity")]
    assert (await edge.api.client.get(LATEST, headers=lines)).status_code == 304


async def test_an_interrupted_download_resumes_where_it_stopped(edge: EdgeApi):
    first = await edge.get(range="bytes=0-6999")
    tag = first.headers["etag"]
    second = await edge.get(range="bytes=7000-", if_range=tag)
    assert (first.status_code, second.status_code) == (206, 206)
    assert first.content + second.content == edge.file.content


async def test_a_blob_is_immutable_for_caches(edge: EdgeApi):
    answer = await edge.get(f"/v1/blobs/{edge.file.sha256}")
    assert answer.content == edge.file.content
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["vary"] == "Accept-Encoding"


async def test_only_blobs_of_ready_exports_are_served(edge: EdgeApi):
    uploaded = await edge.api.upload(b"an upload without an export")
    rejected = add_export(edge.api.services, b"not what the model predicts", state="rejected")
    for sha256 in (uploaded, rejected.sha256, "0" * 64):
        check_problem(await edge.get(f"/v1/blobs/{sha256}"), 404)
    for invalid in ("abc", "A" * 64, edge.file.sha256 + "0"):
        check_problem(await edge.get(f"/v1/blobs/{invalid}"), 422)


async def test_a_rejected_export_is_never_the_latest_file(edge: EdgeApi):
    add_export(edge.api.services, b"worse", state="rejected")
    assert (await edge.get()).content == edge.file.content


async def test_a_file_missing_on_disk_is_404(edge: EdgeApi):
    file = add_export(edge.api.services, b"deleted", model="forest")
    edge.api.services.store.delete(file.sha256)
    path = "/v1/edge/forest/latest.tflite"
    check_problem(await edge.get(path), 404)
    assert (await edge.get(path, if_none_match=file.etag)).status_code == 304, "without a disk access"


async def test_a_damaged_file_is_refused(edge: EdgeApi):
    file = add_export(edge.api.services, b"damaged later", model="forest")
    edge.api.services.store.path(file.sha256).write_bytes(b"damaged")
    for url in ("/v1/edge/forest/latest.tflite", f"/v1/blobs/{file.sha256}"):
        problem = check_problem(await edge.get(url), 500)
        assert f"{file.sha256} is damaged: its 7 bytes have another sha256" in problem["detail"]
    await edge.api.upload(file.content)
    assert (await edge.get("/v1/edge/forest/latest.tflite")).content == file.content


async def test_a_304_needs_no_database_query(edge: EdgeApi):
    def fail(*_: object) -> None:
        raise AssertionError("a query was executed")

    event.listen(edge.api.services.engine, "before_cursor_execute", fail)
    try:
        manifest = await edge.get("/v1/edge/flag", "HEAD", if_match='"other"')
        tag = manifest.headers["etag"]
        for path, etag in ((LATEST, edge.file.etag), ("/v1/edge/flag", tag)):
            assert (await edge.get(path, if_none_match=etag)).status_code == 304
    finally:
        event.remove(edge.api.services.engine, "before_cursor_execute", fail)


async def test_the_manifest_describes_the_file_and_its_parity(edge: EdgeApi):
    answer = await edge.get("/v1/edge/flag")
    record = answer.json()
    created_at = record.pop("created_at")
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
    assert created_at == export.json()["created_at"]
    assert answer.headers["repr-digest"] == repr_digest(answer.content)
    assert answer.headers["x-model-version"] == "1"
    assert answer.headers["content-type"] == "application/json"
    assert (await edge.get(record["url"])).content == edge.file.content


async def test_the_manifest_is_conditional(edge: EdgeApi):
    tag = (await edge.get("/v1/edge/flag")).headers["etag"]
    assert (await edge.get("/v1/edge/flag", if_none_match=tag)).status_code == 304
    check_problem(await edge.get("/v1/edge/flag", if_match='"other"'), 412)
    other = add_export(edge.api.services, some_file(9), quantize="dynamic")
    assert (await edge.get("/v1/edge/flag", if_none_match=tag)).status_code == 304, (
        "another export changes nothing"
    )
    dynamic = await edge.get("/v1/edge/flag?quantize=dynamic", if_none_match=tag)
    assert (dynamic.status_code, dynamic.json()["sha256"]) == (200, other.sha256)


async def test_the_file_name_contains_the_quantization(edge: EdgeApi):
    add_export(edge.api.services, b"dynamic", quantize="dynamic")
    answer = await edge.get(f"{LATEST}?quantize=dynamic")
    assert answer.headers["content-disposition"] == 'attachment; filename="flag-1-dynamic.tflite"'


async def test_a_malformed_digest_is_422(edge: EdgeApi):
    for sha256 in ("0" * 63, "0" * 65, "g" * 64, "A" * 64):
        check_problem(await edge.get(f"/v1/blobs/{sha256}"), 422)


async def test_every_status_of_a_download_is_documented(edge: EdgeApi):
    paths = (await edge.api.client.get("/openapi.json")).json()["paths"]
    manifest = {"200", "304", "404", "409", "412", "422"}
    for path, method, extra in [
        ("/v1/edge/{name}", "get", set()),
        ("/v1/edge/{name}", "head", set()),
        ("/v1/edge/{name}/latest.tflite", "get", {"206", "406", "416"}),
        ("/v1/edge/{name}/latest.tflite", "head", {"206", "406", "416"}),
        ("/v1/blobs/{sha256}", "get", {"206", "406", "416"}),
        ("/v1/blobs/{sha256}", "head", {"206", "406", "416"}),
    ]:
        assert manifest | extra <= set(paths[path][method]["responses"]) <= manifest | extra | {
            "401", "403", "429", "500", "503", "default"
        }  # fmt: skip
    targets = {"200", "304", "404", "406", "412", "416", "422"}
    assert targets <= set(paths["/tuf/targets/{name}/{alias}/{file}"]["get"]["responses"])


async def test_a_new_export_changes_the_manifest_also_with_the_same_bytes(edge: EdgeApi):
    add_export(edge.api.services, b"same", quantize="int8")
    before = (await edge.get("/v1/edge/flag?quantize=int8")).headers["etag"]
    add_export(edge.api.services, b"same", quantize="int8", min_runtime="1.0.0")
    after = await edge.get("/v1/edge/flag?quantize=int8", if_none_match=before)
    assert (after.status_code, after.json()["min_runtime"]) == (200, "1.0.0")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/edge/missing", 404),
        ("/v1/edge/missing/latest.tflite", 404),
        ("/v1/edge/flag?alias=challenger", 404),
        ("/v1/edge/ridge", 404),  # no export
        ("/v1/edge/flag?quantize=int4", 422),
        ("/v1/edge/flag?alias=Not+A+Name", 422),
        ("/v1/edge/flag?version=1", 422),
        (f"{LATEST}?quantise=none", 422),
        ("/v1/edge/Not%20A%20Name", 422),
    ],
)
async def test_unknown_or_invalid_names_are_rejected(edge: EdgeApi, path: str, status: int):
    check_problem(await edge.get(path), status)
    assert (await edge.get(path, "HEAD")).status_code == status


@pytest.mark.parametrize("path", [LATEST, "/v1/edge/flag"])
async def test_other_methods_are_405(edge: EdgeApi, path: str):
    answer = await edge.get(path, "DELETE")
    check_problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD"


async def test_downloads_require_the_edge_scope_and_access_to_the_model(edge: EdgeApi):
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


async def test_a_key_for_one_of_two_models_with_the_same_file_can_download_it(edge: EdgeApi):
    shared = add_export(edge.api.services, edge.file.content, model="price")
    assert shared.sha256 == edge.file.sha256
    async with edge.api.with_key(await edge.api.key("edge", models=["price"])) as client:
        answer = await client.get(f"/v1/blobs/{shared.sha256}")
    assert (answer.status_code, answer.headers["content-disposition"]) == (
        200,
        'attachment; filename="price-1.tflite"',
    )
    answer = await edge.get(f"/v1/blobs/{shared.sha256}")
    assert answer.headers["content-disposition"] == 'attachment; filename="flag-1.tflite"', (
        "the first by name"
    )
