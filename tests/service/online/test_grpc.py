"""The Open Inference Protocol over gRPC, beside its REST form on the same application."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from service.online import grpc_server
from service.online.grpc_server import MAX_TEXT_BYTES, GrpcServer
from service.runtime.codec import inference_messages as messages
from service.web.services import Services
from tests.service.api import Api
from tests.service.estimators import SLEEP_OFFSET
from tests.service.online.grpc_calls import Client, connect, infer_request, matrix, values_of
from tests.service.online.test_inference_protocol import ROWS, infer, request
from tests.service.online.test_recorded_clients import MIXED, NUMERIC, outputs_of

pytestmark = pytest.mark.anyio

Code = grpc.StatusCode
RECORDED: list[dict[str, str]] = json.loads(
    Path(__file__).with_name("recorded_grpc_requests.json").read_text()
)


@pytest.fixture(scope="module")
async def client(anyio_backend: str, api: Api) -> AsyncIterator[Client]:
    async with connect(port_of(api), api.admin) as client:
        yield client


def port_of(api: Api) -> int:
    assert api.grpc is not None
    return api.grpc.port


@pytest.mark.parametrize("model", ["flag", "forest", "two-labels", "two-prices", "outliers", "sleeper"])
async def test_each_task_answers_as_over_rest(api: Api, client: Client, model: str) -> None:
    expected = outputs_of(await infer(api, model, request(ROWS)))
    typed = await client.call("ModelInfer", infer_request(model, matrix(ROWS)))
    raw = await client.call(
        "ModelInfer",
        infer_request(model, matrix(ROWS, raw=True), raw_input_contents=[np.array(ROWS).tobytes()]),
    )
    for answer in (typed, raw):
        assert answer.code == Code.OK, answer.text
        assert (answer.message.model_name, answer.message.model_version) == (model, "1")
        assert values_of(answer.message) == expected
    assert raw.message.raw_output_contents
    assert not typed.message.raw_output_contents


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: f"{r['client']}: {r['name']}")
async def test_requests_of_unmodified_clients_are_answered_as_predict(
    api: Api, client: Client, recorded: dict[str, str]
) -> None:
    """`recorded_grpc_requests.json` has the messages that clients of other servers sent, in base64."""
    body = base64.b64decode(recorded["body"])
    sent = messages.ModelInferRequest.FromString(body)
    answer = await client.call("ModelInfer", body)
    assert answer.code == Code.OK, answer.text
    rows = MIXED if sent.model_name == "mixed" else NUMERIC
    path = f"/v1/models/{sent.model_name}/versions/{sent.model_version or 1}/predict"
    predictions = (await api.client.post(path, json={"instances": rows})).json()["predictions"]
    outputs = values_of(answer.message)
    assert outputs["label"] == [p["label"] for p in predictions]
    assert outputs["probabilities"] == [pytest.approx(list(p["probabilities"].values())) for p in predictions]
    assert answer.message.id == (sent.id or answer.metadata["x-prediction-id"])
    assert bool(answer.message.raw_output_contents) == bool(sent.raw_input_contents)
    assert [o.name for o in answer.message.outputs][: len(sent.outputs)] == [o.name for o in sent.outputs]


async def test_features_of_several_types_answer_as_predict(api: Api, client: Client) -> None:
    tensors = [
        {"name": "age", "datatype": "FP32", "contents": {"fp32_contents": [40.5, float("nan")]}},
        {"name": "city", "datatype": "BYTES", "contents": {"bytes_contents": [b"Bern", "Genève".encode()]}},
        {"name": "member", "datatype": "BOOL", "contents": {"bool_contents": [True, False]}},
        {"name": "visits", "datatype": "INT8", "contents": {"int_contents": [3, 8]}},
    ]
    answer = await client.call(
        "ModelInfer",
        infer_request(
            "mixed",
            *(tensor | {"shape": [2]} for tensor in tensors),
            parameters={"content_type": {"string_param": "pd"}},
        ),
    )
    predictions = (await api.predict("mixed", *MIXED)).json()["predictions"]
    assert values_of(answer.message)["label"] == [p["label"] for p in predictions]


@pytest.mark.parametrize("model", ["flag", "mixed", "two-labels", "sleeper"])
async def test_the_metadata_of_a_model_is_that_of_rest(api: Api, client: Client, model: str) -> None:
    expected = (await api.client.get(f"/v2/models/{model}/versions/1")).json()
    described = (
        await client.call("ModelMetadata", messages.ModelMetadataRequest(name=model, version="1"))
    ).message
    assert {
        "name": described.name,
        "versions": list(described.versions),
        "platform": described.platform,
        "inputs": [_tensor(t) for t in described.inputs],
        "outputs": [_tensor(t) for t in described.outputs],
    } == expected


def _tensor(described: Any) -> dict[str, Any]:
    tensor = {"name": described.name, "datatype": described.datatype, "shape": list(described.shape)}
    parameters = {name: value.string_param for name, value in described.parameters.items()}
    return tensor | ({"parameters": parameters} if parameters else {})


async def test_the_server_describes_itself(api: Api, client: Client) -> None:
    described = (await client.call("ServerMetadata")).message
    rest = (await api.client.get("/v2")).json()
    assert [described.name, described.version, list(described.extensions)] == list(rest.values())
    assert (await client.call("ServerLive")).message.live
    assert (await client.call("ServerReady")).message.ready


async def test_a_model_is_ready_if_the_version_answers(client: Client) -> None:
    async def is_ready(name: str, version: str = "") -> bool:
        answer = await client.call("ModelReady", messages.ModelReadyRequest(name=name, version=version))
        ready: bool = answer.message.ready
        return ready

    assert await is_ready("flag")
    assert await is_ready("flag", "2")
    for name, version in (("missing", ""), ("NO NAME", ""), ("", ""), ("flag", "3"), ("flag", "x")):
        assert not await is_ready(name, version)


async def test_the_version_of_the_request_answers(client: Client) -> None:
    labels = {}
    for version in ("1", "2"):
        answer = await client.call("ModelInfer", infer_request("flag", matrix(ROWS), model_version=version))
        assert answer.message.model_version == version
        labels[version] = values_of(answer.message)["label"]
    assert labels == {"1": ["yes", "no"], "2": ["no", "yes"]}


async def test_the_ids_are_in_the_answer_and_its_metadata(client: Client) -> None:
    sent = [("x-request-id", "mine-1")]
    answer = await client.call("ModelInfer", infer_request("price", matrix(ROWS)), metadata=sent)
    assert answer.metadata["x-request-id"] == "mine-1"
    assert answer.metadata["x-prediction-id"] == answer.message.id
    named = await client.call("ModelInfer", infer_request("price", matrix(ROWS), id="42"))
    assert named.message.id == "42"
    assert named.metadata["x-prediction-id"] != "42"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_ten_thousand_rows_are_answered_in_order(client: Client, compression: Any) -> None:
    rows = np.zeros((10_000, 3))
    rows[:, 0] = np.arange(10_000)
    tensor = {"name": "input", "datatype": "FP64", "shape": [10_000, 3]}
    message = infer_request("price", tensor, raw_input_contents=[rows.tobytes()])
    answer = await client.call("ModelInfer", message, compression=compression)
    (values,) = values_of(answer.message).values()
    np.testing.assert_allclose(values, 2 * rows[:, 0] + 1, atol=1e-6)


INVALID = {
    "there is no model 'missing'": (infer_request("missing", matrix(ROWS)), Code.NOT_FOUND),
    "there is no model ''": (infer_request("", matrix(ROWS)), Code.NOT_FOUND),
    "there is no version 'flag:3'": (infer_request("flag", matrix(ROWS), model_version="3"), Code.NOT_FOUND),
    "version 'x' is not an integer from 1": (
        infer_request("flag", matrix(ROWS), model_version="x"),
        Code.INVALID_ARGUMENT,
    ),
    "there are no inputs": (infer_request("flag"), Code.INVALID_ARGUMENT),
    'the input "input" has 0 rows': (
        infer_request("flag", {"name": "input", "datatype": "FP64", "shape": [0, 3]}),
        Code.INVALID_ARGUMENT,
    ),
    'the input "input" has 10001 rows': (
        infer_request("flag", {"name": "input", "datatype": "FP64", "shape": [10_001, 3]}),
        Code.INVALID_ARGUMENT,
    ),
    'instance 1: "x0" is Infinity': (
        infer_request("flag", matrix([ROWS[0], [float("inf"), 0.0, 0.0]])),
        Code.INVALID_ARGUMENT,
    ),
    "has 47 bytes of binary data": (
        infer_request("flag", matrix(ROWS, raw=True), raw_input_contents=[b"\0" * 47]),
        Code.INVALID_ARGUMENT,
    ),
    'the output "score" is not an output': (
        infer_request("flag", matrix(ROWS), outputs=[{"name": "score"}]),
        Code.INVALID_ARGUMENT,
    ),
    "the message cannot be read as ModelInferRequest": (
        infer_request("flag", matrix(ROWS)).SerializeToString()[:-1],
        Code.INVALID_ARGUMENT,
    ),
    "as ModelInferRequest: it is cut off": (b"\x0a\xff", Code.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("text", list(INVALID))
async def test_an_invalid_call_has_its_code_and_the_reason(client: Client, text: str) -> None:
    message, code = INVALID[text]
    answer = await client.call("ModelInfer", message)
    assert (answer.code, text in answer.text) == (code, True), answer.text
    assert answer.metadata["x-request-id"].startswith("req-")


async def test_several_faults_are_in_one_text_that_clients_accept(client: Client) -> None:
    answer = await client.call("ModelInfer", infer_request("price", matrix([[float("nan"), 1.0, 2.0]] * 12)))
    assert answer.text.count('"x0" is null') == 10
    assert answer.text.endswith("(and 2 more)")
    name = "é" * 60_000
    tensors = [{"name": name[index:], "datatype": "FP64", "shape": [1]} for index in range(10)]
    answer = await client.call("ModelInfer", infer_request("mixed", *tensors))
    assert answer.code == Code.INVALID_ARGUMENT
    assert len(answer.text.encode()) <= MAX_TEXT_BYTES


async def test_a_call_needs_a_key_with_the_scope_and_the_model(api: Api) -> None:
    infer_flag = infer_request("flag", matrix(ROWS))
    async with connect(port_of(api), None) as anonymous:
        for method in ("ServerLive", "ModelInfer"):
            answer = await anonymous.call(method, infer_flag if method == "ModelInfer" else b"")
            assert (answer.code, "an API key is required" in answer.text) == (Code.UNAUTHENTICATED, True)
        unknown = await anonymous.call("ServerLive", metadata=[("authorization", "Bearer trv_no_key")])
        assert (unknown.code, "unknown, revoked" in unknown.text) == (Code.UNAUTHENTICATED, True)
        assert (await anonymous.stream("ModelInfer")).code == Code.UNAUTHENTICATED, "before its message"
    async with connect(port_of(api), await api.key("edge")) as edge:
        assert (await edge.call("ServerMetadata")).code == Code.OK
        denied = await edge.call("ModelInfer", infer_flag)
        assert (denied.code, "lacks the scope predict" in denied.text) == (Code.PERMISSION_DENIED, True)
    async with connect(port_of(api), await api.key("predict", models=["price"])) as limited:
        assert (await limited.call("ModelInfer", infer_request("price", matrix(ROWS)))).code == Code.OK
        for method, message in (
            ("ModelInfer", infer_flag),
            ("ModelMetadata", messages.ModelMetadataRequest(name="flag")),
            ("ModelReady", messages.ModelReadyRequest(name="flag")),
        ):
            denied = await limited.call(method, message)
            assert denied.code == Code.PERMISSION_DENIED
            assert denied.text == "this key is not for the model flag"


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_a_message_above_the_limit_of_bodies_is_rejected(api: Api, compression: Any) -> None:
    services = replace(api.services, settings=api.settings.model_copy(update={"max_body_mb": 1}))
    message = infer_request("flag", matrix(ROWS, raw=True), raw_input_contents=[b"\0" * (1 << 20)])
    async with serving(services, api) as server, connect(server.port, api.admin) as client:
        answer = await client.call("ModelInfer", message, compression=compression)
    assert answer.code == Code.RESOURCE_EXHAUSTED
    assert "larger than max" in answer.text


@pytest.mark.parametrize("method", ["ModelStreamInfer", "RepositoryIndex"])
async def test_other_methods_are_unimplemented(client: Client, method: str) -> None:
    for answer in (await client.stream(method), await client.call(method, b"\x0a\xff")):
        assert answer.code == Code.UNIMPLEMENTED
        assert f"{method} is not implemented; the service" in answer.text


async def test_calls_are_counted_as_those_of_http(api: Api, client: Client) -> None:
    def counts(text: str) -> dict[str, float]:
        lines = [line for line in text.splitlines() if 'method="GRPC"' in line or 'model="groups"' in line]
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    before = counts((await api.client.get("/metrics")).text)
    await client.call("ModelInfer", infer_request("groups", matrix(ROWS)))
    await client.call("ModelInfer", infer_request("groups"))
    await client.call("ServerReady")
    after = counts((await api.client.get("/metrics")).text)
    requests = 'trivium_requests_total{method="GRPC",route="/inference.GRPCInferenceService/'
    rows = 'trivium_predicted_rows_total{model="groups",runtime="onnx",version="1"}'
    for series, increase in {
        f'{requests}ModelInfer",status="200"}}': 1,
        f'{requests}ModelInfer",status="400"}}': 1,
        f'{requests}ServerReady",status="200"}}': 1,
        rows: 2,
    }.items():
        assert after[series] - before.get(series, 0) == increase, series


async def test_an_unexpected_error_has_the_request_id_and_no_trace(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(grpc_server, "describe_model", fail)
    answer = await client.call("ModelMetadata", messages.ModelMetadataRequest(name="flag"))
    assert answer.code == Code.INTERNAL
    assert answer.text.endswith(f"request_id: {answer.metadata['x-request-id']}")
    assert "secret" not in answer.text


def slow_request(seconds: float) -> Any:
    return infer_request("sleeper", matrix([[SLEEP_OFFSET + seconds, 0.0, 0.0]]))


async def test_the_deadline_of_the_caller_ends_the_wait(client: Client) -> None:
    assert (await client.call("ModelInfer", slow_request(0.6), timeout=0.1)).code == Code.DEADLINE_EXCEEDED


async def test_a_cancelled_call_leaves_the_queue_of_its_model(api: Api, client: Client) -> None:
    route = "/inference.GRPCInferenceService/ModelInfer"
    cancelled = f'trivium_requests_total{{method="GRPC",route="{route}",status="499"}}'
    before = await metric(api, cancelled)
    running = asyncio.create_task(client.call("ModelInfer", slow_request(0.5)))
    queued = asyncio.create_task(client.call("ModelInfer", slow_request(0.1)))
    await arrived(client)
    queued.cancel()
    async with asyncio.timeout(30):
        while await metric(api, cancelled) == before:
            await client.call("ServerLive")
    assert (await running).code == Code.OK
    assert await metric(api, 'trivium_queued_calls{model="sleeper",version="1"}') == 0


async def arrived(client: Client) -> None:
    """Wait until the server has the calls of tasks that were created: they share one connection."""
    await client.call("ServerLive")  # it may be sent before them
    await client.call("ServerLive")


async def metric(api: Api, series: str) -> float:
    lines = (await api.client.get("/metrics")).text.splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(series)), 0.0)


async def test_running_calls_are_answered_while_the_server_stops(api: Api) -> None:
    async with serving(api.services, api) as server, connect(server.port, api.admin) as client:
        running = asyncio.create_task(client.call("ModelInfer", slow_request(0.3)))
        await arrived(client)
        await server.stop()
        answer = await running
        assert answer.code == Code.OK, answer.text
        assert values_of(answer.message) == {"value": [SLEEP_OFFSET + 0.3]}
        assert (await client.call("ServerLive")).code == Code.UNAVAILABLE


@asynccontextmanager
async def serving(services: Services, api: Api) -> AsyncIterator[GrpcServer]:
    """A second server of the application, with its own settings."""
    assert api.grpc is not None
    server = GrpcServer(services, api.grpc.predictor)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_another_package_may_register_the_protocols_names() -> None:
    for name in ("kserve_grpc_predict_v2.proto", "grpc_service.proto"):
        file = descriptor_pb2.FileDescriptorProto(name=name, package="inference", syntax="proto3")
        file.message_type.add(name="ModelInferRequest")
        pool = descriptor_pool.Default() if name.startswith("kserve") else descriptor_pool.DescriptorPool()
        pool.Add(file)
        assert pool.FindMessageTypeByName("inference.ModelInferRequest").fields == []
    assert messages.ModelInferRequest.DESCRIPTOR.fields
