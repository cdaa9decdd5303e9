"""LitServe with `predict_proba`, as in its documentation. Arguments: PORT MODEL.joblib."""

import sys
from typing import Any

import joblib
import litserve
import pandas as pd
from fastapi import Request


class ForestApi(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = joblib.load(sys.argv[2])

    def decode_request(self, request: Request) -> Any:
        return pd.DataFrame(request["instances"])

    def predict(self, x: Any) -> Any:
        return self.model.predict_proba(x)

    def encode_response(self, output: Any) -> Any:
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(ForestApi(), accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )
