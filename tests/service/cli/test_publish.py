"""`trivium publish` against a real server and its real builder."""

from __future__ import annotations

from importlib.metadata import version
from platform import python_version

import msgspec
import pytest


def test_a_published_model_is_ready_when_the_command_ends(live, files, unique_name):
    result = live(
        *("publish", files.model, "--name", unique_name, "--example", files.example, "--target", "good"),
        *("--alias", "champion"),
    )
    assert result.code == 0, result.err
    assert f"{unique_name}:1 is ready on onnx" in result.out
    assert f"{unique_name}@champion is version 1" in result.out
    assert "label mismatches" in result.out


def test_json_prints_only_the_version_record(live, files, unique_name):
    result = live("publish", files.model, "--name", unique_name, "--example", files.example, "--json")
    assert result.code == 0, result.err
    assert (result.record["model"], result.record["version"], result.record["state"]) == (
        unique_name,
        1,
        "ready",
    )
    assert result.record["signature"]["task"] == "classification"


def test_the_options_of_publish_are_in_the_record(live, files, tmp_path, unique_name):
    corrected = tmp_path / "signature.json"
    corrected.write_bytes(
        msgspec.json.encode({"inputs": [{"name": "age", "nullable": False, "maximum": 120}]})
    )
    result = live(
        *("publish", files.model, "--name", unique_name, "--json", "--description", "a first try"),
        *("--tag", "team=risk", "--tag", "stage=", "--metric", "auc=0.5", "--alias", "champion"),
        *("--example", files.example, "--target", "good", "--signature", corrected),
    )
    assert result.code == 0, result.err
    record = result.record
    assert record["description"] == "a first try"
    assert record["tags"] == {"team": "risk", "stage": ""}
    assert record["metrics"]["auc"] == 0.5
    assert record["aliases"] == ["champion"]
    assert [i["maximum"] for i in record["signature"]["inputs"] if i["name"] == "age"] == [120]


def test_the_record_contains_library_versions_of_file_publisher_and_environment(live, files, unique_name):
    result = live("publish", files.model, "--name", unique_name, "--made-by", "python=3.12.1", "--json")
    libraries = result.record["lineage"]["made_by"]
    assert {name: library["said_by"] for name, library in libraries.items()} == {
        "scikit-learn": "file",
        "numpy": "environment",
        "python": "publisher",
    }
    assert libraries["numpy"]["version"] == version("numpy")
    assert result.record["lineage"]["published_from"]["python"] == python_version()
    description = live("show", f"{unique_name}:1").out
    assert f"made by: scikit-learn {version('scikit-learn')} (read from the file), numpy " in description
    assert "python 3.12.1 (stated by the publisher)" in description


def test_a_file_that_is_not_a_model_is_rejected_with_a_reason_and_exit_code_1(live, files, unique_name):
    result = live("publish", files.broken, "--name", unique_name)
    assert (result.code, result.out) == (1, "")
    assert f"{unique_name}:1 is rejected: " in result.err
    assert "pickle" in result.err
    as_json = live("publish", files.broken, "--name", unique_name, "--json")
    assert as_json.code == 1
    assert as_json.record["state"] == "rejected"
    assert as_json.record["report"]["reason"] in as_json.err


def test_no_wait_ends_while_the_version_is_building(live, files, unique_name):
    result = live("publish", files.model, "--name", unique_name, "--no-wait", "--json")
    assert result.code == 0
    assert result.record["state"] == "building"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--example", "{broken}"], ".csv, .parquet, .json"),
        (["--metric", "auc=high"], "auc=high"),
        (["--tag", "alone"], "KEY=VALUE"),
        (["--signature", "{broken}"], "JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ",
)
def test_invalid_options_are_wrong_usage_and_named(live, files, args, message):
    options = [arg.format(broken=files.broken) for arg in args]
    result = live("publish", files.model, "--name", "unsent", *options)
    assert result.code == 2
    assert message in result.err


def test_an_unknown_suffix_requires_the_format_option(live, files, tmp_path, unique_name):
    unnamed = tmp_path / "model.bin"
    unnamed.write_bytes(files.model.read_bytes())
    assert "set --format sklearn-joblib" in live("publish", unnamed, "--name", unique_name).err
    published = live("publish", unnamed, "--name", unique_name, "--format", "sklearn-joblib", "--json")
    assert published.record["state"] == "ready"


def test_a_file_of_an_unknown_suffix_is_named_by_its_content(live, tmp_path):
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    result = live("publish", tmp_path / "model.h5", "--name", "unsent")
    assert result.code == 2
    assert "model.h5 is an HDF5 file (.h5): save a Keras model as .keras" in " ".join(result.err.split())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    result = live("publish", tmp_path / "saved", "--name", "unsent", "--format", "keras")
    assert "saved is a TensorFlow SavedModel: save the Keras model" in " ".join(result.err.split())


def test_an_invalid_field_is_named_once(live, files):
    result = live("publish", files.model, "--name", "Not A Name")
    assert result.code == 1
    assert result.err.startswith("error: name: ")
    assert result.err.count("\n") == 1


def test_answers_of_the_model_are_compared_and_other_answers_reject_the_version(
    live, files, tmp_path, unique_name
):
    answers = tmp_path / "answers.csv"
    labels = ["no", "no", "no", "yes", "yes", "yes", "no", "yes"]
    options = ("--name", unique_name, "--example", files.example, "--target", "good", "--answers", answers)
    answers.write_text("label\n" + "\n".join(labels))
    right = live("publish", files.model, *options)
    assert right.code == 0, right.err
    assert "publisher's answers: 8 rows compared: 0 label mismatches" in right.out
    answers.write_text("label\n" + "\n".join(["yes", *labels[1:]]))
    wrong = live("publish", files.model, *options)
    assert (wrong.code, wrong.out) == (1, "")
    assert f"{unique_name}:2 is rejected: the version does not give the publisher's answers" in wrong.err
    assert '  row 0, label: "no", the answers have "yes"' in wrong.err


def test_answers_without_an_example_are_wrong_usage(trivium, files):
    result = trivium("publish", files.model, "--name", "m", "--answers", files.example)
    assert result.code == 2
    assert "--answers needs --example" in result.err
