"""HTTP routes of schedules, and the scheduler.

No test waits until a run is due: runs are due at once, or the test moves their times into the past.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from registry import db, versions
from registry.jobs import jobs, schedules
from registry.jobs.recurrence import Recurrence
from registry.jobs.schedules import NewSchedule
from registry.jobs.tables import JobRow, ScheduleRow
from registry.vocabulary import ARCHIVED, READY, SCORE
from service.config import Settings
from service.submit import job_kinds
from service.worker import scheduler
from service.worker.maintenance import PeriodicThread
from tests.service.api import Api, check_problem, running_app

pytestmark = pytest.mark.anyio
PATH = "/v1/schedules"
WEEK = 7 * 86400
RECORD = {
    "name",
    "job",
    "cron",
    "every_s",
    "timezone",
    "start_at",
    "catch_up",
    "overlap",
    "paused",
    "next_at",
    "last_run",
    "created_at",
    "created_by",
    "edits",
}


class ScheduleBench(NamedTuple):
    """An application without a worker, and its batch root."""

    api: Api
    root: Path

    @property
    def job(self) -> dict[str, Any]:
        return {"kind": "score", "model": "flag", "input": {"uri": f"{self.root}/rows.csv"}}

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"name": "weekly", "job": self.job, "every_s": WEEK, **fields}

    async def create(self, **fields: Any) -> dict[str, Any]:
        answer = await self.api.client.post(PATH, json=self.body(**fields))
        assert answer.status_code == 201, answer.text
        record: dict[str, Any] = answer.json()
        return record

    async def get(self, name: str = "weekly") -> dict[str, Any]:
        record: dict[str, Any] = (await self.api.client.get(f"{PATH}/{name}")).json()
        return record

    async def runs(self, name: str = "weekly") -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = (await self.api.client.get(f"{PATH}/{name}/runs")).json()["items"]
        return runs

    def step(self) -> int:
        """Run one step of the scheduler."""
        return scheduler.step(
            self.api.services.sessions, job_kinds.scheduled_job_starter(self.api.services.store)
        )

    def move_back(self, by: timedelta) -> None:
        """Move the start and the next run of every schedule into the past."""
        with self.api.services.sessions.begin() as session:
            for row in session.query(ScheduleRow):
                row.start_at -= by
                row.next_at = None if row.next_at is None else row.next_at - by


@pytest.fixture(scope="module")
async def served(
    anyio_backend: str, published_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ScheduleBench]:
    folder = tmp_path_factory.mktemp("schedules")
    home, root = shutil.copytree(published_home, folder / "home"), folder / "data"
    root.mkdir()
    async with running_app(Settings(home=home, batch_roots=str(root))) as api:
        yield ScheduleBench(api, root)


@pytest.fixture
def batch(served: ScheduleBench) -> ScheduleBench:
    """Delete all schedules and jobs before the test."""
    with served.api.services.sessions.begin() as session:
        for table in (ScheduleRow, JobRow):
            session.execute(delete(table))
    return served


async def test_a_created_schedule_is_returned_at_its_location(batch: ScheduleBench) -> None:
    answer = await batch.api.client.post(PATH, json=batch.body(cron="0 3 * * MON", every_s=None))
    assert answer.status_code == 201, answer.text
    warnings = answer.json()["warnings"]
    assert warnings == [f"no file or directory exists at {batch.root}/rows.csv; each run checks again"]
    record = {k: v for k, v in answer.json().items() if k != "warnings"}
    assert set(record) == RECORD
    assert answer.headers["location"] == f"{PATH}/weekly"
    assert (await batch.api.client.get(f"{PATH}/weekly")).json() == record
    assert (record["name"], record["cron"], record["every_s"]) == ("weekly", "0 3 * * MON", None)
    assert (record["timezone"], record["last_run"], record["created_by"]) == ("UTC", None, "admin")
    assert [record[k] for k in ("catch_up", "overlap", "paused")] == [False] * 3
    assert {k: record["job"][k] for k in batch.job} == batch.job | {
        "input": {"artifact": None, "media_type": None, "file_name": None, **batch.job["input"]}
    }
    assert record["job"]["alias"] is None  # each run resolves the default alias
    assert datetime.fromisoformat(record["next_at"]).strftime("%a %H:%M") == "Mon 03:00"


async def test_a_weekly_schedule_can_start_in_five_seconds(batch: ScheduleBench) -> None:
    record = await batch.create(start_in_s=5)
    created, first = (datetime.fromisoformat(record[k]) for k in ("created_at", "next_at"))
    assert first - created == timedelta(seconds=5)
    assert batch.step() == 0
    batch.move_back(timedelta(seconds=5))
    assert batch.step() == 1
    assert batch.step() == 0
    (run,) = await batch.runs()
    job = (await batch.api.client.get(f"/v1/jobs/{run['job']}")).json()
    assert (run["outcome"], job["schedule"], job["model"], job["version"]) == ("started", "weekly", "flag", 1)
    record = await batch.get()
    last = {"at": run["at"], "job": run["job"], "job_state": job["state"], "outcome": "started"}
    last["then_state"] = None
    assert (record["last_run"], run["job_state"]) == (last, job["state"])
    assert datetime.fromisoformat(record["next_at"]) == created + timedelta(days=7)


async def test_each_run_resolves_the_alias_again(batch: ScheduleBench) -> None:
    await batch.create(overlap=True, every_s=5, start_in_s=0)
    await batch.api.promote("flag", 2)
    try:
        batch.step()
        (run,) = await batch.runs()
        assert (await batch.api.client.get(f"/v1/jobs/{run['job']}")).json()["version"] == 2
    finally:
        await batch.api.promote("flag", 1)


async def test_a_schedule_can_start_trainings(batch: ScheduleBench) -> None:
    api = batch.api
    estimator = {"artifact": await api.upload(b"an estimator")}
    rows = {"artifact": await api.upload(b"x,y\n1,2\n"), "media_type": "text/csv"}
    train = {"kind": "train", "estimator": estimator, "input": rows, "target": "y", "strategy": "single"}
    train |= {"publish": {"name": "learned"}, "then": {"kind": "score", "input": batch.job["input"]}}
    record = await batch.create(job=train, start_in_s=0)
    assert (record["job"]["kind"], record["job"]["publish"]["name"]) == ("train", "learned")
    batch.step()
    (run,) = await batch.runs()
    with db.reading(api.services.sessions) as session:
        job = jobs.get(session, run["job"])
    assert (job.kind, job.model, job.schedule) == ("train", "learned", "weekly")
    with api.services.sessions.begin() as session:  # like a training at its end
        then = jobs.NewJob(kind=SCORE, spec={}, model="learned", parent_id=run["job"])
        jobs.end(session, jobs.create(session, then, by="tests"), jobs.FAILED, "why")
    (run,) = await batch.runs()
    assert (run["job_state"], run["then_state"]) == ("queued", "failed")
    assert (await batch.get())["last_run"]["then_state"] == "failed"
    assert record["warnings"] == [
        f"no file or directory exists at {batch.root}/rows.csv; each run checks again"
    ]
    outside_roots = {"then": {"kind": "score", "input": {"uri": "/etc/passwd"}}}
    not_uploaded = {"estimator": {"artifact": "0" * 64}}
    for invalid, field in [(outside_roots, "job.then.input.uri"), (not_uploaded, "job.estimator.artifact")]:
        problem = check_problem(await api.client.patch(f"{PATH}/weekly", json={"job": train | invalid}), 422)
        assert [e["field"] for e in problem["errors"]] == [field]
    async with api.with_key(await api.key("batch", models=["flag"])) as client:
        assert "learned" in check_problem(await client.get(f"{PATH}/weekly"), 403)["detail"]


async def test_a_run_without_its_alias_is_in_the_history_with_the_reason(batch: ScheduleBench) -> None:
    await batch.api.client.put("/v1/models/flag/aliases/nightly", json={"version": 2})
    await batch.create(start_in_s=0, job=batch.job | {"alias": "nightly"})
    await batch.api.client.delete("/v1/models/flag/aliases/nightly")
    batch.step()
    (run,) = await batch.runs()
    assert (run["outcome"], run["job"]) == ("failed", None)
    assert "nightly" in run["reason"]
    assert (await batch.get())["last_run"]["outcome"] == "failed"


async def test_an_unexpected_error_fails_one_run_only(batch: ScheduleBench) -> None:
    await batch.create(start_in_s=0)
    await batch.create(name="other", start_in_s=0)

    def start(session: Session, schedule: ScheduleRow) -> JobRow:
        if schedule.name == "other":
            raise ZeroDivisionError("by zero")
        return job_kinds.scheduled_job_starter(batch.api.services.store)(session, schedule)

    assert scheduler.step(batch.api.services.sessions, start) == 2
    assert [r["outcome"] for r in await batch.runs()] == ["started"]
    assert [r["reason"] for r in await batch.runs("other")] == ["ZeroDivisionError: by zero"]


async def test_the_input_of_a_schedule_may_be_missing(batch: ScheduleBench) -> None:
    assert not (batch.root / "rows.csv").exists()
    await batch.create(start_in_s=0)
    batch.step()
    assert [r["outcome"] for r in await batch.runs()] == ["started"]  # planning is retried


@pytest.mark.parametrize(
    "form", [{}, {"media_type": "text/csv"}], ids=["media type by suffix", "media type in the body"]
)
async def test_the_directory_of_an_input_may_be_empty(batch: ScheduleBench, form: dict[str, str]) -> None:
    (batch.root / "weekly").mkdir(exist_ok=True)
    place = {"uri": f"{batch.root}/weekly", **form}
    record = await batch.create(job=batch.job | {"input": place})
    (warning,) = record["warnings"]
    assert ("contains no files" if form else "is empty") in warning


async def test_an_existing_input_is_examined_when_the_schedule_is_created(batch: ScheduleBench) -> None:
    names = [
        i["name"]
        for i in (await batch.api.client.get("/v1/models/flag/versions/1")).json()["signature"]["inputs"]
    ]
    complete_file, incomplete_file = batch.root / "good.csv", batch.root / "bad.csv"
    complete_file.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    incomplete_file.write_text("other\n1\n")
    job = batch.job | {"input": {"uri": str(incomplete_file)}}
    problem = check_problem(await batch.api.client.post(PATH, json=batch.body(job=job)), 422)
    assert {e["field"] for e in problem["errors"]} == set(names)  # names of columns, not fields of the body
    missing_column = batch.job | {"input": {"uri": str(complete_file)}, "id_column": "missing"}
    problem = check_problem(await batch.api.client.post(PATH, json=batch.body(job=missing_column)), 422)
    assert [e["field"] for e in problem["errors"]] == ["job.id_column"]
    assert (await batch.api.client.get(PATH)).json()["items"] == []

    record = await batch.create(job=batch.job | {"input": {"uri": str(complete_file)}})
    assert record["warnings"] == []
    check_problem(await batch.api.client.patch(f"{PATH}/weekly", json={"job": job}), 422)
    assert (await batch.get())["job"] == record["job"]


async def test_missed_runs_are_skipped_or_caught_up(batch: ScheduleBench) -> None:
    await batch.create(name="skips", every_s=3600)
    await batch.create(name="makes-up", every_s=3600, catch_up=True, overlap=True)
    batch.move_back(timedelta(hours=3.5))
    batch.step()
    (skipped,) = await batch.runs("skips")
    assert (skipped["outcome"], skipped["job"]) == ("skipped", None)
    assert "3 runs were missed" in skipped["reason"]
    assert [r["outcome"] for r in await batch.runs("makes-up")] == ["started"] * 3
    for name in ("skips", "makes-up"):
        assert datetime.fromisoformat((await batch.get(name))["next_at"]) > datetime.now(UTC)


async def test_runs_overlap_only_if_allowed(batch: ScheduleBench) -> None:
    record = await batch.create(paused=True)
    assert (record["paused"], record["next_at"]) == (True, None)
    first = await batch.api.client.post(f"{PATH}/weekly/run")
    assert first.status_code == 202
    assert first.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    assert (first.json()["state"], first.json()["schedule"]) == ("queued", "weekly")
    problem = check_problem(await batch.api.client.post(f"{PATH}/weekly/run"), 409)
    assert f"job {first.json()['id']}" in problem["detail"]
    assert (await batch.api.client.patch(f"{PATH}/weekly", json={"overlap": True})).status_code == 200
    assert (await batch.api.client.post(f"{PATH}/weekly/run")).status_code == 202
    assert [r["reason"] for r in await batch.runs()] == ["requested by admin"] * 2


async def test_a_repeated_request_with_the_same_key_takes_effect_once(batch: ScheduleBench) -> None:
    headers = {"Idempotency-Key": "schedules-once"}
    answers = [await batch.api.client.post(PATH, json=batch.body(), headers=headers) for _ in range(2)]
    assert {(a.status_code, a.text) for a in answers} == {(201, answers[0].text)}
    check_problem(await batch.api.client.post(PATH, json=batch.body(every_s=60), headers=headers), 422)
    check_problem(await batch.api.client.post(PATH, json=batch.body()), 409)
    headers = {"Idempotency-Key": "run-once"}
    answers = [await batch.api.client.post(f"{PATH}/weekly/run", headers=headers) for _ in range(2)]
    assert {(a.status_code, a.json()["id"]) for a in answers} == {(202, answers[0].json()["id"])}
    assert len(await batch.runs()) == 1


async def test_a_schedule_is_edited_paused_resumed_and_deleted(batch: ScheduleBench) -> None:
    created = await batch.create(start_in_s=60)
    client = batch.api.client
    paused = (await client.patch(f"{PATH}/weekly", json={"paused": True})).json()
    assert (paused["paused"], paused["next_at"]) == (True, None)
    assert [(e["by"], e["fields"]) for e in paused["edits"]] == [("admin", ["paused"])]
    batch.move_back(timedelta(days=8))
    assert batch.step() == 0
    resumed = (await client.patch(f"{PATH}/weekly", json={"paused": False})).json()
    assert resumed["next_at"] > created["next_at"][:10]
    assert batch.step() == 0  # runs due during the pause do not count as missed
    job = batch.job | {"version": 2}
    changed = (
        await client.patch(f"{PATH}/weekly", json={"cron": "0 3 * * *", "every_s": None, "job": job})
    ).json()
    assert (changed["cron"], changed["every_s"], changed["job"]["version"]) == ("0 3 * * *", None, 2)
    assert len(changed["warnings"]) == 1
    unchanged = changed | {"warnings": []}  # the input was not examined
    assert (await client.patch(f"{PATH}/weekly", json={})).json() == unchanged
    assert (await client.delete(f"{PATH}/weekly")).status_code == 204
    for call in (
        client.get(f"{PATH}/weekly"),
        client.patch(f"{PATH}/weekly", json={"paused": True}),
        client.delete(f"{PATH}/weekly"),
        client.post(f"{PATH}/weekly/run"),
        client.get(f"{PATH}/weekly/runs"),
    ):
        assert "weekly" in check_problem(await call, 404)["detail"]


async def test_schedules_and_runs_are_listed_page_by_page(batch: ScheduleBench) -> None:
    for name in ("b", "a", "c"):
        await batch.create(name=name, overlap=True)
    client = batch.api.client
    first = await client.get(f"{PATH}?page_size=2")
    assert 'rel="next"' in first.headers["link"]
    rest = await client.get(PATH, params={"page_token": first.json()["next_page_token"]})
    assert [s["name"] for s in first.json()["items"] + rest.json()["items"]] == ["a", "b", "c"]
    ids = [(await client.post(f"{PATH}/a/run")).json()["id"] for _ in range(3)]
    newest = (await client.get(f"{PATH}/a/runs?page_size=2")).json()
    second_page = await client.get(f"{PATH}/a/runs", params={"page_token": newest["next_page_token"]})
    assert [r["job"] for r in newest["items"] + second_page.json()["items"]] == ids[::-1]
    fields = {"id", "schedule", "due_at", "at", "outcome", "reason", "job", "job_state", "then_state"}
    assert set(newest["items"][0]) == fields


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"every_s": None}, "cron"),
        ({"cron": "* * * * *"}, "cron"),
        ({"every_s": None, "cron": "every monday"}, "cron"),
        ({"every_s": None, "cron": "0 0 30 2 *"}, "cron"),
        ({"every_s": 0.5}, "every_s"),
        ({"every_s": "5"}, "every_s"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"start_in_s": -1}, "start_in_s"),
        ({"start_in_s": 5, "start_at": "2027-01-01T00:00:00Z"}, "start_at"),
        ({"start_at": "soon"}, "start_at"),
        ({"start_at": 1800000000}, "start_at"),
        ({"start_at": "9999-12-31T00:00:00Z"}, "start_at"),
        ({"catch_up": "yes"}, "catch_up"),
        ({"retries": 3}, "retries"),
        ({"job": None}, "job"),
        ({"job": {}}, "job.kind"),
        ({"job": {"kind": "guess"}}, "job.kind"),
        ({"job": {"kind": "score"}}, "job.model"),
        ({"job": {"kind": "train"}}, "job.target"),
        ({"job.kind": "train"}, "job.model"),
        ({"job.passthrough": [1]}, "job.passthrough.0"),
        ({"job.dry_run": True}, "job"),
        ({"job.version": 1, "job.alias": "champion"}, "job"),
        ({"job.input": {"uri": "/etc/passwd"}}, "job.input.uri"),
        ({"job.input": {"uri": "rows.csv"}}, "job.input.uri"),
        ({"job.input": {"artifact": "0" * 64, "media_type": "text/csv"}}, "job.input.artifact"),
        ({"job.id_column": "label"}, "job.id_column"),
    ],
    ids=str,
)
async def test_an_invalid_schedule_is_rejected_naming_the_field(
    batch: ScheduleBench, changes: dict[str, Any], field: str
) -> None:
    body = batch.body()
    for name, value in changes.items():
        if name.startswith("job."):
            body["job"] = body["job"] | {name.removeprefix("job."): value}
        else:
            body[name] = value
    problem = check_problem(await batch.api.client.post(PATH, json=body), 422)
    assert field in {e["field"] for e in problem["errors"]}, problem
    assert (await batch.api.client.get(PATH)).json()["items"] == []


async def test_an_edit_is_checked_like_a_new_schedule(batch: ScheduleBench) -> None:
    created = await batch.create()
    for changes, status in [
        ({"name": "other"}, 422),
        ({"cron": "x"}, 422),
        ({"timezone": "Mars/Olympus"}, 422),
        ({"job": batch.job | {"input": {"uri": "/etc/passwd"}}}, 422),
        ({"job": batch.job | {"model": "missing"}}, 404),
        ({"job": batch.job | {"alias": "missing"}}, 404),
        ({"job": batch.job | {"version": 99}}, 404),
    ]:
        check_problem(await batch.api.client.patch(f"{PATH}/weekly", json=changes), status)
    assert await batch.get() | {"warnings": created["warnings"]} == created


async def test_a_key_for_some_models_accesses_only_their_schedules(batch: ScheduleBench) -> None:
    await batch.create()
    await batch.create(name="other", job=batch.job | {"model": "forest"})
    async with batch.api.with_key(await batch.api.key("batch", models=["forest"])) as client:
        assert [s["name"] for s in (await client.get(PATH)).json()["items"]] == ["other"]
        assert (await client.get(f"{PATH}/other")).status_code == 200
        for call in (
            client.get(f"{PATH}/weekly"),
            client.get(f"{PATH}/weekly/runs"),
            client.post(f"{PATH}/weekly/run"),
            client.patch(f"{PATH}/weekly", json={"paused": True}),
            client.patch(f"{PATH}/other", json={"job": batch.job}),  # an edit must not access another model
            client.delete(f"{PATH}/weekly"),
            client.post(PATH, json=batch.body(name="mine")),
        ):
            assert "not for the model flag" in check_problem(await call, 403)["detail"]
        assert (await client.patch(f"{PATH}/other", json={"paused": True})).status_code == 200


async def test_a_schedule_that_gets_another_model_during_an_edit_is_not_edited(
    batch: ScheduleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key may access its model when the new job is examined, and not any more when the edit is stored."""
    await batch.create(name="moving")
    (batch.root / "rows.csv").write_text("x0,x1,x2\n1,2,3\n")
    examine = job_kinds.examine_scheduled

    def change_model(*arguments: Any) -> list[str]:
        with batch.api.services.sessions.begin() as session:
            session.get_one(ScheduleRow, "moving").job = batch.job | {"model": "forest", "engine": "local"}
        return examine(*arguments)

    monkeypatch.setattr(job_kinds, "examine_scheduled", change_model)
    async with batch.api.with_key(await batch.api.key("batch", models=["flag"])) as client:
        answer = await client.patch(f"{PATH}/moving", json={"job": batch.job, "paused": True})
    assert "not for the model forest" in check_problem(answer, 403)["detail"]
    record = await batch.get("moving")
    assert (record["job"]["model"], record["paused"], record["edits"]) == ("forest", False, [])


async def test_a_schedule_whose_version_is_archived_during_its_examination_is_not_created(
    batch: ScheduleBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch.root / "rows.csv").write_text("x0,x1,x2\n1,2,3\n")
    client, examine = batch.api.client, job_kinds.examine_scheduled

    def set_state(state: str) -> None:  # directly: other tests leave version 2 as a rollback target
        with batch.api.services.sessions.begin() as session:
            versions.get(session, "flag", 2).state = state

    def archive(*arguments: Any) -> list[str]:
        warnings = examine(*arguments)
        set_state(ARCHIVED)
        return warnings

    monkeypatch.setattr(job_kinds, "examine_scheduled", archive)
    try:
        body = batch.body(name="late", job=batch.job | {"version": 2})
        assert "flag:2 is archived" in check_problem(await client.post(PATH, json=body), 409)["detail"]
        check_problem(await client.get(f"{PATH}/late"), 404)
    finally:
        set_state(READY)


async def test_a_key_that_may_not_start_the_job_may_not_delete_its_schedule(batch: ScheduleBench) -> None:
    job = batch.job
    training = {
        "kind": "train",
        "estimator": {"artifact": "0" * 64},
        "input": job["input"],
        "target": "y",
        "strategy": "single",
        "publish": {"name": "trained"},
    }
    with batch.api.services.sessions.begin() as session:
        new = NewSchedule(name="retrain", job=training, recurrence=Recurrence(every_s=3600))
        schedules.create(session, new, by="ann")
    async with batch.api.with_key(await batch.api.key("batch")) as client:
        problem = check_problem(await client.delete(f"{PATH}/retrain"), 403)
    assert "lacks the scope publish" in problem["detail"]
    assert (await batch.api.client.delete(f"{PATH}/retrain")).status_code == 204


async def test_the_scheduler_thread_starts_runs_that_are_due(batch: ScheduleBench) -> None:
    services = batch.api.services
    start = job_kinds.scheduled_job_starter(services.store)
    thread = PeriodicThread("schedules", lambda: scheduler.step(services.sessions, start), scheduler.POLL_S)
    thread.start()
    try:
        await batch.create(start_in_s=0)
        deadline = datetime.now(UTC) + timedelta(seconds=30)
        while not (runs := await batch.runs()):
            assert datetime.now(UTC) < deadline
            await asyncio.sleep(0.02)
    finally:
        thread.stop()
    assert [r["outcome"] for r in runs] == ["started"]


async def test_a_run_starts_after_the_previous_one_has_ended(batch: ScheduleBench) -> None:
    await batch.create(every_s=3600, start_in_s=0)
    batch.step()
    batch.move_back(timedelta(hours=1))
    batch.step()
    started, skipped = (await batch.runs())[::-1]
    assert (started["outcome"], skipped["outcome"]) == ("started", "skipped")
    with batch.api.services.sessions.begin() as session:
        jobs.cancel(session, started["job"])
    batch.move_back(timedelta(hours=1))
    batch.step()
    assert (await batch.runs())[0]["outcome"] == "started"
    with db.reading(batch.api.services.sessions) as session:
        assert len(schedules.runs(session, "weekly").items) == 3


def test_the_scheduler_imports_no_web_framework() -> None:
    code = (
        "import sys, service.worker.scheduler;"
        "print([m for m in ('fastapi', 'starlette', 'uvicorn', 'httpx') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
