"""Exports over HTTP: create, list and read."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from registry import queue
from registry.tables import ExportRow, TaskRow
from registry.vocabulary import EXPORT_TASK
from tests.service.api import check_problem
from tests.service.edge.conftest import Flag
from tests.service.edge.export_helpers import add_export

pytestmark = pytest.mark.anyio
PATH = "/v1/models/flag/versions/2/exports"
RECORD = {
    "id",
    "model",
    "version",
    "format",
    "quantize",
    "state",
    "sha256",
    "bytes",
    "min_runtime",
    "report",
    "bounds",
    "calibration",
    "created_at",
    "created_by",
    "finished_at",
}


async def test_a_created_export_is_202_and_readable_at_its_location(flag: Flag) -> None:
    bounds = {"max_disagreement": 0.01, "max_accuracy_drop": 0, "max_bytes": 100_000}
    calibration = {"artifact": await flag.api.upload(b"x0,x1,x2\n1,2,3\n"), "media_type": "text/csv"}
    body = {"format": "tflite", "quantize": "int8", "calibration": calibration, **bounds}
    answer = await flag.api.client.post(PATH, json=body)
    assert answer.status_code == 202, answer.text
    record = answer.json()
    assert set(record) == RECORD
    assert (record["model"], record["version"], record["quantize"]) == ("flag", 2, "int8")
    assert (record["state"], record["sha256"], record["report"]) == ("building", None, None)
    assert (record["bounds"], record["calibration"]) == (bounds, calibration)
    assert answer.headers["location"] == f"{PATH}/{record['id']}"
    stored = (await flag.api.client.get(answer.headers["location"])).json()
    assert {k: stored[k] for k in ("id", "created_at", "created_by")} == {
        k: record[k] for k in ("id", "created_at", "created_by")
    }


async def test_an_export_creates_a_task(flag: Flag) -> None:
    answer = await flag.api.client.post(PATH, json={"format": "tflite"})
    with flag.api.services.sessions() as session:
        query = select(TaskRow).where(
            TaskRow.kind == EXPORT_TASK, TaskRow.subject == str(answer.json()["id"])
        )
        task = session.scalars(query).one()
    assert task.state in (queue.QUEUED, queue.RUNNING, queue.DONE)


async def test_a_repeated_idempotent_request_creates_one_export(flag: Flag) -> None:
    headers = {"Idempotency-Key": "once"}
    answers = [await flag.api.client.post(PATH, json={"format": "tflite"}, headers=headers) for _ in range(3)]
    assert {(a.status_code, a.text, a.headers["location"]) for a in answers} == {
        (202, answers[0].text, answers[0].headers["location"])
    }
    check_problem(
        await flag.api.client.post(PATH, json={"format": "tflite", "quantize": "int8"}, headers=headers), 422
    )
    with flag.api.services.sessions() as session:
        assert len(session.scalars(select(ExportRow.id).where(ExportRow.quantize == "none")).all()) == 3


async def test_exports_are_listed_newest_first_in_pages(flag: Flag) -> None:
    export_ids = [flag.files[2].export] + [
        add_export(flag.api.services, str(n).encode(), version=2).export for n in range(3)
    ]
    first = await flag.api.client.get(f"{PATH}?page_size=3")
    assert 'rel="next"' in first.headers["link"]
    second = await flag.api.client.get(PATH, params={"page_token": first.json()["next_page_token"]})
    ids = [e["id"] for e in first.json()["items"] + second.json()["items"]]
    assert ids == export_ids[::-1]
    assert second.json()["next_page_token"] is None


async def test_a_finished_export_has_its_results(unchanged_flag: Flag) -> None:
    record = (await unchanged_flag.api.client.get(f"{PATH}/{unchanged_flag.files[2].export}")).json()
    assert record["state"] == "ready"
    assert record["sha256"] == unchanged_flag.files[2].sha256
    assert record["bytes"] == len(unchanged_flag.files[2].content)
    assert (record["min_runtime"], record["report"]) == ("2.1.0", {"agreement": 1.0})
    assert record["finished_at"] >= record["created_at"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "onnx"},
        {"format": None},
        {"quantize": "int4"},
        {"quantize": None},
        {"max_disagreement": -0.1},
        {"max_disagreement": "a lot"},
        {"max_accuracy_drop": 1.1},
        {"max_bytes": 0},
        {"max_bytes": 1.5},
        {"calibration": "0" * 64},
        {"calibration": {"artifact": "0" * 64, "media_type": "text/csv"}},  # was not uploaded
        {"calibration": {"artifact": "0" * 64, "media_type": "image/png"}},
        {"calibration": {"artifact": "short", "media_type": "text/csv"}},
        {"threads": 4},
    ],
    ids=str,
)
async def test_an_invalid_export_request_is_rejected_and_creates_nothing(
    unchanged_flag: Flag, change: dict[str, Any]
) -> None:
    check_problem(await unchanged_flag.api.client.post(PATH, json={"format": "tflite"} | change), 422)
    assert len((await unchanged_flag.api.client.get(PATH)).json()["items"]) == 1


async def test_only_a_ready_version_can_be_exported(flag: Flag) -> None:
    archived = await flag.api.client.patch("/v1/models/flag/versions/2", json={"archived": True})
    assert archived.status_code == 200
    problem = check_problem(await flag.api.client.post(PATH, json={"format": "tflite"}), 409)
    assert "archived" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/missing/versions/1/exports", 404),
        ("/v1/models/flag/versions/9/exports", 404),
        ("/v1/models/flag/versions/0/exports", 422),
        ("/v1/models/flag/versions/1.0/exports", 422),
        (f"{PATH}?state=ready", 422),
        (f"{PATH}?page_token=nonsense", 422),
        (f"{PATH}/999", 404),
        (f"{PATH}/0", 422),
        (f"{PATH}/x", 422),
    ],
)
async def test_unknown_or_invalid_exports_are_rejected(unchanged_flag: Flag, path: str, status: int) -> None:
    check_problem(await unchanged_flag.api.client.get(path), status)


async def test_an_export_of_another_version_is_404(unchanged_flag: Flag) -> None:
    check_problem(await unchanged_flag.api.client.get(f"{PATH}/{unchanged_flag.files[1].export}"), 404)


async def test_creating_exports_requires_publish_and_reading_any_key(flag: Flag) -> None:
    for scopes, models, post_status, get_status in [
        (["publish"], None, 202, 200),
        (["publish"], ["flag"], 202, 200),
        (["publish"], ["price"], 403, 403),
        (["edge"], None, 403, 200),
    ]:
        async with flag.api.with_key(await flag.api.key(*scopes, models=models)) as client:
            assert (await client.post(PATH, json={"format": "tflite"})).status_code == post_status
            assert (await client.get(PATH)).status_code == get_status
            assert (await client.get(f"{PATH}/{flag.files[2].export}")).status_code == get_status
