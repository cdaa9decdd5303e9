"""What the API's page shows as a body can be sent."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from service.batch import schedule_schemas, schemas, train_schemas
from service.batch.bodies import JobBody


@pytest.mark.parametrize(
    ("kind", "example"),
    [
        (JobBody, schemas.EXAMPLE),
        (JobBody, train_schemas.EXAMPLE),
        (schedule_schemas.ScheduleBody, schedule_schemas.EXAMPLE),
    ],
    ids=["score", "train", "schedule"],
)
def test_the_example_of_a_body_is_one(kind: Any, example: dict[str, Any]) -> None:
    made: BaseModel = TypeAdapter(kind).validate_python(example)
    assert type(made).model_json_schema()["example"] == example
