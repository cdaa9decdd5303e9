"""Predictions over HTTP: the answers of every task, media types, versions, and faults."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import Any

import pyarrow as pa
import pytest

from tests.service.api import Api, check_problem
from tests.service.estimators import models_of_every_task

pytestmark = pytest.mark.anyio

ROW = {"x0": 2.0, "x1": 0.5, "x2": -1.0}
PERSON: dict[str, Any] = {"age": 40.5, "city": "Bern", "member": True, "visits": 3}
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"


def table(*rows: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    frame = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(out, frame.schema) as writer:
        writer.write_table(frame)
    return out.getvalue()


def sheet(*rows: dict[str, Any]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("flag", {"label": str, "probabilities": {"no": float, "yes": float}}),
        ("forest", {"label": int, "probabilities": {"0": float, "1": float, "2": float}}),
        ("ridge", {"label": str}),
        (
            "two-labels",
            {
                "y0": {"label": int, "probabilities": {"0": float, "1": float}},
                "y1": {"label": int, "probabilities": {"0": float, "1": float}},
            },
        ),
        ("price", {"value": float}),
        ("two-prices", {"values": {"y0": float, "y1": float}}),
        ("groups", {"cluster": int}),
        ("outliers", {"label": int, "score": float}),
        ("ranks", {"vector": [float, float, float]}),
        ("sleeper", {"value": float}),
    ],
)
async def test_each_task_answers_in_its_own_shape(api: Api, model: str, shape: dict[str, Any]):
    answer = await api.predict(model, ROW, ROW)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"predictions", "model", "id"}
    assert body["model"] == {"name": model, "version": 1}
    assert [_shape(p) for p in body["predictions"]] == [shape, shape]


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _shape(v) for k, v in value.items()}
    return [_shape(v) for v in value] if isinstance(value, list) else type(value)


async def test_answers_are_the_estimators_own(api: Api):
    for name, (model, frame) in models_of_every_task().items():
        if not hasattr(model, "predict") or name in ("mixed", "two-prices"):
            continue
        rows = json.loads(frame.to_json(orient="records"))
        answered = (await api.predict(name, *rows)).json()["predictions"]
        expected = model.predict(frame).tolist()
        if name == "two-labels":
            assert [[p["y0"]["label"], p["y1"]["label"]] for p in answered] == expected
        elif name in ("price", "sleeper"):
            assert [p["value"] for p in answered] == pytest.approx(expected)
        else:
            assert [p.get("label", p.get("cluster")) for p in answered] == expected, name


async def test_a_boolean_class_is_a_boolean(api: Api):
    prediction = (await api.predict("mixed", PERSON)).json()["predictions"][0]
    assert prediction["label"] is False
    assert set(prediction["probabilities"]) == {"false", "true"}


async def test_predictions_keep_the_order_of_the_instances(api: Api):
    rows = [ROW | {"x0": float(i)} for i in range(1000)]
    values = [p["value"] for p in (await api.predict("price", *rows)).json()["predictions"]]
    assert values == pytest.approx([2 * i + 1 for i in range(1000)])


async def test_a_call_takes_1_to_10_000_instances(api: Api):
    assert len((await api.predict("price", *[ROW] * 10_000)).json()["predictions"]) == 10_000
    for count in (0, 10_001):
        fault = check_problem(await api.predict("price", *[ROW] * count), 422)["errors"][0]
        assert fault["field"] == "instances"
        assert "10000" in fault["expected"]


async def test_null_is_accepted_in_a_nullable_column(api: Api):
    assert (await api.predict("mixed", PERSON | {"age": None})).status_code == 200
    fault = check_problem(await api.predict("mixed", PERSON, PERSON | {"visits": None}), 422)["errors"][0]
    assert (fault["instance"], fault["field"]) == (1, "visits")
    fault = check_problem(await api.predict("price", ROW | {"x1": None}), 422)["errors"][0]
    assert (fault["instance"], fault["field"]) == (0, "x1")


async def test_integers_are_accepted_for_floats(api: Api):
    assert (await api.predict("price", {"x0": 2, "x1": 0, "x2": -1})).json()["predictions"][0][
        "value"
    ] == pytest.approx(5)


INVALID_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"age": "40"}, "age"),
    ({"age": True}, "age"),
    ({"age": [1]}, "age"),
    ({"city": "Rom"}, "city"),
    ({"city": 7}, "city"),
    ({"city": None}, "city"),
    ({"member": 1}, "member"),
    ({"member": "true"}, "member"),
    ({"visits": 1.5}, "visits"),
    ({"visits": 2**63}, "visits"),
    ({"surprise": 1}, "surprise"),
]


@pytest.mark.parametrize(("change", "field"), INVALID_VALUES, ids=str)
async def test_a_wrong_value_is_named_by_instance_and_field_with_what_was_expected(
    api: Api, change: dict[str, Any], field: str
):
    problem = check_problem(await api.predict("mixed", PERSON, PERSON | change), 422)
    fault = problem["errors"][0]
    assert (fault["instance"], fault["field"]) == (1, field)
    assert fault["expected"] or field == "surprise"


async def test_a_missing_field_is_named(api: Api):
    fault = check_problem(await api.predict("price", ROW, {"x0": 1.0, "x2": 1.0}), 422)["errors"][0]
    assert (fault["instance"], fault["field"]) == (1, "x1")


async def test_several_faults_are_reported_at_once(api: Api):
    problem = check_problem(
        await api.predict("price", {"x0": "a"}, {"x0": 1.0, "x1": 1.0, "x2": 1.0, "y": 1}), 422
    )
    assert {(e["instance"], e["field"]) for e in problem["errors"]} == {
        (0, "x0"),
        (0, "x1"),
        (0, "x2"),
        (1, "y"),
    }


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_nan_and_infinity_are_rejected_in_a_column_that_is_not_nullable(api: Api, literal: str):
    body = b'{"instances": [{"x0": %s, "x1": 0, "x2": 0}]}' % literal.encode()
    answer = await api.client.post("/v1/models/price/predict", content=body)
    assert check_problem(answer, 422)["errors"][0]["field"] == "x0"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": {}},
        {"instances": [1]},
        {"instances": [ROW], "more": 1},
        {"rows": [ROW]},
        [ROW],
        {"instances": None},
    ],
    ids=str,
)
async def test_a_body_of_another_shape_is_rejected(api: Api, body: Any):
    assert check_problem(await api.client.post("/v1/models/price/predict", json=body), 422)["errors"]


async def test_csv_and_arrow_bodies_and_answers_equal_json(api: Api):
    people = [PERSON, PERSON | {"age": 22.5, "city": "Genève", "member": False, "visits": 8}]
    expected = (await api.predict("mixed", *people)).json()["predictions"]
    csv_rows = [p | {"member": str(p["member"]).lower()} for p in people]
    bodies = {
        "application/json": json.dumps({"instances": people}).encode(),
        CSV: sheet(*csv_rows),
        ARROW: table(*people),
    }
    for content_type, body in bodies.items():
        for accept in bodies:
            answer = await api.client.post(
                "/v1/models/mixed/predict",
                content=body,
                headers={"Content-Type": content_type, "Accept": accept},
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].partition(";")[0] == accept
            assert _labels(accept, answer.content) == [p["label"] for p in expected]


def _labels(media_type: str, body: bytes) -> list[Any]:
    if media_type == CSV:
        rows = list(csv.DictReader(io.StringIO(body.decode())))
        assert set(rows[0]) == {"label", "probability.false", "probability.true"}
        return [row["label"] == "true" for row in rows]
    if media_type == ARROW:
        rows_found = pa.ipc.open_stream(body).read_all()
        assert rows_found.column_names == ["label", "probability.false", "probability.true"]
        return rows_found["label"].to_pylist()
    return [p["label"] for p in json.loads(body)["predictions"]]


async def test_faults_in_csv_and_arrow_name_row_and_field(api: Api):
    for media_type, body in (
        (CSV, b"x0,x1,x2\n1,2,3\n1,a,3\n"),
        (CSV, b"x0,x1\n1,2\n"),
        (ARROW, b"no arrow"),
    ):
        answer = await api.client.post(
            "/v1/models/price/predict", content=body, headers={"Content-Type": media_type}
        )
        assert check_problem(answer, 422)["errors"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/csv", CSV),
        ("text/*", CSV),
        ("TEXT/CSV", CSV),
        ("application/json; charset=utf-8", "application/json"),
        ("text/html, text/csv", CSV),
        ("application/json;q=0.1, text/csv", CSV),
        ("text/csv;q=0.5, application/json;q=0.9", "application/json"),
        ("text/csv;q=0, */*", "application/json"),
        ("application/json;q=0, text/csv", CSV),
        ("text/html, */*;q=0.1", "application/json"),
        (ARROW, ARROW),
    ],
)
async def test_the_answer_has_the_media_type_that_accept_prefers(api: Api, accept: str | None, expected: str):
    request = api.client.build_request("POST", "/v1/models/price/predict", json={"instances": [ROW]})
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    answer = await api.client.send(request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].partition(";")[0] == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "application/xml, image/*", "application/json;q=0", "*/*;q=0"]
)
async def test_an_unknown_media_type_in_accept_is_406(api: Api, accept: str):
    problem = check_problem(await api.predict("price", ROW, headers={"Accept": accept}), 406)
    assert CSV in problem["detail"]


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded"]
)
async def test_a_body_of_another_type_is_415(api: Api, content_type: str):
    answer = await api.client.post(
        "/v1/models/price/predict", content=b"{}", headers={"Content-Type": content_type}
    )
    assert "application/json" in check_problem(answer, 415)["detail"]


async def test_alias_and_number_select_the_version(api: Api):
    await api.promote("flag", 2, "challenger")
    versions = {}
    for path in (
        "/v1/models/flag/predict",
        "/v1/models/flag/predict?alias=champion",
        "/v1/models/flag/predict?alias=challenger",
        "/v1/models/flag/versions/1/predict",
        "/v1/models/flag/versions/2/predict",
    ):
        body = (await api.client.post(path, json={"instances": [ROW]})).json()
        versions[path.removeprefix("/v1/models/flag/")] = (
            body["model"]["version"],
            body["predictions"][0]["label"],
        )
    assert versions == {
        "predict": (1, "yes"),
        "predict?alias=champion": (1, "yes"),
        "predict?alias=challenger": (2, "no"),
        "versions/1/predict": (1, "yes"),
        "versions/2/predict": (2, "no"),
    }


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("missing/predict", 404),
        ("flag/predict?alias=missing", 404),
        ("flag/predict?alias=", 422),
        ("flag/predict?alias=NOT A NAME", 422),
        ("flag/predict?alias=champion&alias=champion", 422),
        ("flag/predict?version=1", 422),
        ("flag/versions/3/predict", 404),
        ("flag/versions/0/predict", 422),
        ("flag/versions/x/predict", 422),
        ("flag/versions/01/predict", 422),
        ("flag/versions/9999999999/predict", 404),
        ("flag/versions/99999999999999999999999/predict", 422),
        ("flag/versions/1/predict?alias=champion", 422),
    ],
)
async def test_an_unknown_model_version_or_alias_is_reported(api: Api, path: str, status: int):
    check_problem(await api.client.post(f"/v1/models/{path}", json={"instances": [ROW]}), status)


async def test_an_archived_version_does_not_answer(api: Api):
    versions = "/v1/models/flag/versions/2"
    await api.client.delete("/v1/models/flag/aliases/challenger")
    assert (await api.client.patch(versions, json={"archived": True})).status_code == 200
    try:
        refusal = check_problem(await api.client.post(f"{versions}/predict", json={"instances": [ROW]}), 409)
        assert "archived" in refusal["detail"]
    finally:
        await api.client.patch(versions, json={"archived": False})
    assert (await api.client.post(f"{versions}/predict", json={"instances": [ROW]})).status_code == 200


async def test_every_prediction_has_an_id_of_its_own(api: Api):
    answers = await asyncio.gather(*(api.predict("price", ROW) for _ in range(50)))
    assert len({a.json()["id"] for a in answers}) == 50


@pytest.mark.parametrize("accept", ["application/json", CSV, ARROW])
async def test_every_answer_names_model_version_and_prediction(api: Api, accept: str):
    answers = [
        await api.client.post(
            "/v1/models/price/predict", json={"instances": [ROW]}, headers={"Accept": accept}
        )
        for _ in range(2)
    ]
    model_headers = [(a.headers["x-model-name"], a.headers["x-model-version"]) for a in answers]
    assert model_headers == [("price", "1")] * 2
    first, second = (a.headers["x-prediction-id"] for a in answers)
    assert first != second
    if accept == "application/json":
        assert [a.json()["id"] for a in answers] == [first, second]


async def test_concurrent_callers_each_get_their_own_answer(api: Api):
    async def predict(i: int) -> None:
        answer = (await api.predict("price", *[ROW | {"x0": float(i)}] * (1 + i % 3 * 300))).json()
        assert {round(p["value"]) for p in answer["predictions"]} == {2 * i + 1}

    await asyncio.gather(*(predict(i) for i in range(60)))


async def test_metrics_count_predictions_by_model_and_version(api: Api):
    def rows(text: str) -> float:
        name = 'trivium_predicted_rows_total{model="price",runtime="onnx",version="1"}'
        return next((float(x.split()[-1]) for x in text.splitlines() if x.startswith(name)), 0.0)

    before = rows((await api.client.get("/metrics")).text)
    await api.predict("price", ROW, ROW, ROW)
    after = (await api.client.get("/metrics")).text
    assert rows(after) - before == 3
    assert 'route="/v1/models/{name}/predict"' in after
