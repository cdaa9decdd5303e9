"""Calls a server with tritonclient, over HTTP and gRPC, and prints what it returns as JSON.

Run by test_clients.py with the Python of .venv/clients/triton. Each call has its own dictionary of headers,
because the client adds its own to it.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

ROWS = np.array([[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]])
AGES = np.array([40.5, np.nan])
CITIES = np.array([b"Bern", "Genève".encode()], dtype=object)


def main(http_url: str, grpc_url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    grpc_headers = {name.lower(): value for name, value in headers.items()}
    http = triton_http.InferenceServerClient(http_url)
    grpc = triton_grpc.InferenceServerClient(grpc_url)
    report = {"http": check(triton_http, http, headers), "grpc": check(triton_grpc, grpc, grpc_headers)}
    report["http"]["typed"] = typed(http, headers)
    report["grpc"]["metadata"] = triton_grpc_metadata(grpc, grpc_headers)
    report["http"]["metadata"] = http.get_model_metadata("iris", headers=dict(headers))
    report["grpc"]["asynchronous"] = asynchronous(grpc, grpc_headers)
    report["grpc"]["stream"] = stream(grpc, grpc_headers)
    print(json.dumps(report))


def check(module, client, headers):
    """The calls that both clients have."""
    return {
        "live": client.is_server_live(headers=dict(headers)),
        "ready": client.is_server_ready(headers=dict(headers)),
        "model ready": client.is_model_ready("iris", headers=dict(headers)),
        "version ready": client.is_model_ready("iris", "1", headers=dict(headers)),
        "missing ready": client.is_model_ready("missing", headers=dict(headers)),
        "matrix": matrix(module, client, headers),
        "float32": matrix(module, client, headers, np.float32, "FP32"),
        "compressed": matrix(module, client, headers, **compression(module)),
        "columns": columns(module, client, headers),
        "many rows": many_rows(module, client, headers),
        "errors": errors(module, client, headers),
    }


def compression(module):
    name = "compression_algorithm" if module is triton_grpc else "request_compression_algorithm"
    return {name: "gzip"}


def tensor(module, name, values, datatype):
    described = module.InferInput(name, list(values.shape), datatype)
    described.set_data_from_numpy(values)
    return described


def result(answer, *names):
    return {name: to_list(answer.as_numpy(name)) for name in names}


def to_list(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values.ravel().tolist()]


def matrix(module, client, headers, dtype=np.float64, datatype="FP64", **options):
    outputs = [module.InferRequestedOutput("label"), module.InferRequestedOutput("probabilities")]
    answer = client.infer(
        "iris",
        [tensor(module, "input", ROWS.astype(dtype), datatype)],
        model_version="1",
        outputs=outputs,
        request_id="7",
        headers=dict(headers),
        **options,
    )
    response = answer.get_response()
    identifier = response["id"] if isinstance(response, dict) else response.id
    return {"id": identifier, **result(answer, "label", "probabilities")}


def columns(module, client, headers):
    inputs = [
        tensor(module, "age", AGES, "FP64"),
        tensor(module, "city", CITIES, "BYTES"),
        tensor(module, "member", np.array([True, False]), "BOOL"),
        tensor(module, "visits", np.array([3, 8], dtype=np.int32), "INT32"),
    ]
    return result(client.infer("mixed", inputs, headers=dict(headers)), "label", "probabilities")


def many_rows(module, client, headers):
    rows = np.tile(ROWS, (5000, 1))
    answer = client.infer("iris", [tensor(module, "input", rows, "FP64")], headers=dict(headers))
    return sorted(set(to_list(answer.as_numpy("label"))))


def errors(module, client, headers):
    """The messages of the client's exceptions."""
    wrong = {
        "model": ("missing", "input", ROWS, "FP64", headers),
        "shape": ("iris", "input", ROWS[:, :3], "FP64", headers),
        "infinity": ("iris", "input", np.where(ROWS == 6.0, np.inf, ROWS), "FP64", headers),
        "strings": ("iris", "input", np.full((1, 4), b"x", dtype=object), "BYTES", headers),
        "empty": ("iris", "input", ROWS[:0], "FP64", headers),
        "key": ("iris", "input", ROWS, "FP64", {}),
    }
    messages = {}
    for name, (model, input_name, values, datatype, sent) in wrong.items():
        try:
            client.infer(model, [tensor(module, input_name, values, datatype)], headers=dict(sent))
        except module.InferenceServerException as error:
            messages[name] = [error.status(), error.message()]
    return messages


def typed(client, headers):
    """Values in JSON."""
    described = triton_http.InferInput("input", list(ROWS.shape), "FP64")
    described.set_data_from_numpy(ROWS, binary_data=False)
    outputs = [triton_http.InferRequestedOutput("label", binary_data=False)]
    return result(client.infer("iris", [described], outputs=outputs, headers=dict(headers)), "label")


def triton_grpc_metadata(client, headers):
    return client.get_model_metadata("iris", headers=dict(headers), as_json=True)


def asynchronous(client, headers):
    import queue

    answers = queue.Queue()
    client.async_infer(
        "iris",
        [tensor(triton_grpc, "input", ROWS, "FP64")],
        callback=lambda result, error: answers.put((result, error)),
        headers=dict(headers),
    )
    answer, error = answers.get(timeout=30)
    return str(error) if error else result(answer, "label")


def stream(client, headers):
    """The error of a stream, which is not implemented."""
    import queue

    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put(error), headers=dict(headers))
    error = answers.get(timeout=30)
    client.stop_stream()
    return [error.status(), error.message()]


if __name__ == "__main__":
    main(*sys.argv[1:])
