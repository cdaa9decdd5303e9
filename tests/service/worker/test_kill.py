"""A job outlives its workers, its server and its disk; at length `benchmarks.batch_kill`, `batch_trouble`."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import batch_trouble
from benchmarks._jobs import Site
from benchmarks.batch_kill import kill_workers
from benchmarks.batch_trouble import Faults
from tests.registry.conftest import Postgres

pytestmark = pytest.mark.fault

ROWS, FILES = 1_200_000, 12
Make = Callable[..., Site]


@pytest.fixture
def make(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """A site on either database."""
    database = None
    more: dict[str, object] = {"batch_lanes": 2}
    if dialect == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        database = postgres.create()
        more["database_url"] = postgres.url(database)
    yield lambda rows=ROWS, files=FILES, **given: Site(tmp_path, rows, files=files, **more, **given)
    if database is not None:
        request.getfixturevalue("postgres").drop(database)


only_postgresql = pytest.mark.parametrize("dialect", ["postgresql"])
only_sqlite = pytest.mark.parametrize("dialect", ["sqlite"])


def test_every_row_is_scored_once_in_order_however_often_the_worker_is_killed(make: Make) -> None:
    with make().up() as site:
        found = kill_workers(site, kills=3)
    assert found.faults == []
    assert found.kills == len(found.again_s) == 3


@only_postgresql
def test_two_workers_share_a_job_and_do_each_partition_once(make: Make) -> None:
    with make(worker=False).up() as site:
        assert batch_trouble.two_workers(site) == []


@only_postgresql
def test_a_stopped_worker_that_wakes_when_all_is_done_does_no_harm(make: Make) -> None:
    with make(worker=False).up() as site:
        assert batch_trouble.sleeper_after_the_end(site) == []


@only_sqlite
def test_a_stopped_worker_that_wakes_while_another_goes_on_does_no_harm(make: Make) -> None:
    with make(worker=False).up() as site:
        assert batch_trouble.sleeper_in_mid_job(site) == []


@only_sqlite
@pytest.mark.parametrize("end", [batch_trouble.killed_server, batch_trouble.stopped_server])
def test_a_job_outlives_its_server(make: Make, end: Callable[[Site], Faults]) -> None:
    with make().up() as site:
        assert end(site) == []


@only_sqlite
def test_a_job_that_found_the_disk_full_says_so_and_goes_on_later(make: Make) -> None:
    """`RLIMIT_FSIZE` lets no file grow beyond a bound: writing fails as on a full disk, also without root."""
    csv = {"output": {"media_type": "text/csv"}}
    with make(rows=1_500_000, files=8, worker=False).up() as site:
        job_id = site.start(**csv)
        with site.workers(1):
            site.until(job_id, lambda job: job["partitions_done"] > 0)
        with site.workers(1, limit=(resource.RLIMIT_FSIZE, 4 << 20)):
            failed = site.ended(job_id)
        assert failed["state"] == "failed"
        assert "File too large" in failed["error"]
        with site.workers(1):
            assert batch_trouble.resumed(site, failed) == []
