"""The body of `POST /v1/jobs`: its `kind` says which fields it has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from service.batch.schemas import ScoreBody
from service.batch.train_schemas import TrainBody
from service.submit.score_admission import Spec

JobBody = Annotated[ScoreBody | TrainBody, Field(discriminator="kind")]


def spec_of(job: ScoreBody | TrainBody) -> Spec:
    """The job as it is kept: every default filled in, an alias not looked up."""
    return job.model_dump(mode="json", exclude={"dry_run"})
