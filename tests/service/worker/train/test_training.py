from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import IncrementalPCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, RobustScaler, StandardScaler
from sqlalchemy import func, select

from registry import db, queue, versions
from registry.errors import Invalid
from registry.jobs import jobs
from registry.jobs.tables import JobRow
from registry.tables import AliasRow, VersionRow
from registry.vocabulary import JOB_TASKS
from service.builds.forkserver import ForkServer
from service.worker.train import publish_model
from service.worker.train.stages import TrainingPlan
from tests.service.compiler.fit.datasets import cancer, diabetes, digits, split_frame, without_target
from tests.service.worker.train.trainings import Trainings


@pytest.fixture
def forks(shared_forks: ForkServer) -> ForkServer:
    return shared_forks


@pytest.fixture
def trainings(tmp_path: Path, forks: ForkServer) -> Iterator[Trainings]:
    trainings = Trainings(tmp_path, forks)
    yield trainings
    trainings.engine.dispose()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, shared_forks: ForkServer) -> Trainings:
    """A training of a forest that has published `m:1`, which is not built yet."""
    trainings = Trainings(tmp_path_factory.mktemp("published"), shared_forks)
    job_id = trainings.start(
        RandomForestClassifier(3), split_frame(cancer(), 2), strategy="ensemble",
        publish={"name": "m", "alias": "champion", "tags": {}},
        then={"kind": "score", "input": {"uri": str(trainings.data)}, "passthrough": ["y"]},
    )  # fmt: skip
    while trainings.job(job_id).version is None:
        trainings.worker.step()
    trainings.engine.dispose()
    return trainings


@pytest.fixture
def published(tmp_path: Path, forks: ForkServer, template: Trainings) -> Iterator[Trainings]:
    """A copy of `template` for one test. Its job is `JOB`."""
    shutil.copytree(template.settings.home, tmp_path / "home")
    trainings = Trainings(tmp_path, forks)
    trainings.settings.batch_roots = template.settings.batch_roots
    yield trainings
    trainings.engine.dispose()


JOB = 1
"""The first training of a registry."""


def test_a_pipeline_is_trained_over_files_and_published(trainings: Trainings) -> None:
    pipeline = make_pipeline(StandardScaler(), IncrementalPCA(20), SGDClassifier(loss="log_loss"))
    job = trainings.run(
        trainings.start(
            pipeline, split_frame(digits(), 2), ".csv",
            publish={"name": "m", "alias": "champion", "tags": {"from": "batch"}},
        )
    )  # fmt: skip
    assert (job.state, job.version, job.error) == ("done", 1, None)
    version = trainings.version()
    assert version.state == "ready", version.report
    assert version.description == f"trained by job {job.id}"
    assert version.metrics["accuracy"] > 0.8
    assert set(version.metrics) == {"accuracy", "f1", "log_loss"}
    training = version.lineage["training"]
    assert (training["job"], training["partitions"], training["strategy"]) == (job.id, 2, "partial_fit")
    assert training["rows"] + training["held_out"] == 1797
    assert training["input"]["names"] == [f"part-{n}.csv" for n in range(2)]
    progress = trainings.progress(job.id)
    assert (progress.rows_done, progress.rows_total, progress.rows_failed) == (1797, 1797, 0)
    assert [p.stage for p in trainings.partitions(job.id)][::2][:4] == [
        "00-read", "01-transform", "02-transform", "03-fit",
    ]  # fmt: skip


def test_an_ensemble_has_a_forest_for_each_partition(published: Trainings) -> None:
    assert len(published.model().estimators_) == 6
    assert published.version().metrics["roc_auc"] > 0.9


def test_a_repeated_training_gives_the_same_model(trainings: Trainings) -> None:
    predictions = []
    for number in (1, 2):
        start = trainings.start(
            RandomForestClassifier(3), split_frame(cancer(), 2),
            strategy="ensemble", sampling="stratified", partitions=3,
        )  # fmt: skip
        assert trainings.run(start).version == number
        predictions.append(trainings.model(number).predict_proba(without_target(cancer())))
    np.testing.assert_array_equal(*predictions)
    assert trainings.version(1).metrics == trainings.version(2).metrics


def test_a_regression_is_measured_by_its_errors(trainings: Trainings) -> None:
    job = trainings.run(
        trainings.start(make_pipeline(StandardScaler(), SGDRegressor()), split_frame(diabetes(), 2))
    )
    assert job.state == "done", job.error
    assert set(trainings.version().metrics) == {"r2", "mae", "rmse"}


def test_an_estimator_without_partial_fit_fails_at_planning_with_its_name(trainings: Trainings) -> None:
    job = trainings.run(
        trainings.start(make_pipeline(RobustScaler(), SGDClassifier()), split_frame(cancer(), 3))
    )
    assert job.state == "failed"
    assert "RobustScaler (step 'robustscaler') has no partial_fit" in str(job.error)
    assert trainings.partitions(job.id) == []


def test_validation_rows_are_not_trained_on_and_give_the_metrics(trainings: Trainings) -> None:
    table = cancer().assign(row=np.arange(569.0))
    job = trainings.run(trainings.start(KNeighborsClassifier(1), split_frame(table, 2), strategy="single"))
    assert job.state == "done", job.error
    trained_rows = set(trainings.model()._fit_X[:, -1].astype(int).tolist())
    version = trainings.version()
    example = pq.read_table(trainings.store.path(version.example["artifact"])).to_pandas()
    validation_rows = set(example.row.astype(int))
    assert trained_rows | validation_rows == set(range(569))
    assert not trained_rows & validation_rows
    plan = msgspec.convert(job.plan, TrainingPlan)
    assert (plan.rows, plan.held_out) == (len(trained_rows), len(validation_rows))
    malignant = example.y.eq("malignant").mean()
    assert abs(malignant - 212 / 569) < 0.02
    correct = trainings.model().predict(without_target(example)) == example.y
    assert version.metrics["accuracy"] == pytest.approx(correct.mean())


@pytest.fixture(scope="module")
def without_validation(
    tmp_path_factory: pytest.TempPathFactory, shared_forks: ForkServer
) -> Iterator[Trainings]:
    """A finished training of a forest in three partitions, without validation. Its job is `JOB`."""
    trainings = Trainings(tmp_path_factory.mktemp("without_validation"), shared_forks)
    job = trainings.run(
        trainings.start(
            RandomForestClassifier(3),
            split_frame(cancer(), 2),
            strategy="ensemble",
            partitions=3,
            validation=0,
        )
    )
    assert job.state == "done", job.error
    yield trainings
    trainings.engine.dispose()


def test_without_validation_all_rows_are_trained_on_and_nothing_is_measured(
    without_validation: Trainings,
) -> None:
    assert without_validation.version().metrics == {}
    assert (without_validation.job(JOB).manifest or {})["rows"] == 569
    stages = {p.stage for p in without_validation.partitions(JOB)}
    assert stages == {"00-read", "01-fit", "02-merge"}


def test_the_rows_are_distributed_to_the_requested_number_of_partitions(
    without_validation: Trainings,
) -> None:
    assert len(without_validation.model().estimators_) == 9
    fits = [p.rows for p in without_validation.partitions(JOB) if p.stage == "01-fit"]
    assert max(fits) - min(fits) <= 2


def test_balanced_sampling_trains_on_the_same_number_of_rows_per_class(trainings: Trainings) -> None:
    table = cancer().assign(row=np.arange(569.0))
    job = trainings.run(
        trainings.start(
            KNeighborsClassifier(1),
            split_frame(table, 2),
            strategy="single",
            sampling="balanced",
            validation=0,
        )
    )
    assert job.state == "done", job.error
    trained_classes = table.y.to_numpy()[trainings.model()._fit_X[:, -1].astype(int)]
    assert dict(zip(*np.unique(trained_classes, return_counts=True), strict=True)) == {
        "benign": 212,
        "malignant": 212,
    }
    assert (job.manifest or {})["rows"] == 424


def test_a_file_with_other_columns_is_rejected_naming_the_file_and_the_column(trainings: Trainings) -> None:
    parts = split_frame(cancer(), 4)
    parts[3] = parts[3].rename(columns={"mean_radius": "radius"})
    with pytest.raises(Invalid, match=r"part-3.parquet.*mean_radius"):
        trainings.start(SGDClassifier(), parts)


def test_an_input_without_the_target_is_rejected(trainings: Trainings) -> None:
    with pytest.raises(Invalid, match="the target 'label' is not a column of the input"):
        trainings.start(SGDClassifier(), split_frame(cancer(), 2), target="label")


def test_an_input_that_changed_since_it_was_planned_fails_the_job(trainings: Trainings) -> None:
    parts = split_frame(cancer(), 4)
    job_id = trainings.start(SGDClassifier(), parts, max_attempts=1)
    trainings.worker.step()  # planned
    parts[3].iloc[::-1].to_parquet(trainings.data / "part-3.parquet")
    job = trainings.run(job_id)
    assert job.state == "failed"
    assert "part-3.parquet" in str(job.error)


def test_a_column_with_different_types_in_two_files_is_rejected(trainings: Trainings) -> None:
    parts = split_frame(cancer(), 4)
    parts[3]["mean_radius"] = parts[3].mean_radius.astype(str) + " cm"
    message = 'column "mean_radius" is double in "part-0.csv" and string in "part-3.csv"'
    with pytest.raises(Invalid, match=message):
        trainings.start(SGDClassifier(), parts, ".csv")
    trainings.start(SGDClassifier(), parts, ".csv", exclude=["mean_radius"])


def test_a_cell_of_another_type_fails_naming_its_column_and_dtypes_fixes_it(
    trainings: Trainings,
) -> None:
    table = pd.concat([cancer()] * 12)  # more than the sample that the types are inferred from
    table["worst_area"] = table["worst_area"].round().astype(int).astype(object)
    table.iloc[-1, table.columns.get_loc("worst_area")] = 2.5
    job = trainings.run(trainings.start(SGDClassifier(), [table], ".csv"))
    assert job.state == "failed"
    assert "column \"worst_area\": invalid value '2.5'; set the column's type" in str(job.error)
    job = trainings.run(trainings.start(SGDClassifier(), [table], ".csv", dtypes={"worst_area": "float64"}))
    assert job.state == "done", job.error


def test_missing_values_fail_the_job_with_the_message_of_the_estimator(trainings: Trainings) -> None:
    parts = split_frame(cancer(), 2)
    parts[1].loc[5, "mean_radius"] = np.nan
    job = trainings.run(trainings.start(SGDClassifier(), parts, validation=0))
    assert job.state == "failed"
    assert "partition 01-fit/1" in str(job.error)
    assert "Input X contains NaN" in str(job.error)


def test_rows_without_a_target_are_counted_and_not_trained_on(trainings: Trainings) -> None:
    parts = split_frame(diabetes(), 2)
    parts[0].loc[:9, "y"] = np.nan
    job = trainings.run(trainings.start(SGDRegressor(), parts, validation=0))
    assert job.state == "done", job.error
    progress = trainings.progress(job.id)
    assert (progress.rows_done, progress.rows_failed) == (432, 10)
    assert [(job.manifest or {})[k] for k in ("rows", "rows_without_target")] == [432, 10]


def test_only_the_running_step_of_a_dead_worker_runs_again(trainings: Trainings) -> None:
    job_id = trainings.start(
        make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss")), split_frame(cancer(), 3)
    )
    for _ in range(7):  # plan, 3 partitions to read, assemble, two partitions of the scaler's pass
        trainings.worker.step()
    before = {(p.stage, p.number): p.result for p in trainings.partitions(job_id) if p.result}
    assert len(before) == 5, before
    claim_and_die(trainings)
    trainings.worker = trainings.new_worker()
    job = trainings.run(job_id)
    assert job.state == "done", job.error
    after = {(p.stage, p.number): p.result for p in trainings.partitions(job_id)}
    assert {path: after[path] for path in before} == before, "finished partitions did not run again"
    scaler = StandardScaler().fit(without_target(cancer()))
    assert trainings.model()[0].n_samples_seen_ == trainings.version().lineage["training"]["rows"]
    assert trainings.model()[0].mean_.shape == scaler.mean_.shape


def claim_and_die(trainings: Trainings) -> None:
    """Act as a worker that claims a task and dies: its lease has expired already."""
    with trainings.sessions.begin() as session:
        assert queue.claim(session, JOB_TASKS, "dead", lease_s=-1.0) is not None


def test_a_failed_training_continues_when_it_is_resumed(trainings: Trainings) -> None:
    parts = split_frame(cancer(), 2)
    job_id = trainings.start(SGDClassifier(loss="log_loss"), parts, ".csv", max_attempts=1)
    trainings.worker.step()
    path = trainings.data / "part-1.csv"
    moved_path = path.rename(trainings.data / "aside")
    job = trainings.run(job_id)
    assert job.state == "failed"
    moved_path.rename(path)
    with trainings.sessions.begin() as session:
        jobs.resume(session, job_id)
    job = trainings.run(job_id)
    assert (job.state, job.version) == ("done", 1), job.error


def test_a_rejected_version_fails_the_training_with_its_reason(published: Trainings) -> None:
    with published.sessions.begin() as session:
        versions.reject(session, published.job(JOB).version_id or 0, "the parity check failed")
    while published.job(JOB).state in jobs.OPEN_STATES:
        published.worker.step()
    job = published.job(JOB)
    assert (job.state, job.version) == ("failed", 1)
    assert "m:1 was rejected: the parity check failed" in str(job.error)


def test_the_job_in_then_scores_with_exactly_the_trained_version(published: Trainings) -> None:
    job = published.run(JOB)
    assert job.state == "done", job.error
    with db.reading(published.sessions) as session:
        (child,) = session.scalars(select(JobRow).where(JobRow.parent_id == JOB))
    assert (child.kind, child.model, child.version, child.version_id) == ("score", "m", 1, job.version_id)
    scored = published.run(child.id)
    assert scored.state == "done", scored.error
    assert (scored.manifest or {})["rows"] == 569


def test_a_cancelled_training_publishes_nothing(trainings: Trainings) -> None:
    job_id = trainings.start(RandomForestClassifier(3), split_frame(cancer(), 2), strategy="ensemble")
    for _ in range(5):
        trainings.worker.step()
    with trainings.sessions.begin() as session:
        jobs.cancel(session, job_id)
    trainings.worker.step()
    assert trainings.job(job_id).state == "cancelled"
    with db.reading(trainings.sessions) as session:
        assert session.scalar(select(func.count()).select_from(VersionRow)) == 0


def test_a_training_cancelled_during_its_last_step_publishes_nothing(trainings: Trainings) -> None:
    job_id = trainings.start(RandomForestClassifier(3), split_frame(cancer(), 2), strategy="ensemble")
    publish_version = publish_model._publish_version
    calls: list[int] = []

    def cancel_and_publish(*arguments: Any) -> None:
        calls.append(job_id)
        with trainings.sessions.begin() as session:
            jobs.cancel(session, job_id)
        publish_version(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish_model, "_publish_version", cancel_and_publish)
        assert trainings.run(job_id).state == "cancelled"
        assert calls == [job_id]
    with db.reading(trainings.sessions) as session:
        assert session.scalar(select(func.count()).select_from(VersionRow)) == 0


@pytest.mark.parametrize("moment", ["before its build", "after its build", "while it ends"])
def test_a_training_cancelled_after_it_published_changes_nothing_that_is_served(
    published: Trainings, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel() -> None:
        with published.sessions.begin() as session:
            jobs.cancel(session, JOB)

    if moment == "before its build":
        cancel()
    published.build()
    if moment == "after its build":
        cancel()
        published.worker.step()
    elif moment == "while it ends":  # between the last look at the version and the end of the job
        summary = publish_model.training_summary

        def cancel_and_summarize(job: JobRow, plan: TrainingPlan) -> dict[str, Any]:
            cancel()
            return summary(job, plan)

        monkeypatch.setattr(publish_model, "training_summary", cancel_and_summarize)
    published.run(JOB)
    assert (published.job(JOB).state, published.version().state) == ("cancelled", "ready")
    with db.reading(published.sessions) as session:
        assert session.scalars(select(AliasRow)).all() == []
        assert session.scalars(select(JobRow.id)).all() == [JOB]


def test_a_training_whose_version_is_archived_before_its_end_does_not_move_the_alias(
    published: Trainings,
) -> None:
    published.build()
    with published.sessions.begin() as session:
        versions.edit(session, "m", 1, archived=True)
    job = published.run(JOB)
    assert job.state == "failed"
    assert "champion was not moved: m:1 is archived" in str(job.error)


def mixed() -> list[pd.DataFrame]:
    """Return partitions with numbers and text. Some numbers are missing; no partition has every city."""
    random, n = np.random.default_rng(0), 900
    age, city = random.normal(40, 12, n), random.choice(["Bern", "Oslo", "Rome"], n)
    table = pd.DataFrame({"age": age, "city": city, "visits": random.poisson(3, n)})
    table["y"] = (age > 40) ^ (city == "Oslo")
    table.loc[::17, "age"] = np.nan
    return split_frame(table.sort_values("city", ignore_index=True), 3)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_strings_and_missing_numbers_are_trained_on_as_they_are_served(
    trainings: Trainings, suffix: str
) -> None:
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = ColumnTransformer([("n", numbers, ["age", "visits"]), ("c", OneHotEncoder(), ["city"])])
    job = trainings.run(
        trainings.start(
            make_pipeline(columns, RandomForestClassifier(5)), mixed(), suffix,
            strategy="ensemble", sampling="stratified",
        )
    )  # fmt: skip
    assert job.state == "done", job.error
    version = trainings.version()
    assert version.metrics["accuracy"] > 0.8
    inputs = {i["name"]: i for i in (version.signature or {})["inputs"]}
    assert {name: i["dtype"] for name, i in inputs.items()} == {
        "age": "float64", "city": "string", "visits": "int64",
    }  # fmt: skip
    assert inputs["age"]["nullable"]
    assert inputs["city"]["categories"] == ["Bern", "Oslo", "Rome"]
    assert (version.signature or {})["outputs"][0]["classes"] == [False, True]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_excluded_columns_are_not_features(trainings: Trainings, suffix: str) -> None:
    parts = split_frame(cancer(), 2)
    for part in parts:
        part.insert(0, "patient", [f"P{n}" for n in range(len(part))])
        part["seen"] = pd.Timestamp("2026-01-02").date()
    model = RandomForestClassifier(2)
    if suffix == ".parquet":
        with pytest.raises(Invalid, match='column "seen" is of type date32'):
            trainings.start(model, parts, suffix, strategy="ensemble")
    else:
        job = trainings.run(trainings.start(model, parts, suffix, strategy="ensemble", max_attempts=1))
        assert job.state == "failed"
        assert "text columns: 'patient', 'seen': exclude those that are not features" in str(job.error)

    fields = {"strategy": "ensemble", "exclude": ["patient", "seen"]}
    job = trainings.run(trainings.start(model, parts, suffix, **fields))
    assert job.state == "done", job.error
    version = trainings.version()
    features = [i["name"] for i in (version.signature or {})["inputs"]]
    assert features == [c for c in cancer().columns if c != "y"]
    assert version.lineage["training"]["excluded"] == ["patient", "seen"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_feature_with_one_missing_value_is_nullable(trainings: Trainings, suffix: str) -> None:
    parts = split_frame(cancer(), 2)
    feature = str(parts[0].columns[0])
    parts[0].loc[parts[0].index[1], feature] = np.nan  # a row that is not held out
    job = trainings.run(trainings.start(RandomForestClassifier(2), parts, suffix, strategy="single"))
    assert job.state == "done", job.error
    inputs = (trainings.version().signature or {})["inputs"]
    assert [i["name"] for i in inputs if i["nullable"]] == [feature]


def test_hashed_texts_are_learned_partition_by_partition(trainings: Trainings) -> None:
    random = np.random.default_rng(0)
    words = {"spam": ["win", "money", "now"], "ham": ["see", "you", "soon"]}
    labels = random.choice(list(words), 300)
    texts = [" ".join(random.choice([*words[label], "the", "a"], 8)) for label in labels]
    parts = split_frame(pd.DataFrame({"text": texts, "y": labels}), 2)
    pipeline = make_pipeline(HashingVectorizer(n_features=2**10), SGDClassifier(loss="log_loss"))
    job = trainings.run(trainings.start(pipeline, parts, ".csv"))
    assert job.state == "done", job.error
    assert trainings.version().metrics["accuracy"] > 0.9


def test_a_fit_above_the_memory_limit_fails_the_job(trainings: Trainings) -> None:
    large_model = make_pipeline(PolynomialFeatures(5), SGDClassifier())
    trainings.settings.build_memory_mb = 1024
    job = trainings.run(trainings.start(large_model, split_frame(cancer(), 2), strategy="single"))
    assert job.state == "failed"
    assert "more memory than" in str(job.error)
    assert "1024 MB" in str(job.error)


def test_a_missing_file_of_an_earlier_step_fails_the_job_naming_the_file(trainings: Trainings) -> None:
    job_id = trainings.start(SGDClassifier(loss="log_loss"), split_frame(cancer(), 2))
    while not any(p.stage == "01-fit" for p in trainings.partitions(job_id)):
        trainings.worker.step()
    file = trainings.settings.jobs_directory / str(job_id) / "00-read-000001-1.arrow"
    file.unlink()
    job = trainings.run(job_id)
    assert job.state == "failed"
    assert "the file 00-read-000001-1.arrow of an earlier step is missing" in str(job.error)


def test_a_target_with_one_class_fails_the_job(trainings: Trainings) -> None:
    job = trainings.run(trainings.start(SGDClassifier(), split_frame(cancer().assign(y="benign"), 2)))
    assert job.state == "failed"
    assert "the target 'y' is 'benign' in every row" in str(job.error)


def test_sampling_by_class_is_rejected_for_a_regressor(trainings: Trainings) -> None:
    job = trainings.run(trainings.start(SGDRegressor(), split_frame(diabetes(), 2), sampling="balanced"))
    assert "sampling balanced needs classes, but SGDRegressor is a regressor" in str(job.error)


def test_a_regressor_rejects_a_target_of_text(trainings: Trainings) -> None:
    job = trainings.run(trainings.start(SGDRegressor(), split_frame(cancer(), 2)))
    assert "the target 'y' holds text, but SGDRegressor predicts numbers" in str(job.error)


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_training_runs_on_postgresql_too(tmp_path: Path, forks: ForkServer, url: str) -> None:
    trainings = Trainings(tmp_path, forks, url)
    job = trainings.run(
        trainings.start(
            make_pipeline(StandardScaler(), RandomForestClassifier(3)), split_frame(digits(), 2),
            strategy="ensemble", sampling="balanced", partitions=2,
        )
    )  # fmt: skip
    assert (job.state, job.version) == ("done", 1), job.error
    assert trainings.version().metrics["accuracy"] > 0.7
    assert list(trainings.model().classes_) == list(range(10))
    trainings.engine.dispose()
