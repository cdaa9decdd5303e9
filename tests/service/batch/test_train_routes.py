"""POST /v1/jobs for trainings: accepted and rejected bodies. No worker runs."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from registry.jobs import jobs
from registry.vocabulary import SCORE
from service.config import Settings
from tests.service.api import Api, check_problem, running_app

pytestmark = pytest.mark.anyio
PATH = "/v1/jobs"


class TrainingBench(NamedTuple):
    """An application with a batch root, and a valid body of a training."""

    api: Api
    root: Path
    body: dict[str, Any]

    async def rejected_fields(self, **changes: Any) -> list[str]:
        """Send the body with `changes`; return the fields that the answer rejects."""
        answer = await self.api.client.post(PATH, json=self.body | changes)
        return [e["field"] for e in check_problem(answer, 422)["errors"]]


@pytest.fixture(scope="module")
async def bench(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TrainingBench]:
    folder = tmp_path_factory.mktemp("trainings")
    home, root = shutil.copytree(published_home, folder / "home"), folder / "data"
    root.mkdir()
    (root / "rows.csv").write_text("x,y\n1,2\n3,4\n")
    async with running_app(Settings(home=home, batch_roots=str(root))) as api:
        body = {
            "kind": "train",
            "estimator": {"artifact": await api.upload(b"an estimator")},
            "input": {"uri": f"{root}/rows.csv"},
            "target": "y",
            "strategy": "partial_fit",
            "publish": {"name": "learned"},
        }
        yield TrainingBench(api, root, body)


async def test_an_accepted_training_is_returned_at_its_location(bench: TrainingBench) -> None:
    answer = await bench.api.client.post(PATH, json=bench.body)
    assert answer.status_code == 202, answer.text
    record = answer.json()
    assert (record["kind"], record["state"], record["model"], record["version"]) == (
        "train", "queued", "learned", None,
    )  # fmt: skip
    assert (record["spec"]["validation"], record["spec"]["sampling"]) == (0.2, "none")
    assert (await bench.api.client.get(answer.headers["location"])).json()["id"] == record["id"]
    listed = (await bench.api.client.get(f"{PATH}?model=learned")).json()["items"]
    assert record["id"] in [j["id"] for j in listed]


async def test_the_record_of_a_training_names_its_follow_up_job(bench: TrainingBench) -> None:
    training = (await bench.api.client.post(PATH, json=bench.body)).json()
    assert training["then_id"] is None
    with bench.api.services.sessions.begin() as session:
        new = jobs.NewJob(kind=SCORE, spec=training["spec"], model="learned", parent_id=training["id"])
        scoring = jobs.create(session, new, by="tests").id
    records = [(await bench.api.client.get(f"{PATH}/{n}")).json() for n in (training["id"], scoring)]
    assert [(j["then_id"], j["then_state"], j["parent_id"]) for j in records] == [
        (scoring, "queued", None),
        (None, None, training["id"]),
    ]
    for file, message in (("output", "publishes a version"), ("errors", "without a target")):
        assert (
            message
            in check_problem(await bench.api.client.get(f"{PATH}/{training['id']}/{file}"), 404)["detail"]
        )


async def test_a_repeated_request_with_the_same_key_creates_one_training(bench: TrainingBench) -> None:
    headers = {"Idempotency-Key": "weekly-1"}
    ids = {(await bench.api.client.post(PATH, json=bench.body, headers=headers)).json()["id"] for _ in "ab"}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"strategy": "guess"}, "strategy"),
        ({"sampling": "some"}, "sampling"),
        ({"partitions": 0}, "partitions"),
        ({"validation": 1}, "validation"),
        ({"publish": {"name": "No Name"}}, "publish.name"),
        ({"publish": {"name": "m", "version": 3}}, "publish.version"),
        ({"estimator": {"artifact": "0" * 64}}, "estimator.artifact"),
        ({"target": "z"}, "target"),
        ({"exclude": ["z"]}, "exclude"),
        ({"exclude": ["y"]}, "exclude"),
        ({"exclude": ["x"]}, "exclude"),
        ({"input": {"uri": "/etc/passwd"}}, "input.uri"),
        ({"kind": "guess"}, "kind"),
        ({"model": "m"}, "model"),
        ({"then": {"kind": "train"}}, "then.kind"),
    ],
    ids=str,
)
async def test_an_invalid_training_is_rejected_naming_the_field(
    bench: TrainingBench, changes: dict[str, Any], field: str
) -> None:
    assert field in await bench.rejected_fields(**changes)


async def test_the_input_of_then_must_be_uploaded_or_in_a_batch_root(bench: TrainingBench) -> None:
    then = {"kind": "score", "input": {"uri": "/etc/passwd"}}
    assert await bench.rejected_fields(then=then) == ["then.input.uri"]
    not_uploaded = {"kind": "score", "input": {"artifact": "0" * 64, "media_type": "text/csv"}}
    assert await bench.rejected_fields(then=not_uploaded) == ["then.input.artifact"]


@pytest.mark.parametrize(
    ("then_fields", "header", "rejected"),
    [
        ({}, None, ["then.input.uri"]),
        ({}, "y", ["x"]),
        ({"id_column": "id"}, "x", ["then.id_column"]),
        ({"passthrough": ["id"]}, "x", ["then.passthrough"]),
        ({"id_column": "id"}, "x,id", []),
    ],
    ids=str,
)
async def test_the_input_of_then_is_examined_before_the_training_starts(
    bench: TrainingBench, tmp_path: Path, then_fields: dict[str, Any], header: str | None, rejected: list[str]
) -> None:
    place = bench.root / f"{tmp_path.name}.csv"
    if header is not None:
        place.write_text(f"{header}\n" + ",".join("1" for _ in header.split(",")) + "\n")
    then = {"kind": "score", "input": {"uri": str(place)}, **then_fields}
    if rejected:
        assert await bench.rejected_fields(then=then) == rejected
    else:
        assert (await bench.api.client.post(PATH, json=bench.body | {"then": then})).status_code == 202


async def test_dates_are_refused_as_features_of_a_training_and_of_its_then(bench: TrainingBench) -> None:
    dated = bench.root / "dated.parquet"
    pq.write_table(pa.table({"x": pa.array([1, 2], pa.date32()), "y": [1.0, 2.0]}), dated)
    answer = await bench.api.client.post(PATH, json=bench.body | {"input": {"uri": str(dated)}})
    (error,) = check_problem(answer, 422)["errors"]
    assert error["field"] == "x"
    assert error["message"].startswith('column "x" is of type date32[day]: dates are not features; convert')
    assert await bench.rejected_fields(then={"kind": "score", "input": {"uri": str(dated)}}) == ["x"]
    excluded = {"input": {"uri": str(dated)}, "exclude": ["x"]}
    assert await bench.rejected_fields(**excluded) == ["exclude"]  # no feature remains


async def test_the_strategy_single_rejects_partitions(bench: TrainingBench) -> None:
    answer = await bench.api.client.post(PATH, json=bench.body | {"strategy": "single", "partitions": 4})
    assert "remove partitions" in check_problem(answer, 422)["detail"]


async def test_ray_accepts_ensembles_only(bench: TrainingBench) -> None:
    answer = await bench.api.client.post(PATH, json=bench.body | {"engine": "ray"})
    assert "ensemble" in check_problem(answer, 422)["detail"]


async def test_a_key_for_other_models_may_not_train_this_model(bench: TrainingBench) -> None:
    async with bench.api.with_key(await bench.api.key("batch", models=["flag"])) as client:
        assert "learned" in check_problem(await client.post(PATH, json=bench.body), 403)["detail"]


async def test_a_training_needs_the_scope_publish(bench: TrainingBench) -> None:
    weekly = {"name": "weekly", "job": bench.body, "every_s": 604800, "start_in_s": 3600}
    async with bench.api.with_key(await bench.api.key("batch")) as client:
        for path, body in ((PATH, bench.body), ("/v1/schedules", weekly)):
            assert (
                "lacks the scope publish" in check_problem(await client.post(path, json=body), 403)["detail"]
            )
        answer = await bench.api.client.post("/v1/schedules", json=weekly)
        assert answer.status_code == 201, answer.text
        check_problem(await client.post("/v1/schedules/weekly/run"), 403)
        check_problem(await client.patch("/v1/schedules/weekly", json={"start_in_s": 0}), 403)
        location = (await bench.api.client.post(PATH, json=bench.body)).headers["location"]
        assert (await client.post(f"{location}/cancel")).status_code == 200
        check_problem(await client.post(f"{location}/resume"), 403)
    async with bench.api.with_key(await bench.api.key("batch", "publish")) as client:
        assert (await client.post(PATH, json=bench.body)).status_code == 202
