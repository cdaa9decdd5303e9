"""`trivium predict`: the accepted forms of rows, and the output."""

from __future__ import annotations

import io
import sys

import msgspec
import pytest

ROWS = [{"age": 25, "income": 1.5}, {"age": 66, "income": 7.0}]


@pytest.fixture(scope="session")
def model(server, files) -> str:
    with server.connect() as client:
        example = {"artifact": client.upload(files.example), "media_type": "text/csv"}
        request = {"artifact": client.upload(files.model), "format": "sklearn-joblib", "example": example}
        request |= {"target": "good", "alias": "champion"}
        assert client.wait("predicted", client.publish("predicted", request)["version"])["state"] == "ready"
    return "predicted"


@pytest.mark.parametrize("rows", [ROWS, ROWS[0], {"instances": ROWS}], ids=["list", "object", "request body"])
@pytest.mark.parametrize("reference", ["predicted", "predicted@champion", "predicted:1"])
def test_every_form_of_rows_and_model_references_is_predicted(live, model, tmp_path, rows, reference):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode(rows))
    result = live("predict", reference, file, "--json")
    assert result.code == 0, result.err
    labels = [prediction["label"] for prediction in result.record["predictions"]]
    assert labels == (["no"] if rows is ROWS[0] else ["no", "yes"])
    assert result.record["model"] == {"name": "predicted", "version": 1}


def test_a_csv_file_is_sent_unchanged(live, model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("age,income\n25,1.5\n66,7.0\n")
    assert [p["label"] for p in live("predict", model, file, "--json").record["predictions"]] == ["no", "yes"]


def test_rows_are_read_from_stdin(live, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(ROWS))))
    assert len(live("predict", model, "-", "--json").record["predictions"]) == 2


def test_predictions_are_printed_as_a_table_with_the_columns_of_csv_answers(live, model, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode(ROWS))
    head, _, first, second = live("predict", model, file).out.splitlines()
    assert head.split() == ["label", "probability.no", "probability.yes"]
    assert (first.split()[0], second.split()[0]) == ("no", "yes")


def test_an_error_names_row_and_field(live, model, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode([ROWS[0], {"age": "old", "income": 1}]))
    result = live("predict", model, file)
    assert (result.code, result.out) == (1, "")
    assert "instance 1: " in result.err
    assert result.err.count('"old"') == 1


def test_of_many_errors_the_first_five_are_shown_and_the_others_counted(live, model, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode([{"age": "old", "income": 1}] * 12))
    lines = live("predict", model, file).err.splitlines()
    assert [line.partition(",")[0] for line in lines[1:-1]] == [f"row {n}" for n in range(5)]
    assert lines[-1] == "... and 7 more"


@pytest.mark.parametrize("text", ["[1, 2", "3"])
def test_a_file_without_rows_is_wrong_usage(live, model, tmp_path, text):
    file = tmp_path / "rows.json"
    file.write_text(text)
    result = live("predict", model, file)
    assert result.code == 2
    assert "rows.json" in result.err


def test_a_missing_model_exits_with_1(live, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text("[]")
    result = live("predict", "missing", file)
    assert result.code == 1
    assert "missing" in result.err
