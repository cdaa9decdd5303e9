"""ASGI with an ONNX session, without keys, types and metrics. Arguments: PORT MODEL.onnx NAMES.json."""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import uvicorn

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[2], options)
model_input = session.get_inputs()[0]
dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[model_input.type]
names = json.loads(Path(sys.argv[3]).read_text())


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body = msgspec.json.decode((await receive())["body"])
    rows = np.array([[r[n] for n in names] for r in body["instances"]], dtype)
    labels, probabilities = session.run(["label", "probabilities"], {model_input.name: rows})
    answer = msgspec.json.encode({"label": labels.tolist(), "probabilities": probabilities.tolist()})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="error")
