"""`trivium batch score` and `trivium jobs` against a real server and its real worker."""

from __future__ import annotations

import msgspec
import pandas as pd
import pytest

from service.client import ModelRef

ROWS = 2_000
PROBABILITIES = ["probability.no", "probability.yes"]


@pytest.fixture
def rows() -> pd.DataFrame:
    """What the small classifier scores, with an id and a column that it does not know."""
    number = pd.Series(range(ROWS), name="customer")
    return pd.DataFrame(
        {
            "customer": number.map("{:05}".format),
            "age": 20.0 + number % 50,
            "income": 1.0 + number % 7,
            "region": (number % 3).map({0: "north", 1: "south", 2: "a, b"}),
        }
    )


@pytest.fixture
def data(rows, tmp_path):
    file = tmp_path / "rows.csv"
    rows.to_csv(file, index=False)
    return file


@pytest.fixture
def champion(live, published):
    assert live("promote", f"{published}:1").code == 0
    return published


def online(server, name, rows):
    with server.client() as client:
        body = msgspec.json.encode({"instances": rows[["age", "income"]].to_dict("records")})
        return client.predict(ModelRef.parse(name), body)["predictions"]


READERS = {
    ".parquet": pd.read_parquet,
    ".csv": lambda file: pd.read_csv(file, dtype={"customer": str}),
    ".jsonl": lambda file: pd.read_json(file, lines=True, dtype={"customer": str}),
}


@pytest.mark.parametrize("suffix", READERS)
def test_the_output_has_every_row_in_order_as_the_online_road_answers(
    live, server, champion, rows, data, tmp_path, suffix
):
    out = tmp_path / f"scores{suffix}"
    ran = live(
        *("batch", "score", data, "--model", champion, "--out", out),
        *("--id-column", "customer", "--passthrough", "region"),
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"2,000 rows scored with {champion}:1 (")
    assert f"{out}, {out.stat().st_size:,} bytes" in ran.out
    assert "job " in ran.err  # lines stand for a bar where there is no terminal
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.csv", out.name]
    scores = READERS[suffix](out)
    assert list(scores.columns) == ["customer", "region", "label", *PROBABILITIES]
    assert scores["customer"].astype(str).tolist() == rows["customer"].tolist()
    assert scores["region"].tolist() == rows["region"].tolist()
    answered = online(server, champion, rows)
    assert scores["label"].tolist() == [a["label"] for a in answered]
    assert scores["probability.yes"].tolist() == pytest.approx([a["probabilities"]["yes"] for a in answered])


def test_rows_that_cannot_be_scored_are_beside_the_output_and_a_later_run_takes_them_away(
    live, published, rows, tmp_path
):
    file, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    spoilt = rows.astype({"age": object})
    spoilt.loc[7, "age"] = "old"
    spoilt.to_csv(file, index=False)
    order = ("batch", "score", file, "--model", f"{published}:1", "--out", out, "--id-column", "customer")
    ran = live(*order)
    assert ran.code == 0, ran.err
    errors = tmp_path / "scores.csv.errors.csv"
    assert f"\nwarning: not scored: 1 of 2,000 rows (0.05%), see {errors}\n" in ran.out
    failed = pd.read_csv(errors, dtype=str)
    assert failed[["row", "id", "field"]].to_numpy().tolist() == [["7", "00007", "age"]]
    assert len(pd.read_csv(out)) == ROWS - 1
    rows.to_csv(file, index=False)
    assert live(*order).code == 0
    assert not errors.exists()


def test_json_prints_the_jobs_record_and_nothing_else(live, published, data, tmp_path):
    ran = live("batch", "score", data, "--model", f"{published}:1", "--out", tmp_path / "s.csv", "--json")
    assert ran.code == 0, ran.err
    record = ran.record
    assert (record["kind"], record["state"], record["model"], record["version"]) == (
        "score",
        "done",
        published,
        1,
    )
    assert (record["rows_total"], record["rows_done"], record["rows_failed"]) == (ROWS, ROWS, 0)
    assert "artifact" in record["spec"]["input"]


def test_a_server_on_this_machine_reads_what_is_in_its_roots_where_it_is(
    live, server, published, rows, tmp_path
):
    whole, parts = server.root / f"{published}.parquet", server.root / f"{published} parts"
    rows.to_parquet(whole)
    parts.mkdir()
    for number, start in enumerate(range(0, ROWS, 500)):
        rows[start : start + 500].to_parquet(parts / f"{number}.parquet")
    for place in (whole, parts):
        out = tmp_path / "scores.parquet"
        ran = live(
            "batch",
            "score",
            place,
            "--model",
            f"{published}:1",
            "--out",
            out,
            "--json",
            "--id-column",
            "customer",
        )
        assert ran.code == 0, ran.err
        assert ran.record["spec"]["input"]["uri"] == place.as_uri()
        assert pd.read_parquet(out)["customer"].tolist() == rows["customer"].tolist()
    by_uri = live("batch", "score", whole.as_uri(), "--model", f"{published}:1", "--dry-run", "--json")
    assert by_uri.record["rows_checked"] == 100


def test_a_directory_outside_of_the_roots_is_refused_with_the_way_out(live, published, data, tmp_path):
    ran = live("batch", "score", tmp_path, "--model", f"{published}:1", "--out", tmp_path / "s.csv")
    assert (ran.code, ran.out) == (2, "")
    assert "TRIVIUM_BATCH_ROOTS" in ran.err


def test_a_dry_run_checks_the_first_rows_and_starts_nothing(live, published, data, tmp_path):
    ran = live("batch", "score", data, "--model", f"{published}:1", "--dry-run")
    assert (ran.code, ran.out) == (0, f"{published}:1 can score 100 of the first 100 rows\n")
    assert live("jobs", "--model", published, "--json").record["items"] == []


def test_rows_without_a_column_of_the_model_are_refused_at_once_and_named(live, published, rows, tmp_path):
    file = tmp_path / "rows.csv"
    rows.drop(columns="income").to_csv(file, index=False)
    ran = live("batch", "score", file, "--model", f"{published}:1", "--out", tmp_path / "s.csv")
    assert (ran.code, ran.out) == (1, "")
    assert "income" in ran.err
    assert live("jobs", "--model", published, "--json").record["items"] == []


def test_a_job_that_fails_by_its_rows_is_exit_code_1_and_leaves_them_but_no_output(
    live, published, rows, tmp_path
):
    file, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    spoilt = rows.astype({"age": object})
    spoilt.loc[1000:, "age"] = "old"
    spoilt.to_csv(file, index=False)
    order = ("batch", "score", file, "--model", f"{published}:1", "--out", out, "--error-threshold", 0.1)
    ran = live(*order)
    assert (ran.code, ran.out) == (1, "")
    job = live("jobs", "--model", published, "--state", "failed", "--json").record["items"][0]
    assert f"error: job {job['id']} failed: {job['error']}" in ran.err
    assert f"trivium jobs errors {job['id']}" in ran.err
    assert "resume" not in ran.err
    assert not out.exists()
    errors = tmp_path / "scores.csv.errors.csv"
    assert str(errors) in ran.err
    assert pd.read_csv(errors)["row"].tolist() == list(range(1000, ROWS))
    assert live("jobs", "errors", job["id"]).out == errors.read_bytes().decode()
    assert live("jobs", "watch", job["id"]).code == 1


def test_a_job_that_nobody_waited_for_is_watched_shown_and_fetched_later(
    live, published, rows, data, tmp_path
):
    started = live("batch", "score", data, "--model", f"{published}:1", "--no-wait", "--json")
    assert started.code == 0, started.err
    number = started.record["id"]
    watched = live("jobs", "watch", number)
    assert watched.code == 0, watched.err
    assert f"job {number} (score, {published}:1, local) is done" in watched.out
    shown = live("jobs", "show", number)
    assert "partitions: 1 of 1 done" in shown.out
    assert live("jobs", "show", number, "--json").record["partitions"][0]["rows"] == ROWS
    out = tmp_path / "scores.parquet"
    assert live("jobs", "output", number, "--out", out, "--json").record["id"] == number
    assert len(pd.read_parquet(out)) == ROWS
    nothing = live("jobs", "errors", number)
    assert nothing.code == 1
    assert "no row failed" in nothing.err


def test_output_without_a_file_goes_to_stdout(live, published, data, tmp_path):
    ran = live("batch", "score", data, "--model", f"{published}:1", "--out", tmp_path / "s.csv", "--json")
    number = ran.record["id"]
    assert live("jobs", "output", number).out == (tmp_path / "s.csv").read_text()


def test_of_a_job_that_failed_the_partitions_that_are_done_can_be_fetched(live, server, published, rows):
    folder = server.root / "half"
    folder.mkdir()
    for number in range(2):
        rows[["age", "income"]].to_parquet(folder / f"{number}.parquet")
    with (folder / "1.parquet").open("r+b") as damaged:
        damaged.seek(4)
        damaged.write(bytes(64))
    ran = live(
        "batch", "score", folder, "--model", f"{published}:1", "--no-wait", "--max-attempts", 2, "--json"
    )
    number = ran.record["id"]
    watched = live("jobs", "watch", number)
    assert watched.code == 1
    assert f"`trivium jobs resume {number}` continues it\n" in watched.err
    assert "start a new job" in watched.err
    shown = [line.split()[:4] for line in live("jobs", "show", number).out.splitlines()]
    assert ["0", "score", "0.parquet", "done"] in shown
    assert ["1", "score", "1.parquet", "failed"] in shown
    assert live("jobs", "output", number).code == 1
    part = folder.with_name("part.parquet")
    assert live("jobs", "output", number, "--partition", 0, "--out", part).code == 0
    assert len(pd.read_parquet(part)) == ROWS
    refused = live("jobs", "output", number, "--partition", 1)
    assert (refused.code, f"'{number}/1'" in refused.err) == (1, True)


def test_a_file_whose_name_says_another_format_than_the_jobs_is_not_written(live, published, data, tmp_path):
    out = tmp_path / "s.csv"
    ran = live("batch", "score", data, "--model", f"{published}:1", "--out", out, "--json")
    number = ran.record["id"]
    for what, name in (("output", "o.parquet"), ("output", "o.PQ"), ("errors", "e.jsonl")):
        refused = live("jobs", what, number, "--out", tmp_path / name)
        assert refused.code == 2
        assert "text/csv; name it .csv" in " ".join(refused.err.split())
        assert not (tmp_path / name).exists()
    assert live("jobs", "output", number, "--out", tmp_path / "o.txt").code == 0
    assert (tmp_path / "o.txt").read_bytes() == out.read_bytes()


def test_jobs_are_listed_newest_first_by_state_and_model(live, published, data):
    numbers = [
        live("batch", "score", data, "--model", f"{published}:1", "--no-wait", "--json").record["id"]
        for _ in range(2)
    ]
    listed = live("jobs", "--model", published, "--json").record["items"]
    assert [job["id"] for job in listed] == numbers[::-1]
    for number in numbers:
        assert live("jobs", "watch", number).code == 0
    table = live("jobs", "--state", "done", "--model", published)
    assert "2,000" in table.out
    assert live("jobs", "list", "--state", "failed", "--model", published).err == "no jobs\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["batch", "score", "{data}", "--model", "m"], "--out"),
        (["batch", "score", "{data}", "--model", "m", "--out", "scores.xlsx"], ".parquet"),
        (["batch", "score", "{data}", "--model", "m", "--out", "nowhere/scores.csv"], "does not exist"),
        (["batch", "score", "/nowhere.csv", "--model", "m", "--no-wait"], "no such file"),
        (["batch", "score", "{data}", "--model", "m:latest", "--no-wait"], "name:version"),
        (["batch", "score", "{data}", "--no-wait"], "--model"),
        (["jobs", "output", "1", "--json"], "--out"),
        (["jobs", "output", "1", "--out", "nowhere/scores.csv"], "does not exist"),
        (["jobs", "show", "first"], "ID"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_right(live, data, args, said):
    ran = live(*(arg.format(data=data) for arg in args))
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_a_file_whose_name_says_nothing_needs_its_media_type(live, published, rows, tmp_path):
    file = tmp_path / "rows.txt"
    rows.to_csv(file, index=False)
    order = ("batch", "score", file, "--model", f"{published}:1", "--dry-run")
    refused = live(*order)
    assert refused.code == 2
    assert "--media-type" in refused.err
    assert live(*order, "--media-type", "text/csv").code == 0


def test_what_is_not_there_is_exit_code_1_and_named(live, data):
    assert "job" in live("jobs", "show", 10**6).err
    ran = live("batch", "score", data, "--model", "nobody", "--no-wait")
    assert ran.code == 1
    assert "nobody" in ran.err
