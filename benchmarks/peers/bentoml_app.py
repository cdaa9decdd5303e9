"""BentoML with a joblib model. Started by `bentoml serve bentoml_app:Classifier`."""

from typing import Any

import bentoml
import numpy as np
from served import BATCHING, COLUMNS, MAX_BATCH, load, to_input

batching: dict[str, Any] = {"batchable": True, "max_batch_size": MAX_BATCH} if BATCHING else {}


@bentoml.service(traffic={"timeout": 120}, metrics={"enabled": True})
class Classifier:
    def __init__(self) -> None:
        self.model = load()

    if COLUMNS is None:

        @bentoml.api(**batching)
        def predict(self, instances: np.ndarray) -> np.ndarray:
            return np.asarray(self.model.predict_proba(instances))

    else:

        @bentoml.api(**batching)
        def predict(self, instances: list[dict[str, Any]]) -> list[list[float]]:
            rows: list[list[float]] = self.model.predict_proba(to_input(instances)).tolist()
            return rows
