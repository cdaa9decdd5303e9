"""Keras models online: published over HTTP, answered by LiteRT, typed as any other model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.config import Settings
from tests.service.api import Api, running_app
from tests.service.compiler.keras import keras_models as made

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]


async def publish(api: Api, name: str, content: bytes, format: str, **options: Any) -> dict[str, Any]:
    body = {"artifact": await api.upload(content), "format": format, **options}
    answer = await api.client.post(f"/v1/models/{name}/versions", json=body)
    assert answer.status_code == 202, answer.text
    return await api.wait_for_build(answer.headers["location"])


async def test_a_keras_model_is_published_and_predicted_with_typed_features(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.cnn().save(tmp_path / "model.keras")
    content = (tmp_path / "model.keras").read_bytes()
    frame = made.digits_frame(slice(made.TRAINING_ROWS, None))
    pixels, _ = made.digits()
    async with running_app(Settings(home=tmp_path / "home")) as api:
        example = {"artifact": await api.upload(frame.to_csv(index=False).encode()), "media_type": "text/csv"}
        record = await publish(
            api, "digits", content, "keras", example=example, target="digit", alias="champion"
        )
        assert (record["state"], record["runtime"], record["format"]) == ("ready", "tflite", "keras"), record
        assert record["metrics"]["accuracy"] > 0.9
        assert record["lineage"]["made_by"]["keras"]

        row = {name: float(value) for name, value in frame.drop(columns="digit").iloc[0].items()}
        answer = await api.predict("digits", row, row)
        assert answer.status_code == 200, answer.text
        own = np.asarray(made.cnn()(pixels[made.TRAINING_ROWS : made.TRAINING_ROWS + 1], training=False))[0]
        first, second = answer.json()["predictions"]
        assert first == second
        assert first["label"] == int(own.argmax())
        assert first["probabilities"] == pytest.approx(
            {str(i): float(p) for i, p in enumerate(own)}, abs=1e-5
        )

        invalid_row = await api.predict("digits", {**row, "p3": "ink"})
        assert invalid_row.status_code == 422
        assert invalid_row.json()["errors"][0]["field"] == "p3"
        paths = (await api.client.get("/v1/models/digits/openapi.json")).json()["paths"]
        assert any(path.endswith("/predict") for path in paths)


async def test_a_tflite_file_is_served_as_it_is(tmp_path: Path) -> None:
    content = made.exported("regression")
    async with running_app(Settings(home=tmp_path / "home")) as api:
        record = await publish(api, "line", content, "tflite", alias="champion")
        assert (record["state"], record["runtime"]) == ("ready", "tflite"), record
        own = float(np.asarray(made.regression()(np.ones((1, 3), np.float32), training=False))[0, 0])
        answer = await api.predict("line", {"x0": 1, "x1": 1, "x2": 1})
        assert answer.json()["predictions"][0]["value"] == pytest.approx(own, abs=1e-5)
        published = await api.client.get("/v1/models/line/versions/1/artifact")
        assert published.content == content
        assert published.headers["content-disposition"].endswith('line-1.tflite"')

        broken = await publish(api, "line", content[: len(content) // 2], "tflite", alias="champion")
        assert broken["state"] == "rejected"
        assert "truncated or damaged" in broken["report"]["reason"]
        assert (await api.predict("line", {"x0": 1, "x1": 1, "x2": 1})).json()["model"]["version"] == 1
