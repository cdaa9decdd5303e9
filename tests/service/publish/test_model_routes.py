"""Models and versions over HTTP: publish, read, edit, download and delete."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import sklearn

from registry import db
from registry.artifacts import Store
from service.builds import supervisor
from service.config import Settings
from tests.harness.models import pickle_model
from tests.registry import helpers
from tests.service.api import BUILD_S, Api, check_problem, running_app
from tests.service.estimators import sign_classifier
from tests.service.model_rows import copy_version

pytestmark = pytest.mark.anyio

FIELDS = {
    *("model", "version", "state", "runtime", "runtime_reason", "signature", "report", "aliases", "tags"),
    *("metrics", "artifact", "format", "lineage", "created_at", "created_by"),
}


async def test_a_published_version_is_built_and_then_predicts(api: Api, unique_name: str):
    body = await api.publication(sign_classifier())
    accepted = await api.client.post(f"/v1/models/{unique_name}/versions", json=body)
    assert accepted.status_code == 202
    assert accepted.headers["location"] == f"/v1/models/{unique_name}/versions/1"
    record = accepted.json()
    assert set(record) >= FIELDS
    assert (record["state"], record["version"], record["created_by"]) == ("building", 1, "admin")
    early_answer = await api.client.post(
        f"/v1/models/{unique_name}/versions/1/predict", json={"instances": []}
    )
    assert early_answer.status_code in (409, 422)  # still building, or already built
    ready = await api.wait_for_build(accepted.headers["location"])
    assert (ready["state"], ready["runtime"]) == ("ready", "onnx")
    assert [i["name"] for i in ready["signature"]["inputs"]] == ["x0", "x1", "x2"]
    assert ready["lineage"]
    assert ready["created_at"].endswith("Z")
    row = {"x0": 1.0, "x1": 0.0, "x2": 0.0}
    answer = await api.client.post(f"/v1/models/{unique_name}/versions/1/predict", json={"instances": [row]})
    assert answer.json()["predictions"][0]["label"] == "yes"
    check_problem(await api.predict(unique_name, row), 404)  # no champion yet


async def test_a_version_that_another_process_publishes_is_built_at_once(
    published_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_S", 2 * BUILD_S)
    settings = Settings(home=Path(shutil.copytree(published_home, tmp_path / "home")))
    engine = db.connect(settings.url)
    async with running_app(settings) as api:
        await asyncio.sleep(0.2)  # until the build thread waits
        await asyncio.to_thread(
            helpers.publish, db.sessions(engine), Store(settings.blobs), "foreign", content=b"no model"
        )
        record = await api.wait_for_build("/v1/models/foreign/versions/1")
    engine.dispose()
    assert record["state"] == "rejected"


async def test_the_alias_of_a_publication_moves_when_the_version_is_ready(api: Api, unique_name: str):
    record = await api.publish(unique_name, sign_classifier(), alias="champion")
    assert record["aliases"] == ["champion"]
    events = (await api.client.get(f"/v1/models/{unique_name}/aliases/champion/history")).json()["items"]
    assert [(m["version"], m["by"]) for m in events] == [(1, "admin")]


async def test_a_file_that_cannot_be_loaded_is_rejected_with_a_reason_and_never_served(
    api: Api, unique_name: str
):
    blob = await api.upload(b"this is not a pickle")
    body = {"artifact": blob, "format": "sklearn-joblib", "alias": "champion"}
    accepted = await api.client.post(f"/v1/models/{unique_name}/versions", json=body)
    record = await api.wait_for_build(accepted.headers["location"])
    assert record["state"] == "rejected"
    assert record["report"]["reason"]
    row = {"instances": [{"x0": 1.0}]}
    problem = check_problem(
        await api.client.post(f"/v1/models/{unique_name}/versions/1/predict", json=row), 409
    )
    assert "rejected" in problem["detail"]
    check_problem(await api.client.post(f"/v1/models/{unique_name}/predict", json=row), 404)
    check_problem(
        await api.client.put(f"/v1/models/{unique_name}/aliases/champion", json={"version": 1}), 409
    )
    check_problem(
        await api.client.patch(f"/v1/models/{unique_name}/versions/1", json={"archived": True}), 409
    )


async def test_the_record_has_the_library_versions_and_their_sources(api: Api, unique_name: str):
    environment = {"scikit-learn": sklearn.__version__, "numpy": "2.4.0", "python": "3.11.7"}
    record = await api.publish(
        unique_name, sign_classifier(), made_by={"python": "3.12.1"}, published_from=environment
    )
    assert record["lineage"]["made_by"] == {
        "scikit-learn": {"version": sklearn.__version__, "said_by": "file"},
        "numpy": {"version": "2.4.0", "said_by": "environment"},
        "python": {"version": "3.12.1", "said_by": "publisher"},
    }
    assert record["lineage"]["published_from"] == environment
    assert record["lineage"]["built_by"]["scikit-learn"] == sklearn.__version__
    assert (record["created_by"], record["created_at"][:2]) == ("admin", "20")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"artifact": "0" * 64}, "artifact"),
        ({"artifact": "nonsense"}, "artifact"),
        ({"format": "pickle"}, "format"),
        ({"alias": "No"}, "alias"),
        ({"example": {"artifact": "0" * 64, "media_type": "text/csv"}}, "example.artifact"),
        ({"example": {"artifact": "0" * 64, "media_type": "text/html"}}, "example.media_type"),
        ({"example": {}}, "example.artifact"),
        ({"tags": {"": "x"}}, "tags"),
        ({"tags": {"a": 1}}, "tags.a"),
        ({"tags": ["a"]}, "tags"),
        ({"metrics": {"auc": "high"}}, "metrics.auc"),
        ({"metrics": {"auc": None}}, "metrics.auc"),
        ({"description": 5}, "description"),
        ({"target": 5}, "target"),
        ({"version": 3}, "version"),
        ({"made_by": {"python": 3.11}}, "made_by.python"),
        ({"made_by": {"numpy": "the newest"}}, "made_by.numpy"),
        ({"made_by": {"pandas": "3.0.0"}}, "made_by.pandas"),
        ({"published_from": {"numpy": ""}}, "published_from.numpy"),
        ({"published_from": "3.11.7"}, "published_from"),
    ],
    ids=str,
)
async def test_an_invalid_publication_is_rejected_with_its_field(
    api: Api, change: dict[str, Any], field: str
):
    body = {
        "artifact": await api.upload(pickle_model(sign_classifier().model)),
        "format": "sklearn-joblib",
    } | change
    problem = check_problem(await api.client.post("/v1/models/wrong/versions", json=body), 422)
    assert any((e["field"] or "").startswith(field) for e in problem["errors"])
    check_problem(await api.client.get("/v1/models/wrong"), 404)


async def test_the_downloaded_artifact_is_identical_to_the_upload(api: Api):
    content = pickle_model(sign_classifier().model)
    record = (await api.client.get("/v1/models/flag/versions/1")).json()
    answer = await api.client.get("/v1/models/flag/versions/1/artifact")
    assert answer.content == content
    assert record["artifact"] == await api.upload(content)
    assert "flag-1.joblib" in answer.headers["content-disposition"]
    assert answer.headers["content-type"] == "application/octet-stream"


async def test_only_tags_description_and_archived_can_be_edited(api: Api, unique_name: str):
    await api.publish(
        unique_name, sign_classifier(), tags={"team": "risk", "stage": "dev"}, description="first"
    )
    url = f"/v1/models/{unique_name}/versions/1"
    record = (await api.client.patch(url, json={"tags": {"team": "fraud"}})).json()
    assert (record["tags"], record["description"]) == ({"team": "fraud"}, "first")
    record = (await api.client.patch(url, json={"description": "second"})).json()
    assert (record["tags"], record["description"]) == ({"team": "fraud"}, "second")
    assert (await api.client.patch(url, json={"archived": True})).json()["state"] == "archived"
    check_problem(
        await api.client.put(f"/v1/models/{unique_name}/aliases/champion", json={"version": 1}), 409
    )
    assert (await api.client.patch(url, json={"archived": False})).json()["state"] == "ready"
    assert (await api.client.patch(url, json={})).json()["state"] == "ready"
    for invalid in ({"state": "ready"}, {"artifact": "0" * 64}, {"archived": "yes"}, {"tags": "a"}):
        check_problem(await api.client.patch(url, json=invalid), 422)
    check_problem(await api.client.patch(f"/v1/models/{unique_name}/versions/9", json={}), 404)


async def test_a_refused_delete_names_the_alias_or_rollback_that_needs_the_version(
    api: Api, unique_name: str
):
    for _ in range(3):
        copy_version(api.settings.home, "flag", unique_name)
    api.services.snapshot.refresh()
    await api.promote(unique_name, 1)
    await api.promote(unique_name, 2)
    url, delete = f"/v1/models/{unique_name}", api.client.delete
    assert f"{unique_name}:2 is champion" in check_problem(await delete(f"{url}/versions/2"), 409)["detail"]
    assert "rollback target of champion" in check_problem(await delete(f"{url}/versions/1"), 409)["detail"]
    archive = await api.client.patch(f"/v1/models/{unique_name}/versions/2", json={"archived": True})
    assert "champion" in check_problem(archive, 409)["detail"]
    assert "champion" in check_problem(await delete(f"{url}"), 409)["detail"]
    assert (await delete(f"{url}/versions/3")).status_code == 204
    check_problem(await api.client.get(f"/v1/models/{unique_name}/versions/3"), 404)
    check_problem(await delete(f"{url}/versions/3"), 404)
    assert (await api.publish(unique_name, sign_classifier()))["version"] == 4  # 3 is not reused
    assert (await delete(f"{url}/aliases/champion")).status_code == 204
    assert (await delete(f"{url}")).status_code == 204
    check_problem(await api.client.get(f"/v1/models/{unique_name}"), 404)
    check_problem(await api.client.get(f"/v1/models/{unique_name}/versions"), 404)
    check_problem(await delete(f"{url}"), 404)


async def test_a_models_record_summarizes_its_versions_and_aliases(api: Api):
    record = (await api.client.get("/v1/models/flag")).json()
    assert record["name"] == "flag"
    assert (record["versions"], record["latest_version"], record["champion"]) == (2, 2, 1)
    assert record["aliases"]["champion"] == 1
