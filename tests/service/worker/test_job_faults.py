"""Jobs under faults. The benchmarks `batch_kill` and `batch_trouble` repeat these tests at length."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import job_faults
from tests.harness.job_faults import Faults
from tests.harness.job_site import JobSite
from tests.harness.worker_kills import kill_workers
from tests.registry.postgres import Postgres

pytestmark = pytest.mark.fault

ROWS, FILES = 1_200_000, 12
MakeSite = Callable[..., JobSite]


@pytest.fixture
def make_site(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeSite]:
    """Return a function that creates a site on the database of the test."""
    database = None
    settings: dict[str, object] = {"batch_lanes": 2}
    if dialect == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        database = postgres.create()
        settings["database_url"] = postgres.url(database)
    yield lambda rows=ROWS, files=FILES, **options: JobSite(
        tmp_path, rows, files=files, **settings, **options
    )
    if database is not None:
        request.getfixturevalue("postgres").drop(database)


only_postgresql = pytest.mark.parametrize("dialect", ["postgresql"])
only_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])


def test_every_row_is_scored_once_in_order_although_workers_are_killed(make_site: MakeSite) -> None:
    with make_site().running() as site:
        report = kill_workers(site, kills=3)
    assert report.faults == []
    assert report.kills == len(report.recovery_s) == 3


@only_postgresql
def test_two_workers_share_a_job_and_run_each_partition_once(make_site: MakeSite) -> None:
    with make_site(worker=False).running() as site:
        assert job_faults.two_workers(site) == []


@only_postgresql
def test_a_suspended_worker_that_continues_after_the_end_changes_nothing(make_site: MakeSite) -> None:
    with make_site(worker=False).running() as site:
        assert job_faults.worker_wakes_after_end(site) == []


@only_sqlite
def test_a_suspended_worker_that_continues_beside_another_changes_nothing(make_site: MakeSite) -> None:
    with make_site(worker=False).running() as site:
        assert job_faults.worker_wakes_during_job(site) == []


@only_sqlite
@pytest.mark.parametrize("end", [job_faults.server_killed, job_faults.server_stopped])
def test_a_job_outlives_its_server(make_site: MakeSite, end: Callable[[JobSite], Faults]) -> None:
    with make_site().running() as site:
        assert end(site) == []


@only_sqlite
def test_a_job_that_fails_on_a_full_disk_can_be_resumed(make_site: MakeSite) -> None:
    """`RLIMIT_FSIZE` limits the size of files: writing fails like on a full disk, also without root."""
    csv = {"output": {"media_type": "text/csv"}}
    with make_site(rows=1_500_000, files=8, worker=False).running() as site:
        job_id = site.start_job(**csv)
        with site.workers(1):
            site.wait_until(job_id, lambda job: job["partitions_done"] > 0)
        with site.workers(1, limit=(resource.RLIMIT_FSIZE, 4 << 20)):
            failed = site.wait_until_ended(job_id)
        assert failed["state"] == "failed"
        assert "File too large" in failed["error"]
        with site.workers(1):
            assert job_faults.resume_faults(site, failed) == []
