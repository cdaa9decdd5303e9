"""`trivium prediction-log`, `feedback` and `predictions` against a running server."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest


@pytest.fixture
def predicted(live, published, server) -> tuple[str, str]:
    """A model whose log is on, and the id of a prediction of two rows."""
    assert live("promote", f"{published}:1").code == 0
    switched = live("prediction-log", published, "--sample", "1", "--max-mb", "none")
    assert switched.out == f"{published}: 1 of the calls are recorded; rows are kept for 30 days\n"
    rows = [{"age": 30, "income": 2.5}, {"age": 60, "income": 5.0}]
    answer = server.call_json("POST", f"/v1/models/{published}/predict", {"instances": rows})
    return published, answer["id"]


def test_labels_of_a_csv_file_join_the_rows_of_the_log(live, predicted, tmp_path):
    model, prediction = predicted
    labels = tmp_path / "labels.csv"
    labels.write_text(f"id,row,label\n{prediction},1,yes\n{prediction},0,no\n")
    assert live("feedback", labels, "--json").record == {"labels": 2}
    lines = [json.loads(line) for line in live("predictions", model).out.splitlines()]
    assert [(r["input.age"], r["feedback.label"]) for r in lines] == [(30, "no"), (60, "yes")]
    assert live("predictions", model, "--json").record == {"items": lines}

    out = tmp_path / "log.parquet"
    saved = live("predictions", model, "--out", out, "--json").record
    assert (saved["file"], saved["bytes"]) == (str(out), out.stat().st_size)
    assert pq.read_table(out).num_rows == 2
    assert live("predictions", model, "--version", "1", "--out", tmp_path / "log.csv").code == 0
    with (tmp_path / "log.csv").open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == [prediction] * 2
    assert live("predictions", model, "--from", "2999-01-01T00:00:00Z").out == ""


def test_labels_of_a_jsonl_file_are_sent_and_bad_items_are_named(live, predicted, tmp_path):
    model, prediction = predicted
    good, bad = tmp_path / "labels.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps({"id": prediction, "labels": ["yes", "no"]}) + "\n\n")
    assert "2 labels were sent" in live("feedback", good).err
    assert [json.loads(x)["feedback.label"] for x in live("predictions", model).out.splitlines()] == [
        "yes",
        "no",
    ]
    bad.write_text(good.read_text() + '{"id": "nope", "label": 1}\n')
    refused = live("feedback", bad)
    assert refused.code == 1
    assert "item 2, id: not the id of a prediction" in refused.err
    bad.write_text("[1]\n")
    assert "line 1: expected a JSON object" in live("feedback", bad).err
    bad = tmp_path / "bad.csv"
    bad.write_text("prediction,label\n")
    assert "expected the columns id, label" in live("feedback", bad).err
    for content, fault in (
        (b"id,id,label\n", "expected the columns id, label"),
        (b"id,label\np,Bern, BE\n", "line 2: expected 2 cells, got 3; quote labels with commas"),
        (b"id,label\n\np\n", "line 3: expected 2 cells, got 1"),
        (b"id,label\np,\xff\n", "expected CSV in UTF-8"),
        (b"id,label\np," + b"x" * 200_000 + b"\n", "expected CSV in UTF-8"),
    ):
        bad.write_bytes(content)
        refused = live("feedback", bad)
        assert (refused.code, fault in refused.err) == (2, True), refused.err
    bad.rename(tmp_path / "bad.txt")
    assert live("feedback", tmp_path / "bad.txt").code == 2


def test_settings_are_shown_changed_one_by_one_and_switched_off(live, published):
    assert live("prediction-log", published).out == (
        f"{published}: no call is recorded; rows are kept for 30 days, at most 10,240 MB\n"
    )
    assert live("prediction-log", published, "--sample", "0.25").code == 0
    changed = live("prediction-log", published, "--keep-days", "7", "--json").record
    assert changed | {"sample": 0.25, "keep_days": 7, "max_mb": 10240} == changed
    switched_off = live("prediction-log", published, "--off", "--json").record
    assert (switched_off["sample"], switched_off["keep_days"]) == (0, 7)
    assert live("prediction-log", published, "--off", "--sample", "1").code == 2
    assert live("prediction-log", published, "--keep-days", "many").code == 2
