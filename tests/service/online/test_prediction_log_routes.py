"""Prediction logs over HTTP: what is recorded, who may read it, and the labels that join it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow.parquet as pq
import pytest

from service.config import Settings
from tests.service.api import Api, check_problem, running_app
from tests.service.estimators import models_of_every_task
from tests.service.model_rows import copy_version

pytestmark = pytest.mark.anyio

ROWS = [{"x0": 2.0, "x1": 0.5, "x2": -1.0}, {"x0": -0.25, "x1": 7.0, "x2": 3.5}]
PEOPLE: list[dict[str, Any]] = [
    {"age": 40.5, "city": "Bern", "member": True, "visits": 3},
    {"age": None, "city": "Zürich", "member": False, "visits": 2**40},
]
PARQUET = "application/vnd.apache.parquet"


async def switch_on(api: Api, name: str, sample: float = 1) -> None:
    answer = await api.client.put(f"/v1/models/{name}/prediction-log", json={"sample": sample})
    assert answer.status_code == 200, answer.text


async def read(api: Api, name: str, query: str = "", client: httpx.AsyncClient | None = None) -> list[Any]:
    answer = await (client or api.client).get(f"/v1/models/{name}/predictions{query}")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.fixture
async def name(api: Api, unique_name: str) -> str:
    """A model of the classifier `flag` that only this test uses. Its log is on."""
    copy_version(api.settings.home, "flag", unique_name)
    api.services.snapshot.refresh()
    await api.promote(unique_name, 1)
    await switch_on(api, unique_name)
    return unique_name


async def report(api: Api, *items: dict[str, Any], client: httpx.AsyncClient | None = None) -> httpx.Response:
    return await (client or api.client).post("/v1/feedback", json={"items": list(items)})


async def test_the_log_of_every_task_has_what_was_sent_and_answered(home: Path) -> None:
    async with running_app(Settings(home=home)) as api:
        for model in models_of_every_task():
            await switch_on(api, model)
            sent = PEOPLE if model == "mixed" else ROWS
            answers = [await api.predict(model, *sent), await api.predict(model, sent[1])]
            tables = [await _csv_answer(api, model, sent), await _csv_answer(api, model, sent[1:])]
            logged = await read(api, model)
            assert len(logged) == 6
            ids = [a.json()["id"] for a in answers]
            assert [(r["id"], r["row"]) for r in logged[:3]] == [(ids[0], 0), (ids[0], 1), (ids[1], 0)]
            for row, instance in zip(logged, [*sent, sent[1]] * 2, strict=True):
                assert {k[6:]: v for k, v in row.items() if k.startswith("input.")} == instance
                assert (row["version"], row["alias"]) == (1, "champion")
            outputs = [[str(v) for k, v in row.items() if k.startswith("output.")] for row in logged[:3]]
            assert outputs == [[_text(cell) for cell in row] for table in tables for row in table]


async def _csv_answer(api: Api, model: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    answer = await api.predict(model, *rows, headers={"Accept": "text/csv"})
    return [line.split(",") for line in answer.text.splitlines()[1:]]


def _text(cell: str) -> str:
    """A cell as Python writes the value."""
    return {"true": "True", "false": "False"}.get(cell, cell)


async def test_a_call_of_a_version_has_no_alias_and_the_callers_request_id(api: Api, name: str) -> None:
    answer = await api.client.post(
        f"/v1/models/{name}/versions/1/predict", json={"instances": ROWS}, headers={"X-Request-ID": "order-7"}
    )
    assert answer.status_code == 200
    await api.predict(name, ROWS[0])
    logged = await read(api, name)
    assert [(r["alias"], r["request_id"]) for r in logged] == [(None, "order-7")] * 2 + [("champion", None)]


async def test_calls_of_other_protocols_are_recorded(api: Api, name: str) -> None:
    matrix = [list(row.values()) for row in ROWS]
    tensor = {"name": "input", "shape": [2, 3], "datatype": "FP64", "data": matrix}
    for path, body in (
        (f"/v2/models/{name}/infer", {"inputs": [tensor]}),
        (f"/v1/models/{name}/invocations", {"instances": matrix}),
    ):
        answer = await api.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
    logged = await read(api, name)
    assert [[row[f"input.x{j}"] for j in range(3)] for row in logged] == matrix * 2
    assert {row["id"] for row in logged[2:]} == {answer.headers["x-prediction-id"]}


async def test_calls_that_fail_and_calls_outside_the_sample_are_not_recorded(api: Api, name: str) -> None:
    assert (await api.predict(name, {"x0": "a"})).status_code == 422
    await switch_on(api, name, 0)
    await api.predict(name, ROWS[0])
    assert await read(api, name) == []


async def test_settings_are_off_by_default_replaced_and_switched_off(api: Api, name: str) -> None:
    path = f"/v1/models/{name}/prediction-log"
    assert (await api.client.get("/v1/models/price/prediction-log")).json() == {
        "sample": 0.0, "keep_days": 30, "max_mb": 10240, "changed_at": None, "changed_by": None,
    }  # fmt: skip
    changed = {"sample": 0.5, "keep_days": None, "max_mb": 7}
    record = (await api.client.put(path, json=changed)).json()
    assert record == changed | {"changed_at": record["changed_at"], "changed_by": "admin"}
    switched_off = (await api.client.delete(path)).json()
    assert switched_off == record | {"sample": 0.0, "changed_at": switched_off["changed_at"]}
    assert (await api.client.get(path)).json() == switched_off
    for body in ({}, {"sample": 1.1}, {"sample": 1, "keep_days": -1}, {"sample": 1, "days": 3}):
        check_problem(await api.client.put(path, json=body), 422)
    for method in ("GET", "DELETE"):
        check_problem(await api.client.request(method, "/v1/models/none/prediction-log"), 404)


async def test_only_admins_change_settings_and_keys_read_their_models_only(api: Api, name: str) -> None:
    publisher, reader = await api.key("publish"), await api.key("predict", models=[name])
    async with api.with_key(publisher) as client:
        assert (await client.get(f"/v1/models/{name}/prediction-log")).status_code == 200
        check_problem(await client.put(f"/v1/models/{name}/prediction-log", json={"sample": 1}), 403)
        check_problem(await client.delete(f"/v1/models/{name}/prediction-log"), 403)
        check_problem(await client.get(f"/v1/models/{name}/predictions"), 403)
    async with api.with_key(reader) as client:
        assert await read(api, name, client=client) == []
        check_problem(await client.get("/v1/models/price/predictions"), 403)


async def test_rows_are_selected_by_time_and_version(api: Api, name: str) -> None:
    copy_version(api.settings.home, "price", name)
    api.services.snapshot.refresh()
    await api.predict(name, ROWS[0])
    await api.client.post(f"/v1/models/{name}/versions/2/predict", json={"instances": ROWS[:1]})
    first, second = await read(api, name)
    assert (first["version"], first["output.label"], first["output.value"]) == (1, "yes", None)
    assert (second["version"], second["output.label"]) == (2, None)
    assert await read(api, name, "?version=2") == [
        {k: v for k, v in second.items() if not k.startswith(("output.label", "output.prob"))}
    ]
    moment = second["time"].replace("+", "%2B")
    assert [r["version"] for r in await read(api, name, f"?from={moment}")] == [2]
    assert [r["version"] for r in await read(api, name, f"?to={moment}")] == [1]
    for query, status in (
        ("?version=3", 404), ("?version=1.0", 422), ("?from=yesterday", 422), ("?limit=3", 422),
        ("?from=2026-01-02T00:00:00Z&to=2026-01-02T00:00:00Z", 422),
    ):  # fmt: skip
        check_problem(await api.client.get(f"/v1/models/{name}/predictions{query}"), status)
    check_problem(await api.client.get("/v1/models/none/predictions"), 404)


async def test_accept_selects_the_format(api: Api, name: str) -> None:
    await api.predict(name, *ROWS)
    path, expected = f"/v1/models/{name}/predictions", await read(api, name)
    parquet = await api.client.get(path, headers={"Accept": PARQUET})
    rows = pq.read_table(io.BytesIO(parquet.content)).to_pylist()
    assert msgspec.json.decode(msgspec.json.encode(rows)) == expected
    table = await api.client.get(path, headers={"Accept": "text/csv;q=0.9, application/json"})
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text.splitlines()[0].replace('"', "").split(",") == list(expected[0])
    assert (
        "text/csv"
        in check_problem(await api.client.get(path, headers={"Accept": "image/png"}), 406)["detail"]
    )


async def test_labels_join_predictions_whenever_they_come(api: Api, name: str) -> None:
    prediction = (await api.predict(name, *ROWS)).json()["id"]
    assert (await report(api, {"id": prediction, "row": 1, "label": "no"})).json() == {"labels": 1}
    assert [r["feedback.label"] for r in await read(api, name)] == [None, "no"]
    await report(api, {"id": prediction, "labels": ["yes", "yes"]}, {"id": "pred-0000000000-1", "label": 1})
    assert [r["feedback.label"] for r in await read(api, name)] == ["yes", "yes"]
    await report(api, {"id": prediction, "label": None})
    logged = await read(api, name)
    assert [(r["feedback.label"], r["feedback.time"] is None) for r in logged] == [
        (None, True),
        ("yes", False),
    ]


async def test_a_label_of_a_key_for_other_models_does_not_join(api: Api, name: str) -> None:
    prediction = (await api.predict(name, ROWS[0])).json()["id"]
    item = {"id": prediction, "label": "no"}
    async with api.with_key(await api.key("predict", models=["price"])) as client:
        assert (await report(api, item, client=client)).status_code == 200
        assert (await read(api, name))[0]["feedback.label"] is None
    async with api.with_key(await api.key("predict", models=[name])) as client:
        await report(api, item, client=client)
    assert (await read(api, name))[0]["feedback.label"] == "no"
    async with api.with_key(await api.key("publish")) as client:
        check_problem(await report(api, item, client=client), 403)


async def test_each_invalid_item_of_feedback_is_named(api: Api) -> None:
    good = {"id": "pred-0123456789-a", "label": 1}
    problem = check_problem(
        await report(
            api, good, good | {"id": "x"}, good | {"row": -1}, good | {"label": [1]}, {"id": good["id"]},
            good | {"labels": [1]}, {"id": good["id"], "labels": [1, {}]}, good | {"label": "a" * 1001},
            good | {"label": 2**63},
        ),
        422,
    )  # fmt: skip
    fields = {error["field"] for error in problem["errors"]}
    assert {f"items.{index}" for index in (4, 5)} <= fields
    assert {
        f"items.{i}.{f}" for i, f in ((1, "id"), (2, "row"), (3, "label"), (7, "label"), (8, "label"))
    } <= fields
    assert "items.6.labels.1" in fields
    assert not any(field.startswith("items.0") for field in fields)
    check_problem(await report(api), 422)
    many = {"id": good["id"], "labels": [1] * 6000}
    assert (
        "12000" in check_problem(await report(api, many, many | {"id": "pred-0123456789-b"}), 422)["detail"]
    )


async def test_a_deleted_models_log_is_not_that_of_a_new_model_of_the_name(api: Api, name: str) -> None:
    await api.predict(name, ROWS[0])
    assert len(await read(api, name)) == 1
    await api.client.delete(f"/v1/models/{name}/aliases/champion")
    assert (await api.client.delete(f"/v1/models/{name}")).status_code == 204
    check_problem(await api.client.get(f"/v1/models/{name}/predictions"), 404)
    copy_version(api.settings.home, "price", name)
    api.services.snapshot.refresh()
    assert (await api.client.get(f"/v1/models/{name}/prediction-log")).json()["sample"] == 0
    assert await read(api, name) == []


async def test_a_shutdown_writes_what_was_recorded(home: Path) -> None:
    async with running_app(Settings(home=home)) as api:
        await switch_on(api, "flag")
        await api.predict("flag", *ROWS)
        assert _files(home) == []
    (file,) = _files(home)
    assert pq.read_metadata(file).num_rows == 2


def _files(home: Path) -> list[Path]:
    return list(home.glob("predictions/*/*/*.parquet"))
