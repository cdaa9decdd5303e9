"""LitServe with a joblib model, as in its documentation. Arguments: PORT."""

import sys
from typing import Any

import litserve
from fastapi import Request
from served import BATCHING, MAX_BATCH, load, to_input


class Classifier(litserve.LitAPI):
    """With batching, a batch is the concatenated list of the requests' instances, one for each request."""

    def setup(self, device: str) -> None:
        self.model = load()

    def decode_request(self, request: Request) -> Any:
        return request["instances"]

    def batch(self, inputs: list[Any]) -> Any:
        return [row for instances in inputs for row in instances]

    def predict(self, x: Any) -> Any:
        return self.model.predict_proba(to_input(x))

    def unbatch(self, output: Any) -> Any:
        return [row.reshape(1, -1) for row in output]

    def encode_response(self, output: Any) -> Any:
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    batching = {"max_batch_size": MAX_BATCH, "batch_timeout": 0.002} if BATCHING else {}
    server = litserve.LitServer(Classifier(**batching), accelerator="cpu", timeout=120)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )
