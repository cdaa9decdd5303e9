"""The Open Inference Protocol and MLflow's scoring calls over HTTP: metadata, answers, limits and errors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from service.online.predictor import INLINE_BYTES
from tests.service.api import Api, check_problem, check_v2_error
from tests.service.online.test_recorded_clients import outputs_of

pytestmark = pytest.mark.anyio

ROWS = [[2.0, 0.5, -1.0], [-2.0, -0.5, 1.0]]
NAMES = ["x0", "x1", "x2"]


def request(rows: list[list[float]], **fields: Any) -> dict[str, Any]:
    data = [value for row in rows for value in row]
    tensor = {"name": "input", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": data}
    return {"inputs": [tensor], **fields}


async def infer(api: Api, model: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await api.client.post(f"/v2/models/{model}/infer", content=content, **options)


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ("flag", {"label": "BYTES", "probabilities": "FP64"}),
        ("forest", {"label": "INT64", "probabilities": "FP64"}),
        ("ridge", {"label": "BYTES"}),
        (
            "two-labels",
            {
                "y0.label": "INT64",
                "y0.probabilities": "FP64",
                "y1.label": "INT64",
                "y1.probabilities": "FP64",
            },
        ),
        ("price", {"value": "FP64"}),
        ("two-prices", {"value": "FP64"}),
        ("groups", {"cluster": "INT64"}),
        ("outliers", {"label": "INT64", "score": "FP64"}),
        ("ranks", {"vector": "FP64"}),
        ("sleeper", {"value": "FP64"}),
    ],
)
async def test_each_task_answers_as_predict_and_as_its_metadata_says(
    api: Api, model: str, outputs: dict[str, str]
) -> None:
    metadata = (await api.client.get(f"/v2/models/{model}")).json()
    assert {o["name"]: o["datatype"] for o in metadata["outputs"]} == outputs
    answer = await infer(api, model, request(ROWS))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_name"], body["model_version"]) == (model, "1")
    for described, tensor in zip(metadata["outputs"], body["outputs"], strict=True):
        assert (tensor["name"], tensor["datatype"]) == (described["name"], described["datatype"])
        assert tensor["shape"] == [2 if size == -1 else size for size in described["shape"]]
    instances = [dict(zip(NAMES, row, strict=True)) for row in ROWS]
    predictions = (await api.predict(model, *instances)).json()["predictions"]
    for name, values in outputs_of(answer).items():
        assert values == [_output(p, name) for p in predictions]


def _output(prediction: dict[str, Any], name: str) -> Any:
    value: Any = prediction
    for part in name.split("."):
        value = value[part] if part in value else value["values"]
    return list(value.values()) if isinstance(value, dict) else value


async def test_the_server_describes_itself_with_and_without_a_slash(api: Api) -> None:
    for path in ("/v2", "/v2/"):
        metadata = (await api.client.get(path)).json()
        assert (metadata["name"], metadata["extensions"]) == ("trivium", ["binary_tensor_data"])
    assert (await api.client.get("/v2/health/live")).json() == {"live": True}
    assert (await api.client.get("/v2/health/ready")).json() == {"ready": True}


async def test_a_model_describes_its_versions_and_inputs(api: Api) -> None:
    metadata = (await api.client.get("/v2/models/flag")).json()
    assert (metadata["name"], metadata["versions"]) == ("flag", ["1", "2"])
    assert metadata["platform"] == "onnxruntime_onnx"
    assert [(i["name"], i["datatype"], i["shape"]) for i in metadata["inputs"]] == [
        ("input", "FP64", [-1, 3])
    ]
    assert (await api.client.get("/v2/models/flag/versions/2")).json() == metadata
    mixed = (await api.client.get("/v2/models/mixed")).json()
    assert {i["name"]: i["datatype"] for i in mixed["inputs"]} == {
        "age": "FP64",
        "city": "BYTES",
        "member": "BOOL",
        "visits": "INT64",
    }
    isolated = (await api.client.get("/v2/models/sleeper")).json()
    assert isolated["platform"] == "scikit-learn_joblib"


async def test_a_model_is_ready_if_the_version_answers(api: Api) -> None:
    for path in ("/v2/models/flag/ready", "/v2/models/flag/versions/2/ready"):
        assert (await api.client.get(path)).json() == {"name": "flag", "ready": True}
    for path in ("missing", "NO NAME", "flag/versions/3", "flag/versions/x", f"flag/versions/{2**40}"):
        for suffix in ("", "/ready"):
            check_v2_error(await api.client.get(f"/v2/models/{path}{suffix}"), 404)


async def test_the_version_in_the_path_answers(api: Api) -> None:
    labels = {}
    for version in ("1", "2"):
        answer = await infer(api, f"flag/versions/{version}", request(ROWS))
        assert answer.json()["model_version"] == version
        labels[version] = outputs_of(answer)["label"]
    assert labels == {"1": ["yes", "no"], "2": ["no", "yes"]}


@pytest.mark.parametrize("rows", [1, 10_000])
async def test_the_id_and_the_headers_are_those_of_predict(api: Api, rows: int) -> None:
    """One row is answered on the event loop, 10,000 in a thread."""
    body = json.dumps(request([ROWS[0]] * rows)).encode()
    assert (len(body) > INLINE_BYTES) == (rows > 1)
    answer = await infer(api, "price", body)
    assert answer.headers["x-prediction-id"] == answer.json()["id"]
    assert answer.headers["x-model-version"] == "1"
    assert answer.json()["outputs"][0]["shape"] == [rows]
    named = await infer(api, "price", request([ROWS[0]] * rows, id="42"))
    assert (named.json()["id"], named.headers["x-prediction-id"]) != ("42", "42")
    assert named.json()["id"] == "42"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("missing/infer", 404, "there is no model 'missing'"),
        ("flag/versions/3/infer", 404, "flag:3"),
        ("flag/versions/x/infer", 400, "'x' is not an integer from 1"),
        ("flag/infer?x=1", 400, "unknown query parameter 'x'"),
        ("flag/nothing", 404, "Not Found"),
        ("flag/versions/1/predict", 404, "Not Found"),
    ],
)
async def test_errors_have_the_protocols_form(api: Api, path: str, status: int, text: str) -> None:
    answer = await api.client.post(f"/v2/models/{path}", json=request(ROWS))
    assert text in check_v2_error(answer, status)


async def test_errors_before_the_body_is_read_have_the_protocols_form(api: Api) -> None:
    assert "Authorization" in check_v2_error(await api.anonymous.get("/v2/health/live"), 401)
    answer = await api.anonymous.post("/v2/models/flag/infer", json=request(ROWS))
    assert answer.headers["www-authenticate"] == "Bearer"
    check_v2_error(answer, 401)
    async with api.with_key(await api.key("edge")) as client:
        assert (await client.get("/v2")).status_code == 200
        denied = await client.post("/v2/models/flag/infer", json=request(ROWS))
        assert "lacks the scope predict" in check_v2_error(denied, 403)
    assert "application/octet-stream" in check_v2_error(
        await infer(api, "flag", b"x0\n1\n", headers={"Content-Type": "text/csv"}), 415
    )
    too_large = {"Content-Length": str(10**12)}
    check_v2_error(await infer(api, "flag", b"{}", headers=too_large), 413)
    for length in ("x", "-1", "9" * 30):
        headers = {"Inference-Header-Content-Length": length}
        check_v2_error(await infer(api, "flag", b"{}", headers=headers), 400)
    assert (await api.client.get("/v2/models/flag/infer")).headers["allow"] == "POST"


async def test_several_faults_are_in_one_text(api: Api) -> None:
    rows: list[list[Any]] = [[None, 1.0, 2.0]] * 12
    text = check_v2_error(await infer(api, "price", request(rows)), 400)
    assert text.count('"x0" is null') == 10
    assert text.startswith('instance 0: "x0" is null')
    assert text.endswith("(and 2 more)")


async def test_calls_are_counted_as_predictions_of_their_route(api: Api) -> None:
    def rows(text: str) -> float:
        name = 'trivium_predicted_rows_total{model="price",runtime="onnx",version="1"}'
        return next((float(x.split()[-1]) for x in text.splitlines() if x.startswith(name)), 0.0)

    before = rows((await api.client.get("/metrics")).text)
    await infer(api, "price", request(ROWS))
    await api.client.post("/v1/models/price/invocations", json={"inputs": ROWS})
    after = (await api.client.get("/metrics")).text
    assert rows(after) - before == 4
    assert 'route="/v2/models/{name}/infer"' in after
    assert 'route="/v1/models/{name}/invocations"' in after


async def test_invocations_answer_json_and_csv(api: Api) -> None:
    url = "/v1/models/flag/invocations"
    expected = {"predictions": ["yes", "no"]}
    csv = b"x2,x0,x1\n-1,2,0.5\n1,-2,-0.5\n"
    answers = [
        await api.client.post(url, json={"dataframe_split": {"columns": NAMES, "data": ROWS}}),
        await api.client.post(url, content=csv, headers={"Content-Type": "text/csv; charset=utf-8"}),
    ]
    assert [a.json() for a in answers] == [expected] * 2
    assert {a.headers["content-type"] for a in answers} == {"application/json"}
    second = await api.client.post("/v1/models/flag/versions/2/invocations", json={"instances": ROWS})
    assert second.json() == {"predictions": ["no", "yes"]}


async def test_invalid_invocations_are_problems(api: Api) -> None:
    url = "/v1/models/flag/invocations"
    problem = check_problem(await api.client.post(url, json={"inputs": [[1, 2, 3], [1, "b", 3]]}), 422)
    assert (problem["errors"][0]["instance"], problem["errors"][0]["field"]) == (1, "x1")
    parquet = {"Content-Type": "application/vnd.apache.parquet"}
    assert (
        "text/csv" in check_problem(await api.client.post(url, content=b"", headers=parquet), 415)["detail"]
    )
    check_problem(await api.client.get(url), 405)
