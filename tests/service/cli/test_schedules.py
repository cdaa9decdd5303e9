"""`trivium schedules` against a real server and its real worker."""

from __future__ import annotations

import io
import time

import msgspec
import pandas as pd
import pytest
import typer

from service.cli.options import parse_span


@pytest.fixture
def champion(live, published):
    assert live("promote", f"{published}:1").code == 0
    return published


@pytest.fixture
def data(server, files, request):
    file = server.root / f"{request.node.name[:60]}.csv"
    file.write_bytes(files.example.read_bytes())
    return file


@pytest.fixture
def weekly(live, champion, data):
    """The arguments that create a schedule for this test."""
    return ("schedules", "create", champion, "--model", champion, "--data", data, "--every", "1w")


def test_a_weekly_schedule_starts_its_first_run_after_start_in(live, weekly, champion, data):
    created = live(*weekly, "--start-in", "1s", "--out", "csv", "--passthrough", "age", "--json")
    assert created.code == 0, created.err
    assert (created.record["every_s"], created.record["job"]["input"]["uri"]) == (604800, data.as_uri())
    deadline = time.monotonic() + 60
    while not (runs := live("schedules", "history", champion, "--json").record["items"]):
        assert time.monotonic() < deadline
    assert [r["outcome"] for r in runs] == ["started"]
    number = runs[0]["job"]
    assert live("jobs", "watch", number).code == 0
    scores = pd.read_csv(io.StringIO(live("jobs", "output", number).out))
    assert list(scores.columns) == ["age", "label", "probability.no", "probability.yes"]
    assert scores["age"].tolist() == pd.read_csv(data)["age"].tolist()
    listing = live("schedules")
    assert "every 1w" in listing.out
    description = live("schedules", "show", champion)
    assert f"last run: started at {runs[0]['at'][:10]}" in description.out
    assert f"score {champion} on {data.as_uri()}" in description.out
    history = live("schedules", "history", champion)
    assert [line.split() for line in history.out.splitlines()][-1][2:4] == ["started", str(number)]


def test_a_schedule_is_paused_run_manually_resumed_and_deleted(live, weekly, champion):
    created = live(*weekly, "--paused")
    assert (created.code, created.out, created.err) == (
        0,
        "",
        f"schedule {champion}: paused; runs every 1w when resumed\n",
    )
    result = live("schedules", "run", champion, "--json")
    assert result.record["schedule"] == champion
    assert live("jobs", "watch", result.record["id"]).code == 0
    resumed = live("schedules", "resume", champion)
    assert resumed.err.startswith(f"schedule {champion}: runs every 1w, next at 20")
    assert live("schedules", "pause", champion, "--json").record["next_at"] is None
    again = live("schedules", "run", champion)
    assert "`trivium jobs watch " in again.err
    deleted = live("schedules", "delete", champion)
    assert (deleted.code, deleted.err) == (0, f"schedule {champion} is deleted\n")
    assert champion in live("schedules", "show", champion).err


def test_a_cron_schedule_has_a_time_zone(live, weekly, champion):
    result = live(
        *weekly[:-2], "--cron", "0 3 * * MON", "--timezone", "Europe/Berlin", "--catch-up", "--overlap"
    )
    assert result.code == 0, result.err
    assert f"schedule {champion}: runs 0 3 * * MON Europe/Berlin, next at 20" in result.err
    assert "missed runs are started later; runs may overlap" in live("schedules", "show", champion).out
    record = live("schedules", "show", champion, "--json").record
    assert (record["catch_up"], record["overlap"], record["job"]["model"]) == (True, True, champion)


def test_a_schedule_is_edited(live, weekly, champion, data, tmp_path):
    assert live(*weekly, "--error-threshold", "0.5", "--max-attempts", "2").code == 0
    edited = live("schedules", "edit", champion, "--cron", "0 3 * * MON", "--catch-up")
    assert (edited.code, "runs 0 3 * * MON UTC" in edited.err) == (0, True)
    file = tmp_path / "job.json"
    record = live("schedules", "show", champion, "--json").record
    assert (record["job"]["error_threshold"], record["job"]["max_attempts"]) == (0.5, 2)
    file.write_bytes(msgspec.json.encode(record["job"] | {"max_attempts": 3}))
    record = live(
        *("schedules", "edit", champion, "--job", file, "--every", "1d", "--no-catch-up", "--json")
    ).record
    assert (record["every_s"], record["cron"], record["catch_up"]) == (86400, None, False)
    assert record["job"]["max_attempts"] == 3
    unchanged = live("schedules", "edit", champion)
    assert unchanged.code == 2
    assert "nothing to change" in " ".join(unchanged.err.split())


def test_a_schedule_without_times_is_refused_with_the_options(live, weekly):
    result = live(*weekly[:-2])
    assert (result.code, "--cron" in result.err, "--every" in result.err) == (2, True, True)


def test_a_time_zone_without_cron_is_wrong_usage(live, weekly):
    result = live(*weekly, "--timezone", "Europe/Berlin")
    assert (result.code, "remove --timezone" in " ".join(result.err.split())) == (2, True)


def test_any_job_can_be_scheduled_from_a_file(live, champion, data, tmp_path):
    file = tmp_path / "job.json"
    job = {
        "kind": "score",
        "model": champion,
        "version": 1,
        "input": {"uri": data.as_uri()},
        "max_attempts": 2,
    }
    file.write_bytes(msgspec.json.encode(job))
    result = live("schedules", "create", champion, "--job", file, "--every", "90m", "--json")
    assert result.code == 0, result.err
    assert (result.record["job"]["max_attempts"], result.record["every_s"]) == (2, 5400)
    assert "every 90m" in live("schedules").out
    assert f"{champion}:1" in live("schedules").out


def test_a_missing_input_is_a_warning(live, weekly, champion, data):
    created = live(*weekly[:5], "--data", data.with_name("later.csv"), "--every", "1w")
    assert created.code == 0
    assert f"warning: no file or directory exists at {data.with_name('later.csv').as_uri()}" in created.err


def test_a_refused_schedule_exits_with_1_and_names_the_fields(live, weekly, champion, data, tmp_path):
    failure = live(*weekly[:-2], "--cron", "every monday")
    assert (failure.code, failure.out) == (1, "")
    assert "expected: minute hour day month weekday, as in 0 3 * * MON" in failure.err
    outside = live(*weekly[:5], "--data", tmp_path / "rows.csv", "--every", "1w")
    assert outside.code == 1
    assert "TRIVIUM_BATCH_ROOTS" in outside.err
    other = data.with_name("other.csv")
    other.write_text("height\n1\n")
    columns = live(*weekly[:5], "--data", other, "--every", "1w")
    assert (columns.code, "age" in columns.err) == (1, True)
    assert live("schedules", "show", champion).code == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--every", "1w"], "--model"),
        (["--model", "m", "--every", "1w"], "--data"),
        (["--model", "m", "--data", "d", "--every", "week"], "1w, 30m"),
        (["--model", "m", "--data", "d", "--every", "5"], "1w, 30m"),
        (["--model", "m", "--data", "d", "--every", "1w", "--out", "xlsx"], "parquet"),
        (["--model", "m:latest", "--data", "d", "--every", "1w"], "name:version"),
        (["--job", "{file}", "--every", "1w"], "job.json"),
        (["--job", "{file}", "--every", "1w", "--model", "m"], "remove --model"),
    ],
)
def test_wrong_usage_exits_with_2_and_describes_the_right_usage(live, tmp_path, args, message):
    file = tmp_path / "job.json"
    file.write_text("[]")
    result = live("schedules", "create", "weekly", *(a.format(file=file) for a in args))
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_the_units_of_a_span_are_added_up():
    spans = {"5s": 5, "30m": 1800, "1h30m": 5400, "1.5h": 5400, "1d": 86400, "1w": 604800}
    assert {span: parse_span(span) for span in spans} == spans
    assert parse_span(None) is None
    for invalid in ("", "5", "-5s", "s", "1 w", "1y", "1..5h"):
        with pytest.raises(typer.BadParameter):
            parse_span(invalid)
