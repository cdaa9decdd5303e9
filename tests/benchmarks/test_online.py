"""The parts of `scripts/bench online` that compute: no servers are started and nothing is measured here."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import online
from benchmarks.serving import plot, report, wrk
from benchmarks.serving.environments import PEERS, locked_version
from benchmarks.serving.models import HEADLINE, MODELS
from benchmarks.serving.protocols import Request
from benchmarks.serving.report import Figures
from benchmarks.serving.results import Described, Failure, Measurement, ResultsFile, read, summarize
from benchmarks.serving.servers import SPECS, sum_counters
from tests.repository.test_locks import HASH, PIN, pins
from tests.repository.tree import ROOT

WRK_OUTPUT = """Running 2s test @ http://127.0.0.1:34329
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     9.01ms    7.59ms 159.52ms   95.13%
    Req/Sec     3.01k   537.18     3.66k    76.19%
  6155 requests in 2.08s, 1.49MB read
Requests/sec:   2961.32
Transfer/sec:    732.59KB
wrk-report {"requests": 6155, "duration_us": 2078466, "failures": 0, "p50_us": 8783.0, "p99_us": 155330.0}
"""
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").rglob("[a-z]*.py"))
    if path.parent.name != "peers"  # run in environments of their own
]
SLOW_IMPORTS = {"benchmarks.keras_quantize"}  # TensorFlow
CONDITIONS: dict[str, Any] = {
    "run": {"seconds": 2, "rounds": 3, "code": ["abc"]},
    "revision": "abc",
    "date": "2026-12-01",
    "machine": {
        "processor": "a processor",
        "cores": 2,
        "memory_gb": 24,
        "system": "Linux x86_64",
        "python": "3.11.7",
        "pinning": "server on core 1, load generator on core 0",
        "load_before": 0.1,
    },
    "wrk": "4.1.0",
    "servers": [
        {
            "name": s.name,
            "title": s.title,
            "role": s.role,
            "package": s.package,
            "version": "1",
            "batching": None,
        }
        for s in SPECS.values()
    ],
}


def measurement(server: str, concurrency: int = 32, round_: int = 0, **figures: float) -> Measurement:
    values = {"per_s": 100.0, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 50.0, "uss_mb": 20.0, "rss_mb": 30.0}
    return Measurement(
        HEADLINE, server, concurrency, round_, requests=200, failures=0, processes=1, **values | figures
    )


def summary_of(path: Path, *lines: Measurement | Failure) -> dict[str, Any]:
    file = ResultsFile(path, CONDITIONS, resume=False)
    file.add(Described(HEADLINE, "a forest", "onnx", 900, 130))
    for line in lines:
        file.add(line)
    return summarize(read(path))


@pytest.mark.parametrize("module", [name for name in MODULES if name not in SLOW_IMPORTS])
def test_a_benchmark_can_be_imported(module: str) -> None:
    importlib.import_module(module)


def test_the_report_of_wrk_is_read_from_its_output() -> None:
    load = wrk.parse(WRK_OUTPUT)
    assert (load.requests, load.failures, load.p50_ms, load.p99_ms) == (6155, 0, 8.783, 155.33)
    assert load.per_s == pytest.approx(2961.32, abs=0.01)


def test_output_of_wrk_without_a_report_is_an_error_with_that_output() -> None:
    with pytest.raises(wrk.WrkFailed, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_the_script_of_wrk_has_every_body_as_a_lua_string() -> None:
    request = Request("/predict", ['{"a":"x"}', '{"a":"\\é\n"}'], None, {"Authorization": "Bearer k"})
    script = wrk.script(request)
    assert r'"{\034a\034:\034x\034}"' in script
    assert r'"{\034a\034:\034\092\195\169\010\034}"' in script
    assert '["Authorization"] = "Bearer k"' in script


def test_figures_are_medians_over_the_rounds(tmp_path: Path) -> None:
    rounds = [measurement("trivium", round_=n, per_s=rate) for n, rate in enumerate((90.0, 300.0, 100.0))]
    (cell,) = summary_of(tmp_path / "run.jsonl", *rounds)["cells"]
    assert (cell["per_s"], cell["per_s_range"], cell["rounds"]) == (100.0, [90.0, 300.0], 3)


def test_an_interrupted_run_resumes_after_its_last_complete_measurement(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    summary_of(path, measurement("bare"), Failure(HEADLINE, "flask", "no disk"))
    with path.open("a") as file:
        file.write('{"kind": "measurement", "mod')  # killed while it was written
    resumed = ResultsFile(path, CONDITIONS | {"date": "2026-12-02"}, resume=True)
    resumed.add(measurement("trivium"))
    results = read(path)
    assert results.has(HEADLINE, "bare", 32, 0)
    assert results.has(HEADLINE, "trivium", 32, 0)
    assert not results.has(HEADLINE, "flask", 32, 0)
    assert results.failures == []  # tried again


def test_a_run_under_other_conditions_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    summary_of(path, measurement("bare"))
    other = CONDITIONS | {"run": {"seconds": 9, "rounds": 3, "code": ["abc"]}}
    with pytest.raises(SystemExit, match="seconds was 2, now 9"):
        ResultsFile(path, other, resume=True)


def test_targets_are_ratios_of_this_server_to_the_limit_and_to_the_best_peer(tmp_path: Path) -> None:
    lines = [
        measurement("bare", per_s=1000.0),
        measurement("bare", 1, p50_ms=0.05),
        measurement("trivium", per_s=750.0, p50_ms=2.0, p99_ms=7.0),
        measurement("trivium", 1, p50_ms=0.06),
        measurement("trivium-log", per_s=700.0),
        measurement("fastapi-onnx", per_s=300.0),
        measurement("flask", per_s=5.0),
        measurement("litserve-batching", per_s=50.0),
    ]
    targets = report.targets(Figures(summary_of(tmp_path / "run.jsonl", *lines)))
    measured = [None if t.measured is None else round(t.measured, 2) for t in targets]
    assert measured == [0.75, 15.0, 1.2, 3.5, 0.93, None]
    assert [t.verdict for t in targets] == ["met", "met", "met", "not met", "met", "not measured"]
    assert "LitServe, batching" in targets[1].text


def test_a_server_that_failed_is_named_with_the_reason(tmp_path: Path) -> None:
    failure = Failure(HEADLINE, "mlflow", "cannot be installed: no wheel")
    section = report.section(summary_of(tmp_path / "run.jsonl", measurement("bare"), failure))
    assert "- MLflow, a forest: cannot be installed: no wheel" in section


def test_counters_are_summed_by_outcome() -> None:
    text = """# HELP trivium_shadow_rows_total Rows
trivium_shadow_rows_total{model="a",outcome="agreed",version="2"} 12.0
trivium_shadow_rows_total{model="b",outcome="agreed",version="2"} 3.0
trivium_shadow_rows_total{model="a",outcome="shed",version="2"} 1e+06
trivium_requests_total{route="x"} 5.0
trivium_predicted_rows_total{model="a",runtime="forest",version="1"} 7.0
"""
    assert sum_counters(text, ("trivium_predicted_rows_total",)) == {"trivium_predicted_rows_total forest": 7}
    sums = sum_counters(text, ("trivium_shadow_rows_total",))
    assert sums == {"trivium_shadow_rows_total agreed": 15, "trivium_shadow_rows_total shed": 1_000_000}


def test_a_whole_run_measures_all_servers_on_one_model_and_the_peers_on_all() -> None:
    cells = online.plan(online.parse([]))
    headline = {(cell.spec.name, cell.concurrency) for cell in cells if cell.model == HEADLINE}
    unbatched = {(name, 256) for name, spec in SPECS.items() if spec.batching is False}
    assert headline == {(name, n) for name in SPECS for n in (1, 32, 256)} - unbatched
    others = {(cell.spec.name, cell.concurrency) for cell in cells if cell.model != HEADLINE}
    assert {spec.environment for spec in SPECS.values() if spec.role == "peer"} == {
        SPECS[name].environment for name, _ in others if SPECS[name].role == "peer"
    }
    assert {cell.model for cell in cells} == MODELS.keys()


@pytest.mark.parametrize("arguments", [["--quick"], ["--models", "mixed"], ["--servers", "bare"]])
def test_a_part_of_the_comparison_is_not_written_to_the_docs(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        online.parse([*arguments, "--write"])
    assert "--write takes a run of all models and servers" in capsys.readouterr().err


def test_the_page_and_the_figure_show_the_committed_measurements() -> None:
    summary = json.loads(report.JSON.read_text())
    page = report.PAGE.read_text()
    assert page == report.insert(page, report.section(summary)), "run scripts/bench online --render"
    for theme in plot.THEMES:
        assert plot.path(theme).read_text() == plot.draw(summary, theme), "run scripts/bench online --render"


def test_every_peer_is_measured_or_named_with_a_reason_in_the_committed_measurements() -> None:
    summary = json.loads(report.JSON.read_text())
    found = {c["server"] for c in summary["cells"]} | {f["server"] for f in summary["failures"]}
    assert found == SPECS.keys()


@pytest.mark.parametrize("peer", sorted(path.stem for path in PEERS.glob("*.in")))
def test_a_peer_has_a_lock_with_hashes_and_this_projects_versions_of_what_it_unpickles(peer: str) -> None:
    lines = (PEERS / f"{peer}.txt").read_text().splitlines()
    assert [line for line in lines if not PIN.match(line) and not HASH.match(line)] == []
    own, locked = pins("requirements.txt"), pins(f"benchmarks/peers/{peer}.txt")
    shared = {"joblib", "numpy", "pandas", "scikit-learn", "scipy"} & locked.keys()
    assert {name: locked[name] for name in shared} == {name: own[name] for name in shared}, "run scripts/lock"


def test_every_server_with_an_environment_has_a_locked_version() -> None:
    for spec in SPECS.values():
        if spec.environment:
            assert re.fullmatch(r"[\d.]+", locked_version(spec.environment, spec.package))


@pytest.mark.parametrize(
    ("value", "text"),
    [(15234.0, "15,200"), (72.04, "72.0"), (0.744, "0.74"), (0.0787, "0.079"), (0.00234, "0.0023")],
)
def test_figures_have_two_or_three_significant_digits(value: float, text: str) -> None:
    assert report.number(value) == text
