"""Flask with a joblib model, as in many articles. Started by gunicorn as `flask_app:app`."""

from typing import Any

from flask import Flask, jsonify, request
from served import load, to_input

model = load()
app = Flask(__name__)


@app.post("/predict")
def predict() -> Any:
    rows = to_input(request.get_json()["instances"])
    return jsonify(predictions=model.predict_proba(rows).tolist())
