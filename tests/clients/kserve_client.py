"""Calls a server with kserve's REST and gRPC clients, and prints what they return as JSON.

Run by test_clients.py with the Python of .venv/clients/kserve. The last argument is the file of the requests.
Each call has its own dictionary of headers, because the client adds its own to it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


async def main(http_url: str, grpc_url: str, key: str, requests: dict) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    metadata = [(name.lower(), value) for name, value in headers.items()]
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    grpc = InferenceGRPCClient(grpc_url)
    url = f"http://{http_url}"
    report = {
        "rest": {
            "live": await rest.is_server_live(url, headers=headers),
            "ready": await rest.is_server_ready(url, headers=headers),
            "model ready": await rest.is_model_ready(url, "iris", headers=headers),
        },
        "grpc": {
            "live": await grpc.is_server_live(headers=metadata),
            "ready": await grpc.is_server_ready(headers=metadata),
            "model ready": await grpc.is_model_ready("iris", headers=metadata),
        },
    }
    for name, (model, body) in requests.items():
        answer = await rest.infer(url, data=body, model_name=model, headers=dict(headers))
        report["rest"][name] = outputs_of(answer)
        for form in ("typed", "raw"):
            report["rest"][f"{name}, {form}"] = outputs_of(
                await rest.infer(
                    url, data=request(model, body, form), model_name=model, headers=dict(headers)
                )
            )
            report["grpc"][f"{name}, {form}"] = outputs_of(
                await grpc.infer(request(model, body, form), headers=metadata)
            )
    print(json.dumps(report))


def request(model: str, body: dict, form: str) -> InferRequest:
    """The same request as an object, its values in a list or in binary."""
    inputs = []
    for described in body["inputs"]:
        flat = np.ravel(described["data"]).tolist()
        tensor = InferInput(described["name"], described["shape"], described["datatype"], data=flat)
        if form == "raw":
            tensor.set_data_from_numpy(tensor.as_numpy(), binary_data=True)
        inputs.append(tensor)
    return InferRequest(model_name=model, infer_inputs=inputs, parameters=body.get("parameters"))


def outputs_of(answer) -> dict:
    """The values by output, flat."""
    outputs = {}
    for output in answer.outputs:
        values = (
            output.as_numpy() if output.datatype != "BYTES" else np.array(output.data or output.as_numpy())
        )
        outputs[output.name] = [v.decode() if isinstance(v, bytes) else v for v in values.ravel().tolist()]
    return outputs


if __name__ == "__main__":
    *urls_and_key, path = sys.argv[1:]
    asyncio.run(main(*urls_and_key, json.loads(Path(path).read_text())))
