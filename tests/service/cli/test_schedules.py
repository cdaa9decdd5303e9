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
    """The arguments that make a schedule of this test's own."""
    return ("schedules", "create", champion, "--model", champion, "--data", data, "--every", "1w")


def test_weekly_and_the_first_run_seconds_from_now(live, weekly, champion, data):
    made = live(*weekly, "--start-in", "1s", "--out", "csv", "--passthrough", "age", "--json")
    assert made.code == 0, made.err
    assert (made.record["every_s"], made.record["job"]["input"]["uri"]) == (604800, data.as_uri())
    given_up = time.monotonic() + 60
    while not (runs := live("schedules", "history", champion, "--json").record["items"]):
        assert time.monotonic() < given_up
    assert [r["outcome"] for r in runs] == ["started"]
    number = runs[0]["job"]
    assert live("jobs", "watch", number).code == 0
    scores = pd.read_csv(io.StringIO(live("jobs", "output", number).out))
    assert list(scores.columns) == ["age", "label", "probability.no", "probability.yes"]
    assert scores["age"].tolist() == pd.read_csv(data)["age"].tolist()
    listed = live("schedules")
    assert "every 1w" in listed.out
    shown = live("schedules", "show", champion)
    assert f"last run: started at {runs[0]['at'][:10]}" in shown.out
    assert f"score {champion} on {data.as_uri()}" in shown.out
    history = live("schedules", "history", champion)
    assert [line.split() for line in history.out.splitlines()][-1][2:4] == ["started", str(number)]


def test_a_schedule_is_paused_run_by_hand_resumed_and_deleted(live, weekly, champion):
    made = live(*weekly, "--paused")
    assert (made.code, made.out, made.err) == (0, "", f"schedule {champion}: paused, else runs every 1w\n")
    ran = live("schedules", "run", champion, "--json")
    assert ran.record["schedule"] == champion
    assert live("jobs", "watch", ran.record["id"]).code == 0
    resumed = live("schedules", "resume", champion)
    assert resumed.err.startswith(f"schedule {champion}: runs every 1w, next at 20")
    assert live("schedules", "pause", champion, "--json").record["next_at"] is None
    again = live("schedules", "run", champion)
    assert "`trivium jobs watch " in again.err
    gone = live("schedules", "delete", champion)
    assert (gone.code, gone.err) == (0, f"schedule {champion} is deleted\n")
    assert champion in live("schedules", "show", champion).err


def test_cron_in_a_time_zone(live, weekly, champion):
    ran = live(
        *weekly[:-2], "--cron", "0 3 * * MON", "--timezone", "Europe/Berlin", "--catch-up", "--overlap"
    )
    assert ran.code == 0, ran.err
    assert f"schedule {champion}: runs 0 3 * * MON Europe/Berlin, next at 20" in ran.err
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
    nothing = live("schedules", "edit", champion)
    assert (nothing.code, "nothing to change" in " ".join(nothing.err.split())) == (2, True)


def test_a_schedule_without_a_time_is_told_the_options(live, weekly):
    ran = live(*weekly[:-2])
    assert (ran.code, "--cron" in ran.err, "--every" in ran.err) == (2, True, True)


def test_a_time_zone_without_cron_is_refused_at_once(live, weekly):
    ran = live(*weekly, "--timezone", "Europe/Berlin")
    assert (ran.code, "remove --timezone" in " ".join(ran.err.split())) == (2, True)


def test_a_job_of_any_kind_is_given_as_a_file(live, champion, data, tmp_path):
    file = tmp_path / "job.json"
    job = {
        "kind": "score",
        "model": champion,
        "version": 1,
        "input": {"uri": data.as_uri()},
        "max_attempts": 2,
    }
    file.write_bytes(msgspec.json.encode(job))
    ran = live("schedules", "create", champion, "--job", file, "--every", "90m", "--json")
    assert ran.code == 0, ran.err
    assert (ran.record["job"]["max_attempts"], ran.record["every_s"]) == (2, 5400)
    assert "every 90m" in live("schedules").out
    assert f"{champion}:1" in live("schedules").out


def test_an_input_that_is_not_there_yet_is_a_warning(live, weekly, champion, data):
    made = live(*weekly[:5], "--data", data.with_name("later.csv"), "--every", "1w")
    assert made.code == 0
    assert f"warning: no file or directory exists at {data.with_name('later.csv').as_uri()}" in made.err


def test_what_the_server_refuses_is_exit_code_1_with_its_fields(live, weekly, champion, data, tmp_path):
    refused = live(*weekly[:-2], "--cron", "every monday")
    assert (refused.code, refused.out) == (1, "")
    assert "expected: minute hour day month weekday, as in 0 3 * * MON" in refused.err
    outside = live(*weekly[:5], "--data", tmp_path / "rows.csv", "--every", "1w")
    assert outside.code == 1
    assert "TRIVIUM_BATCH_ROOTS" in outside.err
    other = data.with_name("other.csv")
    other.write_text("height\n1\n")
    columns = live(*weekly[:5], "--data", other, "--every", "1w")
    assert (columns.code, "age" in columns.err) == (1, True)
    assert live("schedules", "show", champion).code == 1


@pytest.mark.parametrize(
    ("args", "said"),
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
def test_wrong_usage_is_exit_code_2_and_says_what_is_right(live, tmp_path, args, said):
    file = tmp_path / "job.json"
    file.write_text("[]")
    ran = live("schedules", "create", "weekly", *(a.format(file=file) for a in args))
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_spans_of_time_are_added_up():
    spans = {"5s": 5, "30m": 1800, "1h30m": 5400, "1.5h": 5400, "1d": 86400, "1w": 604800}
    assert {span: parse_span(span) for span in spans} == spans
    assert parse_span(None) is None
    for wrong in ("", "5", "-5s", "s", "1 w", "1y", "1..5h"):
        with pytest.raises(typer.BadParameter):
            parse_span(wrong)
