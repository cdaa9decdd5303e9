"""`trivium predict`: the forms that rows come in, and what is printed."""

from __future__ import annotations

import io
import sys

import msgspec
import pytest

ROWS = [{"age": 25, "income": 1.5}, {"age": 66, "income": 7.0}]


@pytest.fixture(scope="module")
def model(server, files) -> str:
    with server.client() as client:
        example = {"artifact": client.upload(files.example), "media_type": "text/csv"}
        request = {"artifact": client.upload(files.model), "format": "sklearn-joblib", "example": example}
        request |= {"target": "good", "alias": "champion"}
        assert client.wait("asked", client.publish("asked", request)["version"])["state"] == "ready"
    return "asked"


@pytest.mark.parametrize(
    "given", [ROWS, ROWS[0], {"instances": ROWS}], ids=["a list", "one object", "the API's body"]
)
@pytest.mark.parametrize("written", ["asked", "asked@champion", "asked:1"])
def test_rows_are_predicted_however_they_and_the_model_are_written(live, model, tmp_path, given, written):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode(given))
    ran = live("predict", written, file, "--json")
    assert ran.code == 0, ran.err
    labels = [prediction["label"] for prediction in ran.record["predictions"]]
    assert labels == (["no"] if given is ROWS[0] else ["no", "yes"])
    assert ran.record["model"] == {"name": "asked", "version": 1}


def test_a_csv_file_is_sent_as_it_is(live, model, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("age,income\n25,1.5\n66,7.0\n")
    assert [p["label"] for p in live("predict", model, file, "--json").record["predictions"]] == ["no", "yes"]


def test_rows_come_from_stdin(live, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(msgspec.json.encode(ROWS))))
    assert len(live("predict", model, "-", "--json").record["predictions"]) == 2


def test_people_get_a_table_with_the_columns_of_the_csv_answer(live, model, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode(ROWS))
    head, _, first, second = live("predict", model, file).out.splitlines()
    assert head.split() == ["label", "probability.no", "probability.yes"]
    assert (first.split()[0], second.split()[0]) == ("no", "yes")


def test_a_fault_names_row_and_field(live, model, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode([ROWS[0], {"age": "old", "income": 1}]))
    ran = live("predict", model, file)
    assert (ran.code, ran.out) == (1, "")
    assert "instance 1: " in ran.err
    assert ran.err.count('"old"') == 1


def test_of_faults_in_every_row_the_first_few_are_shown_and_the_others_counted(live, model, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(msgspec.json.encode([{"age": "old", "income": 1}] * 12))
    lines = live("predict", model, file).err.splitlines()
    assert [line.partition(",")[0] for line in lines[1:-1]] == [f"row {n}" for n in range(5)]
    assert lines[-1] == "... and 7 more"


@pytest.mark.parametrize("text", ["[1, 2", "3"])
def test_what_is_no_rows_is_wrong_usage(live, model, tmp_path, text):
    file = tmp_path / "rows.json"
    file.write_text(text)
    ran = live("predict", model, file)
    assert ran.code == 2
    assert "rows.json" in ran.err


def test_a_model_that_is_not_there_is_exit_code_1(live, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text("[]")
    ran = live("predict", "nobody", file)
    assert ran.code == 1
    assert "nobody" in ran.err
