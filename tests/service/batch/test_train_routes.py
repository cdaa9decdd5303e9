"""POST /v1/jobs for trainings: what is taken, what is refused and in which words. No worker runs."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from registry.jobs import jobs
from registry.vocabulary import SCORE
from service.config import Settings
from tests.service.api import Api, refused, running

pytestmark = pytest.mark.anyio
PATH = "/v1/jobs"


class Shop(NamedTuple):
    api: Api
    root: Path
    body: dict[str, Any]

    async def refused(self, **changed: Any) -> list[str]:
        """The fields that are at fault."""
        answer = await self.api.client.post(PATH, json=self.body | changed)
        return [e["field"] for e in refused(answer, 422)["errors"]]


@pytest.fixture(scope="module")
async def shop(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shop]:
    folder = tmp_path_factory.mktemp("trainings")
    home, root = shutil.copytree(published_home, folder / "home"), folder / "data"
    root.mkdir()
    (root / "rows.csv").write_text("x,y\n1,2\n3,4\n")
    async with running(Settings(home=home, batch_roots=str(root))) as api:
        body = {
            "kind": "train",
            "estimator": {"artifact": await api.upload(b"an estimator")},
            "input": {"uri": f"{root}/rows.csv"},
            "target": "y",
            "strategy": "partial_fit",
            "publish": {"name": "learned"},
        }
        yield Shop(api, root, body)


async def test_an_accepted_training_is_returned_at_its_location(shop: Shop) -> None:
    answer = await shop.api.client.post(PATH, json=shop.body)
    assert answer.status_code == 202, answer.text
    record = answer.json()
    assert (record["kind"], record["state"], record["model"], record["version"]) == (
        "train", "queued", "learned", None,
    )  # fmt: skip
    assert (record["spec"]["validation"], record["spec"]["sampling"]) == (0.2, "none")
    assert (await shop.api.client.get(answer.headers["location"])).json()["id"] == record["id"]
    listed = (await shop.api.client.get(f"{PATH}?model=learned")).json()["items"]
    assert record["id"] in [j["id"] for j in listed]


async def test_the_record_of_a_training_names_its_follow_up_job(shop: Shop) -> None:
    training = (await shop.api.client.post(PATH, json=shop.body)).json()
    assert training["then_id"] is None
    with shop.api.services.sessions.begin() as session:
        new = jobs.NewJob(kind=SCORE, spec=training["spec"], model="learned", parent_id=training["id"])
        scoring = jobs.create(session, new, by="tests").id
    found = [(await shop.api.client.get(f"{PATH}/{n}")).json() for n in (training["id"], scoring)]
    assert [(j["then_id"], j["then_state"], j["parent_id"]) for j in found] == [
        (scoring, "queued", None),
        (None, None, training["id"]),
    ]
    for what, said in (("output", "publishes a version"), ("errors", "without a target")):
        assert said in refused(await shop.api.client.get(f"{PATH}/{training['id']}/{what}"), 404)["detail"]


async def test_a_repeated_request_with_the_same_key_creates_one_training(shop: Shop) -> None:
    headers = {"Idempotency-Key": "weekly-1"}
    ids = {(await shop.api.client.post(PATH, json=shop.body, headers=headers)).json()["id"] for _ in "ab"}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("changed", "field"),
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
async def test_an_invalid_training_is_rejected_naming_the_field(shop: Shop, changed: dict[str, Any], field: str) -> None:
    assert field in await shop.refused(**changed)


async def test_the_input_of_then_must_be_uploaded_or_in_a_batch_root(shop: Shop) -> None:
    then = {"kind": "score", "input": {"uri": "/etc/passwd"}}
    assert await shop.refused(then=then) == ["then.input.uri"]
    lost = {"kind": "score", "input": {"artifact": "0" * 64, "media_type": "text/csv"}}
    assert await shop.refused(then=lost) == ["then.input.artifact"]


@pytest.mark.parametrize(
    ("given", "header", "fields"),
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
    shop: Shop, tmp_path: Path, given: dict[str, Any], header: str | None, fields: list[str]
) -> None:
    place = shop.root / f"{tmp_path.name}.csv"
    if header is not None:
        place.write_text(f"{header}\n" + ",".join("1" for _ in header.split(",")) + "\n")
    then = {"kind": "score", "input": {"uri": str(place)}, **given}
    if fields:
        assert await shop.refused(then=then) == fields
    else:
        assert (await shop.api.client.post(PATH, json=shop.body | {"then": then})).status_code == 202


async def test_the_strategy_single_rejects_partitions(shop: Shop) -> None:
    answer = await shop.api.client.post(PATH, json=shop.body | {"strategy": "single", "partitions": 4})
    assert "remove partitions" in refused(answer, 422)["detail"]


async def test_ray_accepts_ensembles_only(shop: Shop) -> None:
    answer = await shop.api.client.post(PATH, json=shop.body | {"engine": "ray"})
    assert "ensemble" in refused(answer, 422)["detail"]


async def test_a_key_for_other_models_may_not_train_this_model(shop: Shop) -> None:
    async with shop.api.with_key(await shop.api.key("batch", models=["flag"])) as client:
        assert "learned" in refused(await client.post(PATH, json=shop.body), 403)["detail"]


async def test_a_training_needs_the_scope_publish(shop: Shop) -> None:
    weekly = {"name": "weekly", "job": shop.body, "every_s": 604800, "start_in_s": 3600}
    async with shop.api.with_key(await shop.api.key("batch")) as client:
        for path, body in ((PATH, shop.body), ("/v1/schedules", weekly)):
            assert "lacks the scope publish" in refused(await client.post(path, json=body), 403)["detail"]
        made = await shop.api.client.post("/v1/schedules", json=weekly)
        assert made.status_code == 201, made.text
        refused(await client.post("/v1/schedules/weekly/run"), 403)
        refused(await client.patch("/v1/schedules/weekly", json={"start_in_s": 0}), 403)
        location = (await shop.api.client.post(PATH, json=shop.body)).headers["location"]
        assert (await client.post(f"{location}/cancel")).status_code == 200
        refused(await client.post(f"{location}/resume"), 403)
    async with shop.api.with_key(await shop.api.key("batch", "publish")) as client:
        assert (await client.post(PATH, json=shop.body)).status_code == 202
