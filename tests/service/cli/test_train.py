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
def data(server, request):
    """Four files where the server may read."""
    folder = server.root / request.node.name
    folder.mkdir()
    for number, part in enumerate(split_frame(cancer(), 4)):
        part.to_csv(folder / f"part-{number}.csv", index=False)
    return folder


@pytest.fixture
def saved(tmp_path):
    def saved(estimator):
        joblib.dump(estimator, tmp_path / "estimator.joblib")
        return tmp_path / "estimator.joblib"

    return saved


def test_a_training_ends_as_a_version_that_answers(live, saved, data, tmp_path):
    ran = live(
        *("train", saved(make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss"))), data),
        *("--name", "trained", "--target", "y", "--strategy", "partial_fit", "--alias", "champion"),
        *("--tag", "from=files"),
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith("trained:1 was trained on 45")
    assert "in 4 partitions; on 11" in ran.out
    assert "accuracy=0.9" in ran.out
    assert ran.err.endswith(": done\n")  # lines stand for a bar where there is no terminal
    shown = live("show", "trained@champion").out
    assert "trained by job" in shown
    assert "from=files" in shown
    rows = tmp_path / "rows.json"
    rows.write_bytes(msgspec.json.encode(cancer().drop(columns="y").head(3).to_dict("records")))
    assert "malignant" in live("predict", "trained", rows).out


def test_an_ensemble_of_one_uploaded_file_is_dealt_into_partitions(live, server, saved, tmp_path):
    file = tmp_path / "rows.parquet"
    cancer().to_parquet(file)
    ran = live(
        *("train", saved(RandomForestClassifier(5)), file, "--name", "dealt", "--target", "y"),
        *("--strategy", "ensemble", "--sampling", "stratified", "--partitions", "4", "--json"),
    )
    assert ran.code == 0, ran.err
    record = msgspec.json.decode(ran.out)
    assert (record["state"], record["version"], record["rows_done"]) == ("done", 1, 569)
    assert (record["manifest"]["partitions"], record["manifest"]["sampling"]) == (4, "stratified")
    assert record["manifest"]["metrics"]["roc_auc"] > 0.9


def test_columns_that_are_no_features_are_left_out(live, saved, data):
    ran = live(
        *("train", saved(RandomForestClassifier(5)), data, "--name", "narrow", "--target", "y"),
        *("--strategy", "ensemble", "--exclude", "mean_radius", "--exclude", "mean_area"),
    )
    assert ran.code == 0, ran.err
    shown = live("show", "narrow:1", "--json")
    inputs = {i["name"] for i in msgspec.json.decode(shown.out)["signature"]["inputs"]}
    assert inputs == {*cancer().columns} - {"y", "mean_radius", "mean_area"}


def test_what_cannot_be_trained_so_ends_with_exit_code_1_and_its_name(live, saved, data):
    ran = live(
        *("train", saved(make_pipeline(RobustScaler(), SGDClassifier())), data),
        *("--name", "refused", "--target", "y", "--strategy", "partial_fit"),
    )
    assert ran.code == 1
    assert "RobustScaler (step 'robustscaler') has no partial_fit" in ran.err


def test_a_column_is_what_dtype_says(live, saved, data):
    order = (
        "train",
        saved(SGDClassifier()),
        data,
        "--name",
        "typed",
        "--strategy",
        "single",
        "--target",
        "y",
    )
    ran = live(*order, "--dtype", "mean_radius=float64", "--dtype", "nobody=string", "--json")
    assert (ran.code, "dtypes: the input has no column 'nobody'" in ran.err) == (1, True)
    ran = live(*order, "--dtype", "mean_radius=float32")
    assert (ran.code, "dtypes.mean_radius" in ran.err) == (1, True)


def test_a_target_that_is_no_column_is_refused_before_anything_is_enqueued(live, saved, data):
    order = ("train", saved(SGDClassifier()), data, "--name", "nothing", "--strategy", "single")
    ran = live(*order, "--target", "label")
    assert ran.code == 1
    assert "the target 'label' is not a column of the input" in ran.err
    assert live("jobs", "--model", "nothing", "--json").record["items"] == []


def test_a_training_goes_on_without_whoever_started_it(live, saved, data):
    order = (
        "train",
        saved(SGDClassifier()),
        data,
        "--name",
        "alone",
        "--strategy",
        "single",
        "--target",
        "y",
    )
    ran = live(*order, "--no-wait", "--json")
    assert ran.code == 0, ran.err
    job = msgspec.json.decode(ran.out)["id"]
    assert live("jobs", "watch", job).code == 0
    assert "alone" in live("models").out
    assert "publishes a version, alone:1" in live("jobs", "output", job, "--out", "scores.parquet").err


def test_a_schedule_says_what_is_scored_with_what_it_trains(live, saved, data, tmp_path):
    trained = live(
        *("train", saved(SGDClassifier(loss="log_loss")), data, "--name", "nightly", "--target", "y"),
        *("--strategy", "partial_fit", "--no-wait", "--json"),
    )
    spec = trained.record["spec"]
    then = {"kind": "score", "input": {"uri": data.as_uri()}}
    job = {k: spec[k] for k in ("kind", "estimator", "input", "target", "strategy", "publish")}
    file = tmp_path / "job.json"
    file.write_bytes(msgspec.json.encode(job | {"then": then}))
    made = live("schedules", "create", "nightly", "--job", file, "--every", "1d")
    assert made.code == 0, made.err
    shown = live("schedules", "show", "nightly").out
    assert f"starts: train nightly on {data.as_uri()}" in shown
    assert f"then scores {data.as_uri()} with the trained version" in shown
    assert live("schedules", "delete", "nightly").code == 0
    assert live("jobs", "watch", trained.record["id"]).code == 0
