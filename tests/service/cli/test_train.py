"""`trivium train` against a real server and its real worker."""

from __future__ import annotations

import joblib
import msgspec
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler

from tests.service.compiler.fit.datasets import cancer, split_frame


@pytest.fixture
def data(server, unique_name):
    """Two files below the server's batch root."""
    folder = server.root / unique_name
    folder.mkdir()
    for number, part in enumerate(split_frame(cancer(), 2)):
        part.to_csv(folder / f"part-{number}.csv", index=False)
    return folder


@pytest.fixture
def save(tmp_path):
    def save(estimator):
        joblib.dump(estimator, tmp_path / "estimator.joblib")
        return tmp_path / "estimator.joblib"

    return save


def test_a_training_publishes_a_version_that_predicts(live, save, data, tmp_path, unique_name):
    result = live(
        *("train", save(make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss"))), data),
        *("--name", unique_name, "--target", "y", "--strategy", "partial_fit", "--alias", "champion"),
        *("--tag", "from=files"),
    )
    assert result.code == 0, result.err
    assert result.out.startswith(f"{unique_name}:1 was trained on 45")
    assert "in 2 partitions; on 11" in result.out
    assert "accuracy=0.9" in result.out
    assert result.err.endswith(": done\n")  # without a terminal, lines replace the progress bar
    description = live("show", f"{unique_name}@champion").out
    assert "trained by job" in description
    assert "from=files" in description
    rows = tmp_path / "rows.json"
    rows.write_bytes(msgspec.json.encode(cancer().drop(columns="y").head(3).to_dict("records")))
    assert "malignant" in live("predict", unique_name, rows).out


def test_an_uploaded_file_is_split_into_partitions_for_an_ensemble(live, server, save, tmp_path, unique_name):
    file = tmp_path / "rows.parquet"
    cancer().to_parquet(file)
    result = live(
        *("train", save(RandomForestClassifier(3)), file, "--name", unique_name, "--target", "y"),
        *("--strategy", "ensemble", "--sampling", "stratified", "--partitions", "3", "--json"),
    )
    assert result.code == 0, result.err
    record = msgspec.json.decode(result.out)
    assert (record["state"], record["version"], record["rows_done"]) == ("done", 1, 569)
    assert (record["manifest"]["partitions"], record["manifest"]["sampling"]) == (3, "stratified")
    assert record["manifest"]["metrics"]["roc_auc"] > 0.9


def test_excluded_columns_are_not_features(live, save, data, unique_name):
    result = live(
        *("train", save(RandomForestClassifier(2)), data, "--name", unique_name, "--target", "y"),
        *("--strategy", "ensemble", "--exclude", "mean_radius", "--exclude", "mean_area"),
    )
    assert result.code == 0, result.err
    description = live("show", f"{unique_name}:1", "--json")
    inputs = {i["name"] for i in msgspec.json.decode(description.out)["signature"]["inputs"]}
    assert inputs == {*cancer().columns} - {"y", "mean_radius", "mean_area"}


def test_an_estimator_without_partial_fit_is_refused_by_name(live, save, data, unique_name):
    result = live(
        *("train", save(make_pipeline(RobustScaler(), SGDClassifier())), data),
        *("--name", unique_name, "--target", "y", "--strategy", "partial_fit"),
    )
    assert result.code == 1
    assert "RobustScaler (step 'robustscaler') has no partial_fit" in result.err


def test_the_dtype_option_is_validated(live, save, data, unique_name):
    command = (
        "train",
        save(SGDClassifier()),
        data,
        "--name",
        unique_name,
        "--strategy",
        "single",
        "--target",
        "y",
    )
    result = live(*command, "--dtype", "mean_radius=float64", "--dtype", "missing=string", "--json")
    assert (result.code, "dtypes: the input has no column 'missing'" in result.err) == (1, True)
    result = live(*command, "--dtype", "mean_radius=float32")
    assert (result.code, "dtypes.mean_radius" in result.err) == (1, True)


def test_a_missing_target_column_is_refused_before_a_job_starts(live, save, data):
    command = ("train", save(SGDClassifier()), data, "--name", "nothing", "--strategy", "single")
    result = live(*command, "--target", "label")
    assert result.code == 1
    assert "the target 'label' is not a column of the input" in result.err
    assert live("jobs", "--model", "nothing", "--json").record["items"] == []


def test_a_training_continues_after_its_command_ends(live, save, data, unique_name):
    command = (
        "train",
        save(SGDClassifier()),
        data,
        "--name",
        unique_name,
        "--strategy",
        "single",
        "--target",
        "y",
    )
    result = live(*command, "--no-wait", "--json")
    assert result.code == 0, result.err
    job = msgspec.json.decode(result.out)["id"]
    assert live("jobs", "watch", job).code == 0
    assert unique_name in live("models").out
    assert (
        f"publishes a version, {unique_name}:1" in live("jobs", "output", job, "--out", "scores.parquet").err
    )


def test_a_schedule_shows_the_scoring_that_follows_its_training(live, save, data, tmp_path, unique_name):
    trained = live(
        *("train", save(SGDClassifier(loss="log_loss")), data, "--name", unique_name, "--target", "y"),
        *("--strategy", "partial_fit", "--no-wait", "--json"),
    )
    spec = trained.record["spec"]
    then = {"kind": "score", "input": {"uri": data.as_uri()}}
    job = {k: spec[k] for k in ("kind", "estimator", "input", "target", "strategy", "publish")}
    file = tmp_path / "job.json"
    file.write_bytes(msgspec.json.encode(job | {"then": then}))
    created = live("schedules", "create", unique_name, "--job", file, "--every", "1d")
    assert created.code == 0, created.err
    description = live("schedules", "show", unique_name).out
    assert f"starts: train {unique_name} on {data.as_uri()}" in description
    assert f"then scores {data.as_uri()} with the trained version" in description
    assert live("schedules", "delete", unique_name).code == 0
    live("jobs", "cancel", trained.record["id"])  # its result is not used
