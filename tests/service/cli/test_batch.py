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
    """Rows for the small classifier, with an id and a column that is not a feature."""
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


def predict_online(server, name, rows):
    with server.connect() as client:
        body = msgspec.json.encode({"instances": rows[["age", "income"]].to_dict("records")})
        return client.predict(ModelRef.parse(name), body)["predictions"]


READERS = {
    ".parquet": pd.read_parquet,
    ".csv": lambda file: pd.read_csv(file, dtype={"customer": str}),
    ".jsonl": lambda file: pd.read_json(file, lines=True, dtype={"customer": str}),
}


@pytest.mark.parametrize("suffix", READERS)
def test_the_output_contains_every_row_in_order_with_the_online_answers(
    live, server, champion, rows, data, tmp_path, suffix
):
    out = tmp_path / f"scores{suffix}"
    result = live(
        *("batch", "score", data, "--model", champion, "--out", out),
        *("--id-column", "customer", "--passthrough", "region"),
    )
    assert result.code == 0, result.err
    assert result.out.startswith(f"2,000 rows scored with {champion}:1 (")
    assert f"{out}, {out.stat().st_size:,} bytes" in result.out
    assert "job " in result.err  # without a terminal, lines replace the progress bar
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.csv", out.name]
    scores = READERS[suffix](out)
    assert list(scores.columns) == ["customer", "region", "label", *PROBABILITIES]
    assert scores["customer"].astype(str).tolist() == rows["customer"].tolist()
    assert scores["region"].tolist() == rows["region"].tolist()
    predictions = predict_online(server, champion, rows)
    assert scores["label"].tolist() == [p["label"] for p in predictions]
    assert scores["probability.yes"].tolist() == pytest.approx(
        [p["probabilities"]["yes"] for p in predictions]
    )


def test_rows_that_fail_are_listed_in_an_errors_file_that_a_later_run_deletes(
    live, published, rows, tmp_path
):
    file, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    invalid_rows = rows.astype({"age": object})
    invalid_rows.loc[7, "age"] = "old"
    invalid_rows.to_csv(file, index=False)
    command = ("batch", "score", file, "--model", f"{published}:1", "--out", out, "--id-column", "customer")
    result = live(*command)
    assert result.code == 0, result.err
    errors = tmp_path / "scores.csv.errors.csv"
    assert f"\nwarning: not scored: 1 of 2,000 rows (0.05%), see {errors}\n" in result.out
    failed = pd.read_csv(errors, dtype=str)
    assert failed[["row", "id", "field"]].to_numpy().tolist() == [["7", "00007", "age"]]
    assert len(pd.read_csv(out)) == ROWS - 1
    rows.to_csv(file, index=False)
    assert live(*command).code == 0
    assert not errors.exists()


def test_json_prints_only_the_jobs_record(live, published, data, tmp_path):
    result = live("batch", "score", data, "--model", f"{published}:1", "--out", tmp_path / "s.csv", "--json")
    assert result.code == 0, result.err
    record = result.record
    assert (record["kind"], record["state"], record["model"], record["version"]) == (
        "score",
        "done",
        published,
        1,
    )
    assert (record["rows_total"], record["rows_done"], record["rows_failed"]) == (ROWS, ROWS, 0)
    assert "artifact" in record["spec"]["input"]


def test_a_server_on_this_machine_reads_files_below_its_batch_roots_in_place(
    live, server, published, rows, tmp_path
):
    file, folder = server.root / f"{published}.parquet", server.root / f"{published} parts"
    rows.to_parquet(file)
    folder.mkdir()
    for number, start in enumerate(range(0, ROWS, 500)):
        rows[start : start + 500].to_parquet(folder / f"{number}.parquet")
    for path in (file, folder):
        out = tmp_path / "scores.parquet"
        result = live(
            "batch",
            "score",
            path,
            "--model",
            f"{published}:1",
            "--out",
            out,
            "--json",
            "--id-column",
            "customer",
        )
        assert result.code == 0, result.err
        assert result.record["spec"]["input"]["uri"] == path.as_uri()
        assert pd.read_parquet(out)["customer"].tolist() == rows["customer"].tolist()
    by_uri = live("batch", "score", file.as_uri(), "--model", f"{published}:1", "--dry-run", "--json")
    assert by_uri.record["rows_checked"] == 100


def test_a_directory_outside_of_the_batch_roots_is_refused_with_the_remedy(live, published, data, tmp_path):
    result = live("batch", "score", tmp_path, "--model", f"{published}:1", "--out", tmp_path / "s.csv")
    assert (result.code, result.out) == (2, "")
    assert "(TRIVIUM_BATCH_ROOTS): move it into one of them" in result.err


def test_a_dry_run_checks_the_first_rows_and_starts_nothing(live, published, data, tmp_path):
    result = live("batch", "score", data, "--model", f"{published}:1", "--dry-run")
    expected = f"100 of the first 100 rows fit the signature of {published}:1; the model did not run\n"
    assert (result.code, result.out) == (0, expected)
    assert live("jobs", "--model", published, "--json").record["items"] == []


def test_a_missing_feature_column_is_named_before_a_job_starts(live, published, rows, tmp_path):
    file = tmp_path / "rows.csv"
    rows.drop(columns="income").to_csv(file, index=False)
    result = live("batch", "score", file, "--model", f"{published}:1", "--out", tmp_path / "s.csv")
    assert (result.code, result.out) == (1, "")
    assert "income" in result.err
    assert live("jobs", "--model", published, "--json").record["items"] == []


def test_a_job_that_fails_for_its_rows_exits_with_1_and_writes_only_the_errors_file(
    live, published, rows, tmp_path
):
    file, out = tmp_path / "rows.csv", tmp_path / "scores.csv"
    invalid_rows = rows.astype({"age": object})
    invalid_rows.loc[1000:, "age"] = "old"
    invalid_rows.to_csv(file, index=False)
    command = ("batch", "score", file, "--model", f"{published}:1", "--out", out, "--error-threshold", 0.1)
    result = live(*command)
    assert (result.code, result.out) == (1, "")
    job = live("jobs", "--model", published, "--state", "failed", "--json").record["items"][0]
    assert f"error: job {job['id']} failed: {job['error']}" in result.err
    assert f"trivium jobs errors {job['id']}" in result.err
    assert "resume" not in result.err
    assert not out.exists()
    errors = tmp_path / "scores.csv.errors.csv"
    assert str(errors) in result.err
    assert pd.read_csv(errors)["row"].tolist() == list(range(1000, ROWS))
    assert live("jobs", "errors", job["id"]).out == errors.read_bytes().decode()
    assert live("jobs", "watch", job["id"]).code == 1


def test_a_job_started_with_no_wait_is_watched_shown_and_downloaded_later(
    live, published, rows, data, tmp_path
):
    started = live("batch", "score", data, "--model", f"{published}:1", "--no-wait", "--json")
    assert started.code == 0, started.err
    number = started.record["id"]
    watched = live("jobs", "watch", number)
    assert watched.code == 0, watched.err
    assert f"job {number} (score, {published}:1, local) is done" in watched.out
    description = live("jobs", "show", number)
    assert "partitions: 1 of 1 done" in description.out
    assert live("jobs", "show", number, "--json").record["partitions"][0]["rows"] == ROWS
    out = tmp_path / "scores.parquet"
    assert live("jobs", "output", number, "--out", out, "--json").record["id"] == number
    assert len(pd.read_parquet(out)) == ROWS
    no_errors = live("jobs", "errors", number)
    assert no_errors.code == 1
    assert "no row failed" in no_errors.err


def test_output_without_a_file_is_written_to_stdout(live, published, data, tmp_path):
    result = live("batch", "score", data, "--model", f"{published}:1", "--out", tmp_path / "s.csv", "--json")
    number = result.record["id"]
    assert live("jobs", "output", number).out == (tmp_path / "s.csv").read_text()


def test_finished_partitions_of_a_failed_job_can_be_downloaded(live, server, published, rows):
    folder = server.root / f"{published} half"
    folder.mkdir()
    for number in range(2):
        rows[["age", "income"]].to_parquet(folder / f"{number}.parquet")
    with (folder / "1.parquet").open("r+b") as damaged:
        damaged.seek(4)
        damaged.write(bytes(64))
    result = live(
        "batch", "score", folder, "--model", f"{published}:1", "--no-wait", "--max-attempts", 2, "--json"
    )
    number = result.record["id"]
    watched = live("jobs", "watch", number)
    assert watched.code == 1
    assert f"`trivium jobs resume {number}` continues it\n" in watched.err
    assert "start a new job" in watched.err
    description = [line.split()[:4] for line in live("jobs", "show", number).out.splitlines()]
    assert ["0", "score", "0.parquet", "done"] in description
    assert ["1", "score", "1.parquet", "failed"] in description
    assert live("jobs", "output", number).code == 1
    part = folder.with_name("part.parquet")
    assert live("jobs", "output", number, "--partition", 0, "--out", part).code == 0
    assert len(pd.read_parquet(part)) == ROWS
    failure = live("jobs", "output", number, "--partition", 1)
    assert (failure.code, f"'{number}/1'" in failure.err) == (1, True)


def test_a_file_name_with_the_suffix_of_another_format_is_rejected(live, published, data, tmp_path):
    out = tmp_path / "s.csv"
    result = live("batch", "score", data, "--model", f"{published}:1", "--out", out, "--json")
    number = result.record["id"]
    for resource, name in (("output", "o.parquet"), ("output", "o.PQ"), ("errors", "e.jsonl")):
        failure = live("jobs", resource, number, "--out", tmp_path / name)
        assert failure.code == 2
        assert "text/csv; name it .csv" in " ".join(failure.err.split())
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
    ("args", "message"),
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
def test_wrong_usage_exits_with_2_and_describes_the_right_usage(live, data, args, message):
    result = live(*(arg.format(data=data) for arg in args))
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_file_without_a_known_suffix_needs_a_media_type(live, published, rows, tmp_path):
    file = tmp_path / "rows.txt"
    rows.to_csv(file, index=False)
    command = ("batch", "score", file, "--model", f"{published}:1", "--dry-run")
    failure = live(*command)
    assert failure.code == 2
    assert "--media-type" in failure.err
    assert live(*command, "--media-type", "text/csv").code == 0


def test_missing_jobs_and_models_exit_with_1_and_are_named(live, data):
    assert "job" in live("jobs", "show", 10**6).err
    result = live("batch", "score", data, "--model", "missing", "--no-wait")
    assert result.code == 1
    assert "missing" in result.err
