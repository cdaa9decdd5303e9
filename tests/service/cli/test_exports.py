"""`trivium export` and `trivium exports` against a real server and its real exporter."""

from __future__ import annotations

import hashlib

import pandas as pd
import pytest


def test_an_export_is_ready_and_written_when_the_command_ends(live, published, tmp_path):
    out = tmp_path / "model.tflite"
    ran = live("export", published, "--out", out)
    assert ran.code == 0, ran.err
    assert f"{published}:1 as .tflite (none) is ready" in ran.out
    assert "100.0000% of the labels agree" in ran.out
    assert "accuracy: 1.0000 before, 1.0000 after" in ran.out
    assert hashlib.sha256(out.read_bytes()).hexdigest() in ran.out
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


def test_json_prints_the_export_record_and_nothing_else(live, published):
    ran = live("export", f"{published}:1", "--json")
    assert ran.code == 0, ran.err
    assert (ran.record["model"], ran.record["version"], ran.record["state"]) == (published, 1, "ready")
    assert ran.record["report"]["label_agreement"] == 1.0


def test_an_export_outside_of_its_bounds_is_exit_code_1_with_the_reason(live, published, tmp_path):
    ran = live("export", published, "--max-bytes", 10, "--out", tmp_path / "model.tflite")
    assert (ran.code, ran.out) == (1, "")
    assert "is rejected: " in ran.err
    assert "the bound is 10" in ran.err
    assert list(tmp_path.iterdir()) == []
    as_json = live("export", published, "--max-bytes", 10, "--json")
    assert (as_json.code, as_json.record["state"]) == (1, "rejected")


def test_the_exports_of_a_model_are_listed_and_one_is_shown_with_its_report(live, published):
    made = live("export", published, "--json").record
    refused = live("export", published, "--max-bytes", 10, "--json").record
    listed = live("exports", published)
    assert listed.code == 0, listed.err
    assert "ready" in listed.out
    assert "the bound is 10" in listed.out
    as_json = live("exports", f"{published}:1", "--json").record
    assert [e["id"] for e in as_json["items"]] == [refused["id"], made["id"]]
    shown = live("exports", "show", published, made["id"])
    assert "of the labels agree" in shown.out
    assert "operators: " in shown.out
    assert live("exports", "show", published, made["id"], "--json").record == made


def test_a_model_called_show_can_be_listed(live, files):
    assert live("publish", files.model, "--name", "show", "--example", files.example).code == 0
    ran = live("exports", "list", "show")
    assert (ran.code, ran.out, ran.err) == (0, "", "no exports\n")


def test_an_alias_names_the_version_to_export(live, published):
    assert live("promote", f"{published}:1", "--alias", "next").code == 0
    assert live("export", f"{published}@next", "--json").record["version"] == 1
    absent = live("export", f"{published}@nobody")
    assert absent.code == 1
    assert "nobody" in absent.err


def test_what_is_not_there_is_exit_code_1_and_named(live, published):
    assert "export" in live("exports", "show", published, 10**6).err
    assert live("exports", "nothing-of-that-name").code == 1
    assert live("export", f"{published}:7").code == 1


def test_a_way_to_quantize_that_does_not_exist_is_refused_with_those_that_do(live, published):
    ran = live("export", published, "--quantize", "int4")
    assert ran.code == 1
    assert "int8" in ran.err


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (pd.DataFrame({"age": [30.0, 40.0]}), "'income'"),
        (pd.DataFrame({"age": [30.0, 40.0], "income": ["a", "b"]}), "'income'"),
        (pd.DataFrame({"age": [None, 40.0], "income": [1.0, None]}), "missing value"),
    ],
    ids=["a column short", "text for a number", "gaps in every row"],
)
def test_calibration_rows_that_do_not_fit_are_rejected_naming_the_column(
    live, published, tmp_path, rows, said
):
    file = tmp_path / "rows.csv"
    rows.to_csv(file, index=False)
    ran = live("export", published, "--quantize", "int8", "--calibration", file)
    assert ran.code == 1
    assert said in ran.err


def test_calibration_rows_of_an_unknown_kind_are_wrong_usage(live, published, files):
    ran = live("export", published, "--quantize", "int8", "--calibration", files.broken)
    assert ran.code == 2
    assert ".csv, .parquet, .json" in ran.err
