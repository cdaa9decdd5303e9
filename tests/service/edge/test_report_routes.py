"""Device reports over HTTP: stored, counted, and able to halt a rollout."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.service.api import check_problem
from tests.service.edge.conftest import Flag

pytestmark = pytest.mark.anyio
PATH = "/v1/edge/flag/reports"


async def send_report(
    flag: Flag, device: str, status: str = "ok", version: int = 2, **fields: Any
) -> httpx.Response:
    body = {"device": device, "version": version, "status": status, **fields}
    return await flag.api.client.post(PATH, json=body)


async def test_a_report_is_stored_as_sent(flag: Flag) -> None:
    answer = await send_report(flag, "pi-1", "failed", latency_ms=12, message="segmentation fault")
    assert answer.status_code == 201
    record = answer.json()
    assert record.pop("at")
    assert record == {
        "device": "pi-1",
        "version": 2,
        "status": "failed",
        "latency_ms": 12.0,
        "message": "segmentation fault",
    }
    listed = (await flag.api.client.get(PATH)).json()
    assert [r["device"] for r in listed["items"]] == ["pi-1"]


async def test_reports_are_listed_newest_first_with_counts_by_version(flag: Flag) -> None:
    await send_report(flag, "a", version=1)
    for device, status in (("a", "failed"), ("b", "ok"), ("a", "ok"), ("c", "failed")):
        await send_report(flag, device, status)
    first = (await flag.api.client.get(f"{PATH}?page_size=2")).json()
    second = (await flag.api.client.get(f"{PATH}?page_size=4&page_token={first['next_page_token']}")).json()
    assert [r["device"] for r in first["items"] + second["items"]] == ["c", "a", "b", "a", "a"]
    assert second["next_page_token"] is None
    assert first["counts"] == [{"version": 2, "ok": 2, "failed": 1}, {"version": 1, "ok": 1, "failed": 0}]


async def test_a_rollout_is_halted_after_failure_reports(flag: Flag) -> None:
    await flag.promote(2, 50)
    devices = [f"device-{n}" for n in range(40)]
    devices_in_rollout = [d for d in devices if await flag.latest(d) == 2]
    for device in devices_in_rollout[:3]:
        await send_report(flag, device, "failed")
    assert {await flag.latest(d) for d in devices} == {1}, "all devices get the previous version"
    newest = (await flag.api.client.get("/v1/models/flag/aliases/champion/history")).json()["items"][0]
    assert (newest["action"], newest["version"]) == ("halt", 2)
    assert newest["reason"] == "3 of 3 devices reported that version 2 failed"
    online = await flag.api.predict("flag", {"x0": 1.0, "x1": 0.0, "x2": 0.0})
    assert online.json()["model"]["version"] == 2, "online predictions are not affected"


async def test_a_halted_rollout_can_be_started_again(flag: Flag) -> None:
    await flag.promote(2, 50)
    for device in "abc":
        await send_report(flag, device, "failed")
    await flag.promote(2, 100)
    assert await flag.latest("x") == 2
    await flag.promote(2, 99)
    await send_report(flag, "d", "failed")
    answer = await flag.api.client.put(
        "/v1/models/flag/aliases/champion", json={"version": 2, "edge_percent": 99}
    )
    assert (answer.json()["edge_percent"], answer.json()["edge_halted"]) == (99, None)


async def test_a_repeated_idempotent_report_is_stored_once(flag: Flag) -> None:
    body = {"device": "a", "version": 2, "status": "ok"}
    headers = {"Idempotency-Key": "a-2-1"}
    answers = [await flag.api.client.post(PATH, json=body, headers=headers) for _ in range(3)]
    assert {(a.status_code, a.text) for a in answers} == {(201, answers[0].text)}
    assert len((await flag.api.client.get(PATH)).json()["items"]) == 1
    check_problem(await flag.api.client.post(PATH, json=body | {"device": "b"}, headers=headers), 422)


@pytest.mark.parametrize(
    "change",
    [
        {"device": ""},
        {"device": "x" * 201},
        {"device": None},
        {"version": 0},
        {"version": "2"},
        {"version": 2**31},
        {"status": "fine"},
        {"latency_ms": -1},
        {"latency_ms": "12 ms"},
        {"message": "x" * 2001},
        {"message": "nul\0"},
        {"unknown": 1},
    ],
    ids=str,
)
async def test_an_invalid_report_is_rejected_and_not_stored(
    unchanged_flag: Flag, change: dict[str, Any]
) -> None:
    body = {"device": "a", "version": 2, "status": "ok"} | change
    check_problem(await unchanged_flag.api.client.post(PATH, json=body), 422)
    assert (await unchanged_flag.api.client.get(PATH)).json()["items"] == []


async def test_a_report_about_an_unknown_version_or_model_is_404(unchanged_flag: Flag) -> None:
    check_problem(await send_report(unchanged_flag, "a", version=3), 404)
    body = {"device": "a", "version": 1, "status": "ok"}
    check_problem(await unchanged_flag.api.client.post("/v1/edge/missing/reports", json=body), 404)
    check_problem(await unchanged_flag.api.client.get("/v1/edge/missing/reports"), 404)


async def test_sending_reports_requires_edge_and_reading_any_key(flag: Flag) -> None:
    body = {"device": "a", "version": 1, "status": "ok"}
    for scopes, models, post_status, get_status in [
        (["edge"], None, 201, 200),
        (["edge"], ["flag"], 201, 200),
        (["edge"], ["price"], 403, 403),
        (["predict"], None, 403, 200),
    ]:
        async with flag.api.with_key(await flag.api.key(*scopes, models=models)) as client:
            assert (await client.post(PATH, json=body)).status_code == post_status
            assert (await client.get(PATH)).status_code == get_status
