"""A FastAPI route that calls `predict_proba`, as in many articles. Arguments: PORT MODEL NAMES.json."""

import json
import sys
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import uvicorn
from fastapi import FastAPI
from pydantic import ConfigDict, Field, create_model

model = joblib.load(sys.argv[2])
names = json.loads(Path(sys.argv[3]).read_text())
fields: Any = {f"f{i}": (float, Field(alias=n)) for i, n in enumerate(names)}
Row = create_model("Row", __config__=ConfigDict(extra="forbid"), **fields)
Body = create_model("Body", instances=(list[Row], ...))  # type: ignore[valid-type]
app = FastAPI()


@app.post("/predict")
def predict(body: Body) -> dict[str, Any]:  # type: ignore[valid-type]
    rows = pd.DataFrame([row.model_dump(by_alias=True) for row in body.instances])
    return {"probabilities": model.predict_proba(rows).tolist()}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="error")
