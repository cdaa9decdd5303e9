"""Scoring without a server: counts of rows, thresholds, numbers in the errors file, missing parts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry import queue
from registry.artifacts import Store
from registry.db import Sessions
from registry.errors import Invalid, StaleTask
from registry.jobs import jobs
from registry.jobs.jobs import NewJob, NewPartition
from registry.jobs.tables import JobRow, PartitionRow
from registry.rows import Outputs, Rows
from registry.signature import Input, Output, Signature
from registry.tables import now
from registry.vocabulary import JOB_TASKS, SCORE
from service.builds.forkserver import ForkServer
from service.config import Settings
from service.formats import dataset as dataset_module
from service.formats import reading
from service.formats.dataset import Batch
from service.runtime.loading import RuntimeSpec
from service.runtime.row_refusals import RowScorer
from service.worker import score_work
from service.worker.job_work import (
    PartitionResult,
    PartsMissing,
    PermanentFailure,
    WorkContext,
    describe_failure,
)
from service.worker.lane_models import LaneModels
from service.worker.score_work import ScoreWork, _failure_reason, score_range

SIGNATURE = Signature("regression", (Input("x0", "float64"),), (Output("value", "float64", (-1,)),))
CSV = "text/csv"
SPEC: dict[str, Any] = {"output": {"media_type": CSV}, "id_column": "id", "input": {"uri": "/data"}}


class DoublingRuntime:
    """A model that doubles its only feature. It refuses 13."""

    bytes = 1

    def run(self, rows: Rows) -> Outputs:
        assert rows.matrix is not None
        assert len(rows.matrix), "a model is not called without rows"
        if 13 in rows.matrix:
            raise Invalid("the model refuses these rows: 13")
        return {"value": 2 * rows.matrix[:, 0]}

    def close(self) -> None:
        pass


class Scored:
    """The result of `score_range`, its reports of progress, and its files."""

    def __init__(self, directory: Path, cells: Sequence[str]) -> None:
        directory.mkdir()
        (directory / "input.csv").write_text("id,x0\n" + "".join(f"{i},{c}\n" for i, c in enumerate(cells)))
        dataset = reading.open_dataset(str(directory / "input.csv"), CSV)
        (part,) = reading.split(dataset)
        self.reports: list[tuple[int, int]] = []
        self.directory = directory
        self.result: PartitionResult = score_range(
            dataset, part, SPEC, SIGNATURE, RowScorer(DoublingRuntime().run), directory / "part-7",
            lambda rows, failed: self.reports.append((rows, failed)),
        )  # fmt: skip

    def lines(self, name: str) -> list[list[str]]:
        with (self.directory / name).open(newline="") as file:
            return list(csv.reader(file))


@pytest.mark.parametrize(
    ("cells", "batches"),
    [
        ([], []),
        (["1"], [(1, 0)]),
        (["x"], [(0, 1)]),
        (["1", "2", "3"], [(3, 0)]),
        (["1", "2", "x", "3"], [(2, 1), (3, 1)]),
        (["x", "x", "x", "1", "2", "y"], [(0, 3), (2, 4)]),
        (["1", "2", "3", "4", "5", "6", "x"], [(3, 0), (6, 0), (6, 1)]),
    ],
    ids=str,
)
def test_rows_and_failed_rows_are_counted_after_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[str], batches: list[tuple[int, int]]
) -> None:
    """Batches have three rows. A report before each batch, and one of all rows at the end."""
    monkeypatch.setattr(dataset_module, "BATCH_ROWS", 3)
    scored = Scored(tmp_path / "data", cells)
    valid = [i for i, cell in enumerate(cells) if cell.isdigit()]
    invalid = [i for i, cell in enumerate(cells) if not cell.isdigit()]
    result = scored.result
    assert (result.rows, result.failed) == (len(valid), len(invalid))
    assert scored.reports == ([(0, 0), *batches] if cells else [(0, 0)])
    entry = result.result
    assert (entry["file"], entry["rows"], entry["failed"]) == ("part-7.csv", len(valid), len(invalid))
    assert entry["bytes"] == (scored.directory / "part-7.csv").stat().st_size
    assert scored.lines("part-7.csv") == [
        ["id", "value"],
        *([str(i), format(2 * float(cells[i]), "g")] for i in valid),
    ]
    assert entry["errors"] == ("part-7.errors.csv" if invalid else None)
    if invalid:
        rows = scored.lines("part-7.errors.csv")[1:]
        assert [(r[0], r[1], r[2]) for r in rows] == [(str(i), str(i), "x0") for i in invalid]


def test_rows_that_the_model_refuses_are_listed_with_their_ids_among_the_invalid_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "BATCH_ROWS", 4)
    scored = Scored(tmp_path / "data", ["1", "x", "13", "2", "13", "13", "3"])
    assert (scored.result.rows, scored.result.failed) == (3, 4)
    assert scored.lines("part-7.csv") == [["id", "value"], ["0", "2"], ["3", "4"], ["6", "6"]]
    errors = scored.lines("part-7.errors.csv")[1:]
    assert [(e[0], e[1], e[2]) for e in errors] == [
        ("1", "1", "x0"), ("2", "2", ""), ("4", "4", ""), ("5", "5", "")
    ]  # fmt: skip
    assert {e[3] for e in errors[1:]} == {"the model refuses this row: 13"}


def test_an_error_of_the_report_leaves_no_files(tmp_path: Path) -> None:
    def cancel(rows: int, failed: int) -> None:
        if rows:
            raise StaleTask(1)

    (tmp_path / "input.csv").write_text("id,x0\n0,1\n1,x\n")
    dataset = reading.open_dataset(str(tmp_path / "input.csv"), CSV)
    (part,) = reading.split(dataset)
    with pytest.raises(StaleTask):
        score_range(
            dataset, part, SPEC, SIGNATURE, RowScorer(DoublingRuntime().run), tmp_path / "part", cancel
        )
    assert [path.name for path in tmp_path.iterdir()] == ["input.csv"]


@pytest.mark.parametrize(
    ("threshold", "rows", "failed", "reason"),
    [
        (None, 0, 0, None),
        (None, 1, 0, None),
        (None, 1, 999, None),
        (None, 0, 1, "each of the 1 rows failed"),
        (0.0, 0, 0, None),
        (0.0, 1, 0, None),
        (0.0, 999, 1, "1 of 1000 rows failed (0.10%), the threshold is 0.00%"),
        (0.25, 3, 1, None),  # exactly reached
        (0.25, 2, 1, "1 of 3 rows failed (33.33%), the threshold is 25.00%"),
        (0.25, 30, 10, None),
        (0.25, 30, 11, "11 of 41 rows failed (26.83%), the threshold is 25.00%"),
        (0.25, 29, 10, "10 of 39 rows failed (25.64%), the threshold is 25.00%"),
        (1.0, 0, 5, None),
        (0.5, 0, 5, "5 of 5 rows failed (100.00%), the threshold is 50.00%"),
    ],
)
def test_a_job_fails_beyond_its_threshold(
    threshold: float | None, rows: int, failed: int, reason: str | None
) -> None:
    actual = _failure_reason(threshold, rows, failed)
    assert actual == reason or (reason is not None and actual is not None and actual.startswith(reason))


class Site:
    """A `ScoreWork` on a database and a store of the test."""

    def __init__(self, sessions: Sessions, store: Store, home: Path) -> None:
        self.sessions, self.store = sessions, store
        self.settings = Settings(home=home)
        models = LaneModels(lambda version_id: DoublingRuntime(), lambda runtime: True)
        self.work = ScoreWork(WorkContext(self.settings, sessions, store, models, ForkServer()))

    def job(self, **spec: Any) -> JobRow:
        files = [{"name": f"{n}.csv"} for n in range(3)]
        return JobRow(id=5, kind=SCORE, spec=SPEC | spec, plan={"dataset": {"files": files}}, max_attempts=3)

    def partition(self, number: int, rows: int, failures: Sequence[int] = (), file: int = 0) -> PartitionRow:
        """Write the files of a finished partition of `rows` rows, in which `failures` failed."""
        directory = self.settings.job_directory(5)
        directory.mkdir(parents=True, exist_ok=True)
        valid = [i for i in range(rows) if i not in failures]
        text = "id,value\n" + "".join(f"{number}.{i},1\n" for i in valid)
        (directory / f"{number}.csv").write_text(text)
        if failures:
            lines = "".join(f"{i},,x0,bad\r\n" for i in failures)
            (directory / f"{number}.errors.csv").write_text(f"row,id,field,message\r\n{lines}", newline="")
        result = {
            "file": f"{number}.csv",
            "rows": len(valid),
            "failed": len(failures),
            "bytes": len(text),
            "errors": f"{number}.errors.csv" if failures else None,
        }
        return PartitionRow(
            job_id=5, stage=jobs.SCORE_STAGE, number=number, part={"file": file},
            rows=len(valid), failed=len(failures), rows_total=rows, result=result,
        )  # fmt: skip

    def text(self, digest: str | None) -> str:
        assert digest is not None
        return self.store.path(digest).read_text()


@pytest.fixture
def site(sessions: Sessions, store: Store, tmp_path: Path) -> Site:
    return Site(sessions, store, tmp_path / "home")


sqlite = pytest.mark.parametrize("dialect", ["sqlite"])


@sqlite
@pytest.mark.parametrize(
    ("values", "fails"),
    [([13.0], True), ([13.0, 13.0], True), ([13.0, 1.0], False), ([1.0], False), ([], False)],
)
def test_a_job_whose_first_rows_the_model_refuses_fails_at_planning(
    site: Site, monkeypatch: pytest.MonkeyPatch, values: list[float], fails: bool
) -> None:
    spec = RuntimeSpec("m", 1, "onnx", "onnx", "0" * 64, None, SIGNATURE)
    monkeypatch.setattr(score_work, "read_runtime_spec", lambda sessions, version_id: spec)
    rows = Rows(matrix=np.array(values).reshape(-1, 1))
    head = Batch(rows, None, [], len(values))
    job = site.job()
    job.version_id = 1
    if not fails:
        site.work._require_scorable_head(job, head)
        return
    reason = f"none of the first {len(values)} rows can be scored: the model refuses this row: 13; if later"
    with pytest.raises(PermanentFailure, match=reason):
        site.work._require_scorable_head(job, head)


@sqlite
def test_the_result_of_a_job_counts_the_rows_of_all_partitions(site: Site) -> None:
    parts = [site.partition(0, 2), site.partition(1, 0), site.partition(2, 3, [1]), site.partition(3, 1)]
    reports: list[tuple[int, int]] = []
    result = site.work.assemble(site.job(), parts, lambda rows, failed: reports.append((rows, failed)))
    manifest = result.manifest
    assert (manifest["rows"], manifest["failed"]) == (5, 1)
    assert manifest["parts"] == [p.result for p in parts]
    text = site.text(result.output)
    assert text == "id,value\n0.0,1\n0.1,1\n2.0,1\n2.2,1\n3.0,1\n"
    assert (manifest["sha256"], manifest["bytes"]) == (result.output, len(text))
    assert set(reports) == {(5, 1)}
    assert site.text(result.errors).splitlines()[1:] == ["3,,x0,bad,0.csv,3"]


@sqlite
def test_a_job_without_failed_rows_has_no_errors_file(site: Site) -> None:
    result = site.work.assemble(site.job(), [site.partition(0, 2)], lambda rows, failed: None)
    assert result.errors is None


@sqlite
@pytest.mark.parametrize(("failed", "fails"), [(0, False), (1, False), (2, False), (3, True)])
def test_the_assembly_fails_beyond_the_threshold_with_the_errors_file(
    site: Site, failed: int, fails: bool
) -> None:
    parts = [site.partition(0, 4), site.partition(1, 4, range(failed))]
    job = site.job(error_threshold=0.25)
    if not fails:
        assert site.work.assemble(job, parts, lambda rows, failed: None).manifest["failed"] == failed
        return
    with pytest.raises(PermanentFailure, match=r"3 of 8 rows failed \(37\.50%\)") as caught:
        site.work.assemble(job, parts, lambda rows, failed: None)
    assert [line.split(",")[0] for line in site.text(caught.value.errors).splitlines()[1:]] == ["4", "5", "6"]


@sqlite
def test_failed_rows_are_numbered_over_files_and_partitions(site: Site) -> None:
    parts = [
        site.partition(0, 3, [0, 2], file=0),
        site.partition(1, 2, [], file=0),
        site.partition(2, 2, [0], file=0),
        site.partition(3, 4, [3], file=1),
        site.partition(4, 1, [0], file=1),
        site.partition(5, 2, [1], file=2),
    ]
    result = site.work.assemble(site.job(), parts, lambda rows, failed: None)
    rows = [line.split(",") for line in site.text(result.errors).splitlines()[1:]]
    assert [(int(r[0]), r[4], int(r[5])) for r in rows] == [
        (0, "0.csv", 0), (2, "0.csv", 2), (5, "0.csv", 5), (10, "1.csv", 3), (11, "1.csv", 4),
        (13, "2.csv", 1),
    ]  # fmt: skip


@sqlite
def test_partitions_with_missing_or_truncated_files_run_again(site: Site) -> None:
    parts = [site.partition(number, 2, [1]) for number in range(5)]
    directory = site.settings.job_directory(5)
    assert site.work.assemble(site.job(), parts, lambda rows, failed: None).output
    (directory / "0.csv").unlink()
    (directory / "2.csv").write_bytes((directory / "2.csv").read_bytes()[:-1])
    (directory / "3.csv").write_bytes((directory / "3.csv").read_bytes() + b"\n")
    (directory / "4.errors.csv").unlink()
    with pytest.raises(PartsMissing) as caught:
        site.work.assemble(site.job(), parts, lambda rows, failed: None)
    assert caught.value.places == [(jobs.SCORE_STAGE, number) for number in (0, 2, 3, 4)]


def test_the_first_five_missing_partitions_are_named() -> None:
    messages = [str(PartsMissing([("score", n) for n in range(count)])) for count in (1, 5, 6)]
    assert messages == [
        "the files of 1 partitions are missing or truncated (0)",
        "the files of 5 partitions are missing or truncated (0, 1, 2, 3, 4)",
        "the files of 6 partitions are missing or truncated (0, 1, 2, 3, 4, ...)",
    ]


def test_the_text_of_an_unexpected_error_has_a_thousand_characters() -> None:
    assert describe_failure(ValueError("x" * 1000)) == "ValueError: " + "x" * 1000
    assert describe_failure(ValueError("x" * 1001)) == "ValueError: " + "x" * 1000
    assert describe_failure(PermanentFailure("y" * 1001)) == "y" * 1001


def planned_job(site: Site, rows: Sequence[int | None], failed: Sequence[int], **spec: Any) -> JobRow:
    """Create a job with a partition for each of `rows` (None: unknown); the first ones are finished."""
    with site.sessions.begin() as session:
        job = jobs.create(session, NewJob(kind=SCORE, spec=SPEC | spec, model="m"), by="ann")
        job.plan = {"dataset": {"files": [{"name": "0.csv"}]}}
        job.started_at = now() - timedelta(seconds=1)
        task = queue.claim(session, JOB_TASKS, "me", 60)
        assert task is not None
        queue.finish(session, task.id, task.fence)
        jobs.add_partitions(session, job, jobs.SCORE_STAGE, [NewPartition({"file": 0}, r) for r in rows])
        for number, count in enumerate(failed):
            row = jobs.partition(session, job.id, jobs.SCORE_STAGE, number)
            total = rows[number] or 0
            directory = site.settings.job_directory(job.id)
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{number}.errors.csv").write_text(
                "row,id,field,message\r\n0,,x0,bad\r\n", newline=""
            )
            jobs.finish_partition(
                session, job, row, rows=total - count, failed=count,
                result={"errors": f"{number}.errors.csv"} if count else {"errors": None},
            )  # fmt: skip
        return job


@sqlite
@pytest.mark.parametrize(
    ("rows", "failed", "threshold", "fails"),
    [
        ([4, 4], [2], 0.25, False),  # exactly reached, whatever the other partition has
        ([4, 4], [3], 0.25, True),
        ([4, None], [4], 0.25, False),  # the number of rows is not known yet
        ([4, 4], [4], None, False),
        ([4, 4], [0], 0.0, False),
        ([4, 4], [1], 0.0, True),
        ([4, 4, 4], [2, 1], 0.25, False),
        ([4, 4, 4], [2, 2], 0.25, True),
    ],
)
def test_no_partition_starts_once_more_rows_failed_than_the_job_allows(
    site: Site, rows: list[int | None], failed: list[int], threshold: float | None, fails: bool
) -> None:
    job = planned_job(site, rows, failed, error_threshold=threshold)
    if not fails:
        site.work._check_error_threshold(job)
        return
    with pytest.raises(PermanentFailure, match=r"rows failed \(.*%\), the threshold is") as caught:
        site.work._check_error_threshold(job)
    assert len(site.text(caught.value.errors).splitlines()) == 1 + len(failed)


def test_outputs_without_rows_keep_their_columns() -> None:
    outputs = (
        Output("label", "string", (-1,)),
        Output("probabilities", "float64", (-1, 3), ("a", "b", "c")),
        Output("vector", "float32", (-1, -1)),
    )
    empty = score_work._empty_outputs(Signature("classification", SIGNATURE.inputs, outputs))
    assert {name: (a.shape, a.dtype) for name, a in empty.items()} == {
        "label": ((0,), np.dtype(object)),
        "probabilities": ((0, 3), np.dtype(np.float64)),
        "vector": ((0, 0), np.dtype(np.float32)),
    }
