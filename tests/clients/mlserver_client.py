"""Encodes requests and decodes answers with MLServer's codecs, and prints the values as JSON.

Run by test_clients.py with the Python of .venv/clients/mlserver.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
from mlserver.codecs import NumpyCodec, NumpyRequestCodec, PandasCodec, StringCodec
from mlserver.types import InferenceResponse, MetadataModelResponse, MetadataServerResponse

ROWS = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]])
PEOPLE = pd.DataFrame(
    {"age": [40.5, np.nan], "city": ["Bern", "Genève"], "member": [True, False], "visits": [3, 8]}
).astype({"city": object})  # its codec does not know the strings of pandas 3


def main(http_url: str, _grpc_url: str, key: str) -> None:
    send = partial(call, f"http://{http_url}/v2", {"Authorization": f"Bearer {key}"})
    report = {}
    for name, model, request in (
        ("array", "iris", NumpyRequestCodec.encode_request(ROWS)),
        ("data frame", "mixed", PandasCodec.encode_request(PEOPLE)),
    ):
        answer = send(f"/models/{model}/infer", request.model_dump_json().encode())
        response = InferenceResponse.model_validate_json(answer)
        report[name] = {o.name: decode(o) for o in response.outputs}
    server = MetadataServerResponse.model_validate_json(send(""))
    model = MetadataModelResponse.model_validate_json(send("/models/iris"))
    report["metadata"] = [server.name, model.name, [i.name for i in model.inputs]]
    print(json.dumps(report))


def call(url: str, headers: dict[str, str], path: str, body: bytes | None = None) -> bytes:
    with urlopen(Request(url + path, body, headers | {"Content-Type": "application/json"})) as answer:
        return answer.read()


def decode(output):
    if output.datatype == "BYTES":
        return StringCodec.decode_output(output)
    return NumpyCodec.decode_output(output).ravel().tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
