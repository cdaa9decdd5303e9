"""`trivium export` and `trivium exports` against a real server and its real exporter."""

from __future__ import annotations

import hashlib

import pandas as pd
import pytest

from registry.errors import NotFound
from service.cli.exports import _resolve_version
from service.client import ModelRef


def test_an_export_is_ready_and_written_when_the_command_ends(live, published, tmp_path):
    out = tmp_path / "model.tflite"
    result = live("export", published, "--out", out)
    assert result.code == 0, result.err
    assert f"{published}:1 as .tflite (none) is ready" in result.out
    assert "100.0000% of the labels agree" in result.out
    assert "accuracy: 1.0000 before, 1.0000 after" in result.out
    assert hashlib.sha256(out.read_bytes()).hexdigest() in result.out
    assert [file.name for file in tmp_path.iterdir()] == ["model.tflite"]


def test_json_prints_only_the_export_record(live, published):
    result = live("export", f"{published}:1", "--json")
    assert result.code == 0, result.err
    assert (result.record["model"], result.record["version"], result.record["state"]) == (
        published,
        1,
        "ready",
    )
    assert result.record["report"]["label_agreement"] == 1.0


def test_an_export_outside_of_its_bounds_exits_with_1_and_the_reason(live, published, tmp_path):
    result = live("export", published, "--max-bytes", 10, "--out", tmp_path / "model.tflite")
    assert (result.code, result.out) == (1, "")
    assert "is rejected: " in result.err
    assert "the bound is 10" in result.err
    assert list(tmp_path.iterdir()) == []
    as_json = live("export", published, "--max-bytes", 10, "--json")
    assert (as_json.code, as_json.record["state"]) == (1, "rejected")


def test_the_exports_of_a_model_are_listed_and_one_is_shown_with_its_report(live, published):
    ready = live("export", published, "--json").record
    record = live("export", published, "--max-bytes", 10, "--json").record
    listing = live("exports", published)
    assert listing.code == 0, listing.err
    assert "ready" in listing.out
    assert "the bound is 10" in listing.out
    as_json = live("exports", f"{published}:1", "--json").record
    assert [e["id"] for e in as_json["items"]] == [record["id"], ready["id"]]
    description = live("exports", "show", published, ready["id"])
    assert "of the labels agree" in description.out
    assert "operators: " in description.out
    assert live("exports", "show", published, ready["id"], "--json").record == ready


def test_the_exports_of_a_model_named_show_can_be_listed(live, files):
    assert live("publish", files.model, "--name", "show", "--example", files.example).code == 0
    result = live("exports", "list", "show")
    assert (result.code, result.out, result.err) == (0, "", "no exports\n")


def test_an_alias_names_the_version_to_export(live, published):
    assert live("promote", f"{published}:1", "--alias", "next").code == 0
    assert live("export", f"{published}@next", "--json").record["version"] == 1
    absent = live("export", f"{published}@missing")
    assert absent.code == 1
    assert "missing" in absent.err


def test_missing_exports_models_and_versions_exit_with_1(live, published):
    assert "export" in live("exports", "show", published, 10**6).err
    assert live("exports", "nothing-of-that-name").code == 1
    assert live("export", f"{published}:7").code == 1


def test_an_unknown_quantize_mode_is_refused_with_the_known_ones(live, published):
    result = live("export", published, "--quantize", "int4")
    assert result.code == 1
    assert "int8" in result.err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame({"age": [30.0, 40.0]}), "'income'"),
        (pd.DataFrame({"age": [30.0, 40.0], "income": ["a", "b"]}), "'income'"),
        (pd.DataFrame({"age": [None, 40.0], "income": [1.0, None]}), "missing value"),
    ],
    ids=["missing column", "text for a number", "missing values in every row"],
)
def test_unsuitable_calibration_rows_are_rejected_with_the_column(live, published, tmp_path, rows, message):
    file = tmp_path / "rows.csv"
    rows.to_csv(file, index=False)
    result = live("export", published, "--quantize", "int8", "--calibration", file)
    assert result.code == 1
    assert message in result.err


def test_calibration_rows_with_an_unknown_suffix_are_wrong_usage(live, published, files):
    result = live("export", published, "--quantize", "int8", "--calibration", files.broken)
    assert result.code == 2
    assert ".csv, .parquet, .json" in result.err


class RecordedModel:
    """Stands for the client: the record of a model with a champion, an alias and three versions."""

    def __init__(self, champion: int | None) -> None:
        self.aliases = {"next": 3} | ({} if champion is None else {"champion": champion})
        self.calls: list[tuple[str, str]] = []

    def call(self, method: str, path: str) -> dict[str, object]:
        self.calls.append((method, path))
        return {"aliases": self.aliases, "latest_version": 3}


@pytest.mark.parametrize(
    ("text", "champion", "version"),
    [("m", 1, 1), ("m", None, 3), ("m:2", 1, 2), ("m@next", 1, 3), ("m@champion", 1, 1)],
)
def test_a_plain_name_is_the_champion_or_the_latest_version(text, champion, version):
    client = RecordedModel(champion)
    assert _resolve_version(client, ModelRef.parse(text)) == version
    assert client.calls == ([] if ":" in text else [("GET", "/v1/models/m")])


@pytest.mark.parametrize("text", ["m@champion", "m@other"])
def test_a_missing_alias_is_not_replaced_by_the_latest_version(text):
    with pytest.raises(NotFound, match=text):
        _resolve_version(RecordedModel(None), ModelRef.parse(text))


@pytest.mark.parametrize(
    "options",
    [("--calibration", "missing.csv"), ("--calibration", "folder.csv"), ("--out", "folder.csv")],
    ids=str,
)
def test_files_that_cannot_be_read_or_written_are_wrong_usage(trivium, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    result = trivium("export", "m", *options, env={"TRIVIUM_URL": "http://127.0.0.1:9"})
    assert result.code == 2
    assert options[1] in result.err
