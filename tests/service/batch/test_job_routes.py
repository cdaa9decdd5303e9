"""HTTP routes of scoring jobs, with a worker that runs only when a test calls it."""

from __future__ import annotations

import asyncio
import csv
import dataclasses
import hashlib
import json
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from registry import keys, versions
from registry.jobs import jobs
from registry.jobs.jobs import NewJob
from registry.tables import IdempotencyRow, now
from registry.vocabulary import TRAIN
from service.batch import job_routes
from service.submit.score_admission import ScoreAdmission
from service.web.idempotency import RETENTION
from tests.service.api import check_problem
from tests.service.worker.scorings import CSV, Scorings, scoring

pytestmark = pytest.mark.anyio

ROWS = ("7,1,0,0", "8,-1,0,0", "9,2,0,0")  # x0 above zero is yes
LABELS = ["7,yes", "8,no", "9,yes"]


@pytest.fixture(scope="module")
async def scorings(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scorings]:
    folder = tmp_path_factory.mktemp("jobs")
    home = shutil.copytree(published_home, folder / "home")
    async with scoring(home, folder / "data") as scorings:
        yield scorings


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Return a name for files of this test in the shared batch root."""
    return tmp_path.name


def labels(text: str) -> list[str]:
    """Return `id,label` of each row of a CSV output."""
    return [",".join(line.replace('"', "").split(",")[:2]) for line in text.splitlines()[1:]]


async def plan_three_parts(scorings: Scorings, name: str, **fields: Any) -> str:
    """Start and plan a job over three files; return its address."""
    for number, row in enumerate(ROWS):
        scorings.write(f"{name}/{number}.csv", row)
    location = await scorings.start(scorings.data / name, **fields)
    await scorings.work()
    return location


async def test_a_finished_job_has_an_output(scorings: Scorings, name: str) -> None:
    answer = await scorings.post(scorings.write(f"{name}.csv", *ROWS))
    assert answer.status_code == 202
    accepted = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{accepted['id']}"
    assert (accepted["state"], accepted["version"], accepted["partitions"]) == ("queued", 1, [])
    assert accepted["spec"]["output"] == {"media_type": CSV}
    record = await scorings.finish(answer.headers["location"])
    assert record["state"] == "done", record["error"]
    assert (record["rows_total"], record["rows_done"], record["rows_failed"]) == (3, 3, 0)
    assert (record["partitions_total"], record["partitions_done"], record["attempts"]) == (1, 1, 1)
    assert (record["created_by"], record["kind"], record["engine"]) == ("admin", "score", "local")
    (part,) = record["partitions"]
    assert (part["state"], part["rows"], part["failed"], part["output"]) == ("done", 3, 0, None)
    assert record["manifest"]["rows"] == 3
    text = await scorings.text(record["output"])
    assert text.splitlines()[0].replace('"', "") == "id,label,probability.no,probability.yes"
    assert labels(text) == LABELS
    assert record["errors"] is None


async def test_a_bad_row_is_in_the_errors_file_and_not_in_the_output(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", ROWS[0], "8,odd,0,0", "9,,0,0", ROWS[2])
    record = await scorings.finish(await scorings.start(path))
    assert (record["state"], record["rows_done"], record["rows_failed"]) == ("done", 2, 2)
    assert labels(await scorings.text(record["output"])) == [LABELS[0], LABELS[2]]
    lines = (await scorings.text(record["errors"])).splitlines()
    assert lines[0] == "row,id,field,message,file,file_row"
    assert [line.split(",")[:3] for line in lines[1:]] == [["1", "8", "x0"], ["2", "9", "x0"]]


async def test_a_damaged_output_or_errors_file_is_refused(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", ROWS[0], "8,odd,0,0", ROWS[2])
    record = await scorings.finish(await scorings.start(path))
    store = scorings.api.services.store
    with scorings.api.services.sessions.begin() as session:
        job = jobs.get(session, record["id"])
        files = {record["output"]: job.output, record["errors"]: job.errors}
    for url, sha256 in files.items():
        assert sha256 is not None
        content = store.path(sha256).read_bytes()
        store.path(sha256).write_bytes(content[:-1])
        problem = check_problem(await scorings.api.client.get(url), 500)
        assert f"{sha256} is damaged: its {len(content) - 1} bytes" in problem["detail"]
        store.put([content])


async def test_the_errors_file_names_the_input_file_and_the_row_in_it(scorings: Scorings, name: str) -> None:
    for number, rows in enumerate([(ROWS[0], "8,odd,0,0"), (ROWS[1],), ("9,odd,0,0", ROWS[2], "7,odd,0,0")]):
        scorings.write(f"{name}/{number}.csv", *rows)
    record = await scorings.finish(await scorings.start(scorings.data / name))
    lines = csv.reader((await scorings.text(record["errors"])).splitlines()[1:])
    assert [(line[0], line[1], *line[4:]) for line in lines] == [
        ("1", "8", "0.csv", "1"),
        ("3", "9", "2.csv", "0"),
        ("5", "7", "2.csv", "2"),
    ]


async def test_an_uploaded_file_has_the_name_that_its_user_gave(scorings: Scorings) -> None:
    uploaded = await scorings.api.upload(b"id,x0,x1,x2\n1,0,0,0\n8,odd,0,0\n")
    location = {"artifact": uploaded, "media_type": CSV, "file_name": "/data/ann/new\norders.csv"}
    record = await scorings.finish(await scorings.start(Path(), input=location))
    (line,) = csv.reader((await scorings.text(record["errors"])).splitlines()[1:])
    assert (line[0], *line[4:]) == ("1", "new?orders.csv", "1")
    assert record["partitions"][0]["file"] == record["spec"]["input"]["file_name"] == "new?orders.csv"


async def test_messages_about_an_uploaded_file_have_its_name_and_not_its_digest(scorings: Scorings) -> None:
    uploaded = await scorings.api.upload(b"id,x0,x1,x1\n1,0,0,0\n")
    location: dict[str, Any] = {"artifact": uploaded, "media_type": CSV}
    for name, shown in ((None, "upload"), ("orders.csv", "orders.csv")):
        answer = await scorings.post(Path(), input=location | {"file_name": name})
        assert answer.status_code == 422
        assert answer.json()["detail"] == f'{shown!r} has the column "x1" more than once'
    answer = await scorings.post(Path(), input={"uri": str(scorings.data), "file_name": "orders.csv"})
    assert "file_name is for an artifact" in answer.text


@pytest.mark.parametrize(
    ("threshold", "state"), [(None, "done"), (0.5, "done"), (0.4, "failed"), (0, "failed")]
)
async def test_the_error_threshold_limits_the_share_of_failed_rows(
    scorings: Scorings, name: str, threshold: float | None, state: str
) -> None:
    path = scorings.write(f"{name}.csv", *ROWS[:2], "8,odd,0,0", "9,odd,0,0")
    record = await scorings.finish(await scorings.start(path, error_threshold=threshold))
    assert record["state"] == state
    if state == "failed":
        message = f"2 of 4 rows failed (50.00%), the threshold is {threshold:.2%}"
        assert record["error"] == message
    lines = (await scorings.text(record["errors"])).splitlines()[1:]  # also if the job failed
    assert [line.split(",")[:3] for line in lines] == [["2", "8", "x0"], ["3", "9", "x0"]]


async def test_a_job_fails_if_every_row_fails(scorings: Scorings, name: str) -> None:
    rows = [*["1,1,0,0"] * 100, *["2,odd,0,0"] * 3]  # the first hundred rows are checked before
    path = scorings.write(f"{name}.csv", *rows)
    location = await scorings.start(path)
    path.write_text(path.read_text().replace("1,1,0,0", "1,odd,0,0"))
    record = await scorings.finish(location)
    assert (record["state"], record["error"]) == (
        "failed", "each of the 103 rows failed; see the errors file for the reasons",
    )  # fmt: skip
    assert len((await scorings.text(record["errors"])).splitlines()) == 104


async def test_a_job_with_an_error_threshold_may_start_with_bad_rows(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", *["2,odd,0,0"] * 120, *["1,1,0,0"] * 80)
    problem = check_problem(await scorings.post(path), 422)
    assert "none of the first 100 rows can be scored" in problem["detail"]
    record = await scorings.finish(await scorings.start(path, error_threshold=0.7))
    assert (record["state"], record["rows_done"], record["rows_failed"]) == ("done", 80, 120)


async def test_scoring_ends_once_too_many_rows_have_failed(scorings: Scorings, name: str) -> None:
    import pandas as pd

    (scorings.data / name).mkdir()
    for number in range(4):  # Parquet files contain their number of rows
        x0 = [1.0, None if number == 1 else 1.0]
        frame = pd.DataFrame({"id": [1, 2], "x0": x0, "x1": [0.0, 0.0], "x2": [0.0, 0.0]})
        frame.to_parquet(scorings.data / name / f"{number}.parquet")
    location = await scorings.start(scorings.data / name, error_threshold=0.1)
    record = await scorings.finish(location)
    assert record["error"] == "partition score/2: 1 of 8 rows failed (12.50%), the threshold is 10.00%"
    assert [p["state"] for p in record["partitions"]] == ["done", "done", "failed", "cancelled"]
    lines = (await scorings.text(record["errors"])).splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == ["3"]


async def test_a_dry_run_checks_the_first_rows_and_enqueues_nothing(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", *ROWS, "10,odd,0,0")
    before = await scorings.get("/v1/jobs")
    answer = await scorings.post(path, dry_run=True)
    assert answer.status_code == 200
    report = answer.json()
    assert (report["model"], report["version"], report["columns"]) == ("flag", 1, ["id", "x0", "x1", "x2"])
    assert (report["rows_checked"], report["rows_failed"]) == (4, 1)
    assert report["warnings"][0].startswith("row 3: ")
    assert await scorings.get("/v1/jobs") == before


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "field", "message"),
    [
        ({"model": "missing"}, 404, None, "there is no model 'missing'"),
        ({"alias": "missing"}, 404, None, "there is no alias"),
        ({"version": 9}, 404, None, "there is no version 'flag:9'"),
        ({"version": 1, "alias": "champion"}, 422, None, "set version or alias, not both"),
        ({"input": {}}, 422, "input", "set either artifact or uri"),
        ({"input": {"uri": "/etc/passwd"}}, 422, "input.uri", "is outside the batch roots"),
        ({"input": {"uri": "https://127.0.0.1/x.csv"}}, 422, "input.uri", "input cannot be read from https"),
        ({"input": {"artifact": "0" * 64}}, 422, "input", "set media_type"),
        ({"input": {"artifact": "0" * 64, "media_type": CSV}}, 422, "input.artifact", "was not uploaded"),
        ({"model": "mixed"}, 422, "age", "is missing"),
        ({"id_column": "who"}, 422, "id_column", "has no column 'who'"),
        ({"passthrough": ["x0", "label"]}, 422, "passthrough", "already has a column 'label'"),
        ({"error_threshold": 1.5}, 422, "error_threshold", "error_threshold"),
        ({"max_attempts": 0}, 422, "max_attempts", "max_attempts"),
        ({"expires_in": 0}, 422, "expires_in", "expires_in"),
        ({"output": {"media_type": "text/html"}}, 422, "output.media_type", "not one of the allowed values"),
        ({"kind": "guess"}, 422, "kind", "send one of"),
        ({"sample": 0.1}, 422, "sample", "no such field"),
    ],
)
async def test_an_invalid_job_is_rejected_before_it_is_enqueued(
    scorings: Scorings, fields: dict[str, Any], status: int, field: str | None, message: str, dry_run: bool
) -> None:
    path = scorings.write("good.csv", *ROWS)
    before = await scorings.get("/v1/jobs")
    problem = check_problem(await scorings.post(path, **fields, dry_run=dry_run), status)
    assert message in json.dumps(problem, ensure_ascii=False)
    if field is not None:
        assert any(str(e["field"]).endswith(field) for e in problem["errors"]), problem["errors"]
    assert await scorings.get("/v1/jobs") == before


async def test_a_job_with_an_archived_version_is_rejected(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", *ROWS)
    place = "/v1/models/flag/versions/2"
    await scorings.api.client.patch(place, json={"archived": True})
    problem = check_problem(await scorings.post(path, version=2), 409)
    assert "flag:2 is archived" in problem["detail"]
    await scorings.api.client.patch(place, json={"archived": False})
    record = await scorings.finish(await scorings.start(path, version=2))
    assert labels(await scorings.text(record["output"])) == ["7,no", "8,yes", "9,no"]


async def test_an_uploaded_file_is_an_input(scorings: Scorings) -> None:
    content = ("id,x2,x1,x0\n" + "7,0,0,1\n8,0,0,-1\n").encode()  # columns in any order
    artifact = await scorings.api.upload(content)
    place = {"artifact": artifact, "media_type": CSV}
    record = await scorings.finish(await scorings.start(Path(), input=place))
    assert labels(await scorings.text(record["output"])) == LABELS[:2]


@pytest.mark.parametrize("media_type", ["application/x-ndjson", "application/vnd.apache.parquet"])
async def test_the_output_has_the_requested_media_type(
    scorings: Scorings, name: str, media_type: str
) -> None:
    path = scorings.write(f"{name}.csv", *ROWS)
    fields = {"output": {"media_type": media_type}, "passthrough": ["x1"]}
    record = await scorings.finish(await scorings.start(path, **fields))
    answer = await scorings.api.client.get(record["output"])
    assert answer.headers["content-type"] == media_type
    if media_type == "application/x-ndjson":
        rows = [json.loads(line) for line in answer.text.splitlines()]
    else:
        import io

        import pandas as pd

        rows = pd.read_parquet(io.BytesIO(answer.content)).to_dict("records")
    assert [list(r) for r in rows] == [["id", "x1", "label", "probability.no", "probability.yes"]] * 3
    assert [f"{r['id']},{r['label']}" for r in rows] == LABELS


async def test_moving_the_alias_does_not_change_an_accepted_job(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", *ROWS)
    await scorings.api.promote("flag", 1, "nightly")
    location = await scorings.start(path, alias="nightly")
    await scorings.api.promote("flag", 2, "nightly")
    record = await scorings.finish(location)
    await scorings.api.client.delete("/v1/models/flag/aliases/nightly")
    assert (record["state"], record["version"]) == ("done", 1)
    assert labels(await scorings.text(record["output"])) == LABELS


async def test_archiving_the_version_fails_its_job_until_it_is_unarchived(
    scorings: Scorings, name: str
) -> None:
    place = "/v1/models/flag/versions/2"
    location = await plan_three_parts(scorings, name, version=2)
    await scorings.work()
    check_problem(await scorings.api.client.delete(place), 409)
    await scorings.api.client.patch(place, json={"archived": True})
    record = await scorings.finish(location)
    reason = "flag:2 is archived; unarchive it (archived: false), then resume the job"
    assert (record["state"], record["error"]) == ("failed", f"partition score/1: {reason}")
    await scorings.api.client.patch(place, json={"archived": False})
    resumed = await scorings.api.client.post(f"{location}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (200, "queued")
    assert [p["state"] for p in resumed.json()["partitions"]] == ["done", "queued", "queued"]
    record = await scorings.finish(location)
    assert (record["state"], record["error"]) == ("done", None)
    assert labels(await scorings.text(record["output"])) == ["7,no", "8,yes", "9,no"]


async def test_an_input_that_changed_fails_its_job(scorings: Scorings, name: str) -> None:
    location = await plan_three_parts(scorings, name, max_attempts=2)
    await scorings.work()
    scorings.write(f"{name}/2.csv", "9,3,0,0", "10,1,0,0")
    record = await scorings.finish(location)
    reason = "the input file '2.csv' changed since the job was planned: it was written to; start a new job"
    assert (record["state"], record["error"]) == ("failed", f"partition score/2: {reason}")


async def test_a_missing_or_truncated_part_is_computed_again(scorings: Scorings, name: str) -> None:
    location = await plan_three_parts(scorings, name)
    await scorings.work(3)
    folder = scorings.api.settings.jobs_directory / location.rpartition("/")[2]
    first, second, _ = sorted(folder.iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:-3])
    record = await scorings.finish(location)
    assert (record["state"], [p["attempts"] for p in record["partitions"]]) == ("done", [1, 1, 1])
    assert labels(await scorings.text(record["output"])) == LABELS
    assert not folder.exists()


async def test_a_key_accesses_only_the_jobs_of_its_models(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", *ROWS)
    allowed, other = await scorings.start(path), await scorings.start(path, model="forest")
    async with scorings.api.with_key(await scorings.api.key("batch", models=["flag"])) as client:
        assert (await client.get(allowed)).status_code == 200
        listed = (await client.get("/v1/jobs")).json()["items"]
        assert {j["model"] for j in listed} == {"flag"}
        for method, address in (
            ("GET", other), ("POST", f"{other}/cancel"), ("POST", f"{other}/resume"),
            ("GET", f"{other}/events"), ("GET", f"{other}/output"), ("GET", f"{other}/errors"),
            ("GET", f"{other}/partitions/0/output"),
        ):  # fmt: skip
            check_problem(await client.request(method, address), 403)
        check_problem(await client.post("/v1/jobs", json=scorings.body(path, model="forest")), 403)
    async with scorings.api.with_key(await scorings.api.key("predict")) as client:
        check_problem(await client.get(allowed), 403)
        check_problem(await client.post("/v1/jobs", json=scorings.body(path)), 403)
    check_problem(await scorings.api.anonymous.get(allowed), 401)
    assert (await scorings.get(other))["state"] == "queued"
    for location in (allowed, other):
        await scorings.finish(location)


async def test_a_repeated_request_is_answered_although_input_and_version_are_gone(
    scorings: Scorings, name: str
) -> None:
    path = scorings.write(f"{name}.csv", *ROWS)
    key = {"Idempotency-Key": name}
    first = await scorings.post(path, key, version=2)
    assert first.status_code == 202
    await scorings.finish(first.headers["location"])
    path.unlink()
    await scorings.api.client.patch("/v1/models/flag/versions/2", json={"archived": True})
    again = await scorings.post(path, key, version=2)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["location"] == first.headers["location"]
    problem = check_problem(await scorings.post(path, key, version=1), 422)
    assert problem["errors"][0]["field"] == "Idempotency-Key"
    await scorings.api.client.patch("/v1/models/flag/versions/2", json={"archived": False})


async def test_a_rejected_request_may_be_sent_again_with_its_key(scorings: Scorings, name: str) -> None:
    path, key = scorings.data / f"{name}.csv", {"Idempotency-Key": name}
    check_problem(await scorings.post(path, key), 422)
    scorings.write(path.name, *ROWS)
    answer = await scorings.post(path, key)
    assert answer.status_code == 202
    await scorings.finish(answer.headers["location"])


async def test_events_contain_the_record_until_the_job_has_ended(scorings: Scorings, name: str) -> None:
    location = await scorings.start(scorings.write(f"{name}.csv", *ROWS))
    watch = asyncio.create_task(scorings.api.client.get(f"{location}/events"))
    services, number = scorings.api.services, int(location.rpartition("/")[2])
    key = next(k for k in services.snapshot.state.keys.values() if k.models is None)
    stream = job_routes._events(services, job_routes._read_record(services, number, key), number, key)
    assert '"state":"queued"' in await anext(stream)
    record = await scorings.finish(location)
    assert '"state":"done"' in await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    answer = await watch
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [e.split("\n") for e in answer.text.split("\n\n") if e and not e.startswith(":")]
    assert {lines[0] for lines in events} == {"event: job"}
    records = [json.loads(lines[1].removeprefix("data: ")) for lines in events]
    assert records[-1] == record
    again = await scorings.api.client.get(f"{location}/events")  # the job has ended
    assert again.text == f"event: job\ndata: {answer.text.rstrip().rpartition('data: ')[2]}\n\n"
    check_problem(await scorings.api.client.get("/v1/jobs/999999/events"), 404)


async def test_events_end_when_the_key_is_revoked_or_the_job_is_deleted(
    scorings: Scorings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_routes, "WATCH_S", 0.01)
    location = await scorings.start(scorings.write(f"{name}.csv", *ROWS))
    services, number = scorings.api.services, int(location.rpartition("/")[2])
    secret = await scorings.api.key("batch")
    key = services.snapshot.state.keys[secret.split("_")[1]]
    events = job_routes._events(services, job_routes._read_record(services, number, key), number, key)
    assert '"state":"queued"' in await anext(events)
    assert (await scorings.api.client.delete(f"/v1/keys/{key.id}")).status_code in (200, 204)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    admin = next(k for k in services.snapshot.state.keys.values() if k.models is None)
    first = job_routes._read_record(services, number, admin)
    events = job_routes._events(services, first, 999_999, admin)  # deleted before the second read
    await anext(events)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    await scorings.finish(location)


@pytest.mark.parametrize("change", ["rotated", "expired"])
async def test_events_end_when_the_key_is_rotated_or_has_expired(
    scorings: Scorings, name: str, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(job_routes, "WATCH_S", 0.0)
    services = scorings.api.services
    key_id = (await scorings.api.key("batch", expires_in=3600)).split("_")[1]
    key = services.snapshot.state.keys[key_id]
    with services.sessions.begin() as session:
        job_id = jobs.create(session, NewJob(kind="score", spec={}, model="flag"), by="ann").id
    record = job_routes._RecordText("running", "{}", 0.0)
    reads: list[int] = []

    def read(*_: object) -> job_routes._RecordText:
        reads.append(1)
        return job_routes._RecordText("running", f"{{{len(reads)}}}", 0.0)

    monkeypatch.setattr(job_routes, "_read_record", read)
    events = job_routes._events(services, record, job_id, key)
    assert [await anext(events) for _ in range(3)] == [
        f"event: job\ndata: {t}\n\n" for t in ("{}", "{1}", "{2}")
    ]
    if change == "rotated":
        assert (await scorings.api.client.post(f"/v1/keys/{key_id}/rotate")).status_code == 200
        assert key_id in services.snapshot.state.keys  # active, with another secret
    else:
        monkeypatch.setattr(keys, "now", lambda: key.expires_at)
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert len(reads) == 2  # no record is read for a key that is not valid any more


async def test_events_end_when_the_server_shuts_down(
    scorings: Scorings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_routes, "WATCH_S", 0.0)
    services = scorings.api.services
    key = next(k for k in services.snapshot.state.keys.values() if k.models is None)
    running = job_routes._RecordText("running", "{}", 0.0)
    stopping = dataclasses.replace(services, shutting_down=threading.Event())
    events = job_routes._events(stopping, running, 1, key)
    await anext(events)
    stopping.shutting_down.set()
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_version_that_is_archived_while_the_input_is_examined_is_not_accepted(
    scorings: Scorings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, examine = scorings.write(f"{name}.csv", *ROWS), ScoreAdmission.examine

    def archive(*arguments: Any) -> Any:
        report = examine(*arguments)
        with scorings.api.services.sessions.begin() as session:
            versions.edit(session, "flag", 2, archived=True)
        return report

    listed = await scorings.get("/v1/jobs")
    monkeypatch.setattr(ScoreAdmission, "examine", archive)
    try:
        problem = check_problem(await scorings.post(path, version=2, headers={"Idempotency-Key": name}), 409)
        assert problem["detail"] == "flag:2 is archived; only a ready version can score"
        assert await scorings.get("/v1/jobs") == listed
    finally:
        monkeypatch.undo()
        await scorings.api.client.patch("/v1/models/flag/versions/2", json={"archived": False})
    answer = await scorings.post(path, version=2, headers={"Idempotency-Key": name})
    assert answer.status_code == 202  # the refusal was not stored
    await scorings.api.client.post(f"{answer.headers['location']}/cancel")


async def test_a_repeated_request_whose_stored_answer_has_expired_starts_another_job(
    scorings: Scorings, name: str
) -> None:
    """The answer is found before the transaction, and deleted in it: the version is resolved there."""
    path = scorings.write(f"{name}.csv", *ROWS)
    first = await scorings.post(path, headers={"Idempotency-Key": name})
    with scorings.api.services.sessions.begin() as session:
        expired = now() - 2 * RETENTION
        session.execute(update(IdempotencyRow).where(IdempotencyRow.key == name).values(created_at=expired))
    second = await scorings.post(path, headers={"Idempotency-Key": name})
    assert second.status_code == 202, second.text
    assert second.json()["id"] > first.json()["id"]
    assert second.json()["version"] == first.json()["version"]
    for answer in (first, second):
        await scorings.api.client.post(f"{answer.headers['location']}/cancel")


async def test_the_output_supports_ranges_and_conditional_requests(scorings: Scorings, name: str) -> None:
    location = await scorings.start(scorings.write(f"{name}.csv", *ROWS, "10,odd,0,0"))
    client, output = scorings.api.client, f"{location}/output"
    for file_name in ("output", "errors"):
        problem = check_problem(await client.get(f"{location}/{file_name}"), 409)
        assert "is queued" in problem["detail"]
    record = await scorings.finish(location)
    complete = await client.get(output)
    job_id = record["id"]
    assert complete.headers["content-disposition"] == f'attachment; filename="flag-job-{job_id}.csv"'
    assert complete.headers["content-type"] == CSV
    assert complete.headers["accept-ranges"] == "bytes"
    etag = complete.headers["etag"]
    assert etag == f'"{record["manifest"]["sha256"]}"'
    part = await client.get(output, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, complete.content[5:10])
    tail = await client.get(output, headers={"Range": "bytes=7-", "If-Range": etag})
    assert (tail.status_code, tail.content) == (206, complete.content[7:])
    other_version = await client.get(output, headers={"Range": "bytes=7-", "If-Range": '"other"'})
    assert (other_version.status_code, other_version.content) == (200, complete.content)
    check_problem(await client.get(output, headers={"Range": "bytes=100000-"}), 416)
    same = await client.get(output, headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    head = await client.head(output)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(complete.content)))
    errors = await client.get(f"{location}/errors")
    assert errors.headers["content-disposition"] == f'attachment; filename="flag-job-{job_id}-errors.csv"'
    assert errors.text.splitlines()[1].startswith("3,10,x0,")
    assert (await client.head(f"{location}/errors")).status_code == 200
    job = await scorings.finish(await scorings.start(scorings.write(f"{name}-2.csv", *ROWS)))
    problem = check_problem(await client.get(f"/v1/jobs/{job['id']}/errors"), 404)
    assert "no row failed" in problem["detail"]


async def test_finished_partitions_of_a_cancelled_job_are_kept_and_can_be_downloaded(
    scorings: Scorings, name: str
) -> None:
    location = await plan_three_parts(scorings, name)
    await scorings.work()
    client = scorings.api.client
    cancelled = (await client.post(f"{location}/cancel")).json()
    assert (cancelled["state"], cancelled["eta_s"]) == ("cancelled", None)
    assert [p["state"] for p in cancelled["partitions"]] == ["done", "cancelled", "cancelled"]
    assert [p["output"] for p in cancelled["partitions"]] == [f"{location}/partitions/0/output", None, None]
    assert (await client.post(f"{location}/cancel")).json()["finished_at"] == cancelled["finished_at"]
    check_problem(await client.get(f"{location}/output"), 409)
    part = await client.get(f"{location}/partitions/0/output")
    assert (part.status_code, labels(part.text)) == (200, LABELS[:1])
    head = (await client.head(f"{location}/partitions/0/output")).headers
    sha256 = hashlib.sha256(part.content).hexdigest()
    assert (head["content-length"], head["etag"]) == (str(len(part.content)), f'"{sha256}"')
    tail = await client.get(f"{location}/partitions/0/output", headers={"Range": "bytes=3-"})
    assert (tail.status_code, tail.content) == (206, part.content[3:])
    for number in (1, 3):
        check_problem(await client.get(f"{location}/partitions/{number}/output"), 404)
    await scorings.work(2)  # no task is queued
    assert (await scorings.get(location))["partitions_done"] == 1

    assert (await client.post(f"{location}/resume")).json()["state"] == "queued"
    check_problem(await client.post(f"{location}/resume"), 409)
    record = await scorings.finish(location)
    assert labels(await scorings.text(record["output"])) == LABELS
    assert record["partitions"][0]["finished_at"] == cancelled["partitions"][0]["finished_at"]
    problem = check_problem(await client.get(f"{location}/partitions/0/output"), 404)
    assert f"the whole output is at {location}/output" in problem["detail"]
    conditional = await client.get(f"{location}/partitions/0/output", headers={"If-None-Match": "*"})
    check_problem(conditional, 404)
    for verb in ("cancel", "resume"):
        assert "is done" in check_problem(await client.post(f"{location}/{verb}"), 409)["detail"]


async def test_jobs_are_listed_newest_first_and_by_state_and_model(scorings: Scorings, name: str) -> None:
    path = scorings.write(f"{name}.csv", *ROWS)
    first, second = await scorings.start(path), await scorings.start(path, model="forest")
    await scorings.api.client.post(f"{first}/cancel")
    items = (await scorings.get("/v1/jobs?page_size=2"))["items"]
    assert [f"/v1/jobs/{j['id']}" for j in items] == [second, first]
    assert "partitions" not in items[0]
    (only,) = (await scorings.get("/v1/jobs?state=queued"))["items"]
    assert only["model"] == "forest"
    cancelled = (await scorings.get("/v1/jobs?state=cancelled&model=flag"))["items"]
    assert first in [f"/v1/jobs/{j['id']}" for j in cancelled]
    check_problem(await scorings.api.client.get("/v1/jobs?state=odd"), 422)
    await scorings.finish(second)


async def test_requests_for_missing_jobs_are_answered_with_404(scorings: Scorings) -> None:
    client = scorings.api.client
    for tail in ("", "/events", "/output", "/errors", "/partitions/0/output"):
        check_problem(await client.get(f"/v1/jobs/999999{tail}"), 404)
    for verb in ("cancel", "resume"):
        check_problem(await client.post(f"/v1/jobs/999999/{verb}"), 404)
    for job_id in ("0", "-1", "x", "1e3", "99999999999999999999"):
        check_problem(await client.get(f"/v1/jobs/{job_id}"), 422)


async def test_a_job_without_a_model_has_a_record(scorings: Scorings) -> None:
    with scorings.api.services.sessions.begin() as session:
        job = jobs.create(session, NewJob(kind=TRAIN, spec={}, model=None), by="ann")
        job_id = job.id
    record = await scorings.get(f"/v1/jobs/{job_id}")
    assert (record["model"], record["version"], record["rows_total"]) == (None, None, None)
    limited_key = await scorings.api.key("batch", models=["flag"])
    async with scorings.api.with_key(limited_key) as client:
        assert "names none" in check_problem(await client.get(f"/v1/jobs/{job_id}"), 403)["detail"]
    await scorings.api.client.post(f"/v1/jobs/{job_id}/cancel")
