"""`trivium publish` against a real server and its real builder."""

from __future__ import annotations

from importlib.metadata import version
from platform import python_version

import msgspec
import pytest


def test_a_published_model_is_ready_when_the_command_ends(live, files):
    ran = live("publish", files.model, "--name", "one-line", "--example", files.example, "--target", "good")
    assert ran.code == 0, ran.err
    assert "one-line:1 is ready on onnx" in ran.out
    assert "label mismatches" in ran.out


def test_json_prints_the_version_record_and_nothing_else(live, files):
    ran = live("publish", files.model, "--name", "as-json", "--example", files.example, "--json")
    assert ran.code == 0, ran.err
    assert (ran.record["model"], ran.record["version"], ran.record["state"]) == ("as-json", 1, "ready")
    assert ran.record["signature"]["task"] == "classification"


def test_what_the_publisher_says_is_in_the_record(live, files, tmp_path):
    corrected = tmp_path / "signature.json"
    corrected.write_bytes(
        msgspec.json.encode({"inputs": [{"name": "age", "nullable": False, "maximum": 120}]})
    )
    ran = live(
        *("publish", files.model, "--name", "described", "--json", "--description", "a first try"),
        *("--tag", "team=risk", "--tag", "stage=", "--metric", "auc=0.5", "--alias", "champion"),
        *("--example", files.example, "--target", "good", "--signature", corrected),
    )
    assert ran.code == 0, ran.err
    record = ran.record
    assert record["description"] == "a first try"
    assert record["tags"] == {"team": "risk", "stage": ""}
    assert record["metrics"]["auc"] == 0.5
    assert record["aliases"] == ["champion"]
    assert [i["maximum"] for i in record["signature"]["inputs"] if i["name"] == "age"] == [120]


def test_the_record_says_what_made_it_as_far_as_file_publisher_and_this_environment_tell(live, files):
    ran = live("publish", files.model, "--name", "made", "--made-by", "python=3.12.1", "--json")
    made = ran.record["lineage"]["made_by"]
    assert {name: word["said_by"] for name, word in made.items()} == {
        "scikit-learn": "file",
        "numpy": "environment",
        "python": "publisher",
    }
    assert made["numpy"]["version"] == version("numpy")
    assert ran.record["lineage"]["published_from"]["python"] == python_version()
    shown = live("show", "made:1").out
    assert f"made by: scikit-learn {version('scikit-learn')} (read from the file), numpy " in shown
    assert "python 3.12.1 (stated by the publisher)" in shown


def test_a_file_that_is_no_model_is_rejected_with_the_reason_and_exit_code_1(live, files):
    ran = live("publish", files.broken, "--name", "broken")
    assert (ran.code, ran.out) == (1, "")
    assert "broken:1 is rejected: " in ran.err
    assert "pickle" in ran.err
    as_json = live("publish", files.broken, "--name", "broken", "--json")
    assert as_json.code == 1
    assert as_json.record["state"] == "rejected"
    assert as_json.record["report"]["reason"] in as_json.err


def test_no_wait_ends_while_the_version_is_building(live, files):
    ran = live("publish", files.model, "--name", "later", "--no-wait", "--json")
    assert ran.code == 0
    assert ran.record["state"] == "building"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--example", "{broken}"], ".csv, .parquet, .json"),
        (["--metric", "auc=high"], "auc=high"),
        (["--tag", "alone"], "KEY=VALUE"),
        (["--signature", "{broken}"], "JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
def test_what_cannot_be_sent_is_wrong_usage_and_named(live, files, args, said):
    given = [arg.format(broken=files.broken) for arg in args]
    ran = live("publish", files.model, "--name", "unsent", *given)
    assert ran.code == 2
    assert said in ran.err


def test_a_suffix_that_says_nothing_asks_for_the_format(live, files, tmp_path):
    unnamed = tmp_path / "model.bin"
    unnamed.write_bytes(files.model.read_bytes())
    assert "--format" in live("publish", unnamed, "--name", "unnamed").err
    named = live("publish", unnamed, "--name", "unnamed", "--format", "sklearn-joblib", "--json")
    assert named.record["state"] == "ready"


def test_a_refused_field_is_named_once(live, files):
    ran = live("publish", files.model, "--name", "Not A Name")
    assert ran.code == 1
    assert ran.err.startswith("error: name: ")
    assert ran.err.count("\n") == 1
