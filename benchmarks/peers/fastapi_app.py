"""FastAPI with a joblib model, as in many articles. Started by uvicorn as `fastapi_app:app`."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from served import COLUMNS, load, to_input

model = load()
app = FastAPI()


class Numbers(BaseModel):
    instances: list[list[float]]


class Records(BaseModel):
    instances: list[dict[str, float | str | None]]


Body: Any = Numbers if COLUMNS is None else Records


@app.post("/predict")
def predict(body: Body) -> dict[str, Any]:
    return {"predictions": model.predict_proba(to_input(body.instances)).tolist()}
