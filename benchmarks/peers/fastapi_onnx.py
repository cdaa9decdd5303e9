"""A FastAPI route with a pydantic body and an ONNX session. Arguments: PORT MODEL.onnx NAMES.json."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI
from pydantic import ConfigDict, Field, create_model

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[2], options)
model_input = session.get_inputs()[0]
dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[model_input.type]
names = json.loads(Path(sys.argv[3]).read_text())
fields: Any = {f"f{i}": (float, Field(alias=n)) for i, n in enumerate(names)}
Row = create_model("Row", __config__=ConfigDict(extra="forbid"), **fields)
Body = create_model("Body", instances=(list[Row], ...))  # type: ignore[valid-type]
app = FastAPI()


@app.post("/predict")
async def predict(body: Body) -> dict[str, Any]:  # type: ignore[valid-type]
    rows = np.array([list(row.model_dump().values()) for row in body.instances], dtype)
    labels, probabilities = session.run(["label", "probabilities"], {model_input.name: rows})
    return {"label": labels.tolist(), "probabilities": probabilities.tolist()}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="error")
