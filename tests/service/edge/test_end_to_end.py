"""End to end: a published model is exported, downloaded like a device does, and run with LiteRT."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from ai_edge_litert.interpreter import Interpreter

from service.compiler.tflite.metadata import read_metadata
from tests.service.api import Api, check_problem
from tests.service.estimators import numeric_rows

pytestmark = pytest.mark.anyio
ROWS = numeric_rows(20)
LATEST = "/v1/edge/forest/latest.tflite"


async def export(api: Api, **fields: object) -> dict[str, object]:
    answer = await api.client.post("/v1/models/forest/versions/1/exports", json={"format": "tflite"} | fields)
    assert answer.status_code == 202, answer.text
    return await api.wait_for_build(answer.headers["location"])


async def test_a_downloaded_file_predicts_like_the_online_model(api: Api) -> None:
    record = await export(api)
    assert record["state"] == "ready", record
    manifest = (await api.client.get("/v1/edge/forest", headers={"X-Runtime-Version": "99"})).json()
    assert {k: manifest[k] for k in ("sha256", "bytes", "min_runtime", "report")} == {
        k: record[k] for k in ("sha256", "bytes", "min_runtime", "report")
    }
    download = await api.client.get(manifest["url"], headers={"Accept-Encoding": "zstd"})
    assert download.headers["content-encoding"] == "zstd"
    file = pa.decompress(download.content, manifest["bytes"], codec="zstd", asbytes=True)
    assert hashlib.sha256(file).hexdigest() == manifest["sha256"] == download.headers["x-model-sha256"]
    classes = next(o["classes"] for o in read_metadata(file)["outputs"] if o["name"] == "label")
    online = await api.predict("forest", *ROWS.to_dict("records"))
    assert [classes[i] for i in labels(file)] == [p["label"] for p in online.json()["predictions"]]


async def test_an_export_outside_its_bounds_is_rejected_and_not_served(api: Api) -> None:
    record = await export(api, quantize="float16", max_bytes=10)
    assert (record["state"], record["sha256"]) == ("rejected", None)
    check_problem(await api.client.get(f"{LATEST}?quantize=float16"), 404)


def labels(file: bytes) -> list[int]:
    interpreter = Interpreter(model_content=file)
    (model_input,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(model_input["index"], [len(ROWS), ROWS.shape[1]])
    interpreter.allocate_tensors()
    interpreter.set_tensor(model_input["index"], ROWS.to_numpy(np.float32))
    interpreter.invoke()
    label = next(o for o in interpreter.get_output_details() if o["name"].endswith("label"))
    indexes: list[int] = interpreter.get_tensor(label["index"]).tolist()
    return indexes


async def test_the_openapi_documents_list_exports_and_their_parity(api: Api) -> None:
    record = await export(api)
    model_document = (await api.client.get("/v1/models/forest/openapi.json")).json()
    server_document = (await api.client.get("/openapi.json")).json()
    descriptions = {t["name"]: t.get("description", "") for t in server_document["tags"]}
    row = f"| none | {record['bytes']:,} | {record['min_runtime']} | 100.00% |"
    for text in (model_document["info"]["description"], descriptions["forest"]):
        assert row in text
    assert "| none |" not in descriptions["price"]
