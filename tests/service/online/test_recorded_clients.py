"""Requests of unmodified clients of other servers, byte for byte.

`recorded_requests.json` has what they sent to a server that stored it: client and version, path, headers, and
the body in base64. Each answer is compared with `predict` on the same rows.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.service.api import Api

pytestmark = pytest.mark.anyio

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recorded_requests.json").read_text())
NUMERIC = [{"x0": 2.0, "x1": 0.5, "x2": -1.0}, {"x0": -2.0, "x1": -0.5, "x2": 1.0}]
MIXED = [
    {"age": 40.5, "city": "Bern", "member": True, "visits": 3},
    {"age": None, "city": "Genève", "member": False, "visits": 8},
]


def outputs_of(answer: httpx.Response) -> dict[str, list[Any]]:
    """Decode an Open Inference Protocol answer as its clients do: values by output name, nested as rows."""
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    head, binary = json.loads(answer.content[:length]), answer.content[length:]
    outputs, start = {}, 0
    for tensor in head["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        values = tensor.get("data")
        if size is not None:
            assert values is None
            values = from_binary(tensor["datatype"], binary[start : start + size])
            start += size
        outputs[tensor["name"]] = np.array(values, dtype=object).reshape(tensor["shape"]).tolist()
    assert start == len(binary)
    return outputs


def from_binary(datatype: str, data: bytes) -> list[Any]:
    if datatype != "BYTES":
        kinds = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8", "BOOL": "?"}
        return np.frombuffer(data, kinds[datatype]).tolist()
    texts = []
    while data:
        (size,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    return texts


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda r: f"{r['client']}: {r['name']}")
async def test_the_answer_is_that_of_predict(api: Api, recorded: dict[str, Any]) -> None:
    body = base64.b64decode(recorded["body"])
    request = api.client.build_request("POST", recorded["path"], content=body)
    for name in ("accept", "accept-encoding", "user-agent", "connection"):  # httpx's own
        del request.headers[name]
    request.headers.update(recorded["headers"])
    answer = await api.client.send(request)
    assert answer.status_code == 200, answer.text

    base, _, action = recorded["path"].rpartition("/")
    rows = MIXED if "mixed" in base else NUMERIC
    expected = await api.client.post(f"{base.replace('/v2/', '/v1/')}/predict", json={"instances": rows})
    predictions = expected.json()["predictions"]
    labels = [p["label"] for p in predictions]
    if action == "invocations":
        assert answer.json() == {"predictions": labels}
        return
    outputs = outputs_of(answer)
    assert outputs["label"] == labels
    if "probabilities" in outputs:
        probabilities = [list(p["probabilities"].values()) for p in predictions]
        assert outputs["probabilities"] == [pytest.approx(p) for p in probabilities]
    length = int(request.headers.get("inference-header-content-length", len(body)))
    if b'"id"' in body[:length]:
        assert json.loads(
            answer.content[: int(answer.headers.get("inference-header-content-length", 10**6))]
        )["id"] in ("7", "8", "k1")
