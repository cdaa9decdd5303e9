"""The examples in the API documentation are valid bodies."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from service.batch.job_schemas import JobBody
from service.batch.schedule_schemas import SCHEDULE_EXAMPLE, ScheduleBody
from service.batch.score_schemas import SCORE_EXAMPLE
from service.batch.train_schemas import TRAIN_EXAMPLE


@pytest.mark.parametrize(
    ("body_type", "example"),
    [
        (JobBody, SCORE_EXAMPLE),
        (JobBody, TRAIN_EXAMPLE),
        (ScheduleBody, SCHEDULE_EXAMPLE),
    ],
    ids=["score", "train", "schedule"],
)
def test_the_documented_example_of_a_body_is_valid(body_type: Any, example: dict[str, Any]) -> None:
    body: BaseModel = TypeAdapter(body_type).validate_python(example)
    assert type(body).model_json_schema()["example"] == example
