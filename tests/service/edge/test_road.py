"""The whole road: a published model is exported, pulled as a device would, and run on LiteRT."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from ai_edge_litert.interpreter import Interpreter

from service.compiler.tflite.metadata import read_metadata
from tests.service.api import Api, refused
from tests.service.estimators import numbers

pytestmark = pytest.mark.anyio
ROWS = numbers(20)
LATEST = "/v1/edge/forest/latest.tflite"


async def export(api: Api, **more: object) -> dict[str, object]:
    answer = await api.client.post("/v1/models/forest/versions/1/exports", json={"format": "tflite"} | more)
    assert answer.status_code == 202, answer.text
    return await api.built(answer.headers["location"])


async def test_what_a_device_pulls_answers_as_the_model_does_online(api: Api) -> None:
    record = await export(api)
    assert record["state"] == "ready", record
    manifest = (await api.client.get("/v1/edge/forest", headers={"X-Runtime-Version": "99"})).json()
    assert {k: manifest[k] for k in ("sha256", "bytes", "min_runtime", "report")} == {
        k: record[k] for k in ("sha256", "bytes", "min_runtime", "report")
    }
    pulled = await api.client.get(manifest["url"], headers={"Accept-Encoding": "zstd"})
    assert pulled.headers["content-encoding"] == "zstd"
    file = pa.decompress(pulled.content, manifest["bytes"], codec="zstd", asbytes=True)
    assert hashlib.sha256(file).hexdigest() == manifest["sha256"] == pulled.headers["x-model-sha256"]
    classes = next(o["classes"] for o in read_metadata(file)["outputs"] if o["name"] == "label")
    online = await api.predict("forest", *ROWS.to_dict("records"))
    assert [classes[i] for i in labels(file)] == [p["label"] for p in online.json()["predictions"]]


async def test_an_export_outside_its_bounds_is_rejected_and_never_pulled(api: Api) -> None:
    record = await export(api, quantize="float16", max_bytes=10)
    assert (record["state"], record["sha256"]) == ("rejected", None)
    refused(await api.client.get(f"{LATEST}?quantize=float16"), 404)


def labels(file: bytes) -> list[int]:
    interpreter = Interpreter(model_content=file)
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], [len(ROWS), ROWS.shape[1]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], ROWS.to_numpy(np.float32))
    interpreter.invoke()
    label = next(o for o in interpreter.get_output_details() if o["name"].endswith("label"))
    found: list[int] = interpreter.get_tensor(label["index"]).tolist()
    return found


async def test_the_docs_say_what_devices_can_have_and_how_faithful_it_is(api: Api) -> None:
    record = await export(api)
    own = (await api.client.get("/v1/models/forest/openapi.json")).json()
    whole = (await api.client.get("/openapi.json")).json()
    shown = {t["name"]: t.get("description", "") for t in whole["tags"]}
    row = f"| none | {record['bytes']:,} | {record['min_runtime']} | 100.00% |"
    for text in (own["info"]["description"], shown["forest"]):
        assert row in text
    assert "| none |" not in shown["price"]
