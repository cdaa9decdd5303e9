"""`trivium traffic`: split an alias's calls, show them, and end it."""

from __future__ import annotations

import pytest

from service.cli.descriptions import traffic_lines
from service.cli.traffic import _merge

SHADOW = {
    "version": 1,
    "shadow_version": 2,
    "rows": 1000,
    "agreement": 0.982,
    "mean_difference": 0.012,
    "largest_difference": 0.4,
    "failed": 3,
    "last_error": "Invalid: x0 is missing",
    "shed": 5,
    "latency_ms": {"calls": 990, "mean": 0.2, "p50": 0.2, "p99": 0.5},
    "shadow_latency_ms": {"calls": 0, "mean": None, "p50": None, "p99": None},
}


@pytest.fixture
def model(live, two_versions) -> str:
    live("promote", f"{two_versions}:1")
    return two_versions


def test_options_that_are_left_out_keep_their_values(live, model):
    assert "version 1 answers every call" in live("traffic", model).out
    weights = ("--weight", "1=90", "--weight", "2=10")
    split = live("traffic", model, *weights, "--max-error-rate", "0.02", "--sticky", "X-User", "--json")
    assert split.record["weights"] == {"1": 90, "2": 10}
    assert split.record["bounds"] == {"error_rate": 0.02, "p99_ms": None}
    wider = ("--weight", "1=80", "--weight", "2=20", "--max-p99-ms", "50", "--reason", "no failures")
    shown = live("traffic", f"{model}@champion", *wider).out.splitlines()
    assert shown[:3] == [
        f"{model}@champion: version 1 answers 80 %, version 2 answers 20 %",
        "sticky: calls with the same X-User get the same version",
        "a canary goes back if more than 0.02 of the calls fail or the 99th percentile is 50 ms",
    ]
    assert shown[3].endswith(": no failures")
    history = live("history", model).out
    assert "traffic 1=80 2=20" in history
    assert live("traffic", model, "--end").out.startswith(f"{model}@champion: version 1 answers every call")
    assert "traffic ended" in live("history", model).out
    assert live("traffic", model, "--end").code == 1


def test_the_shadow_is_a_version_or_an_alias(live, model):
    live("promote", f"{model}:2", "--alias", "challenger")
    assert live("traffic", model, "--shadow", "2", "--json").record["shadow"] == 2
    assert "shadow: alias challenger" in live("traffic", model, "--shadow", "challenger").out
    refused = live("traffic", model, "--shadow", "missing")
    assert (refused.code, "has no alias 'missing'" in refused.err) == (1, True)
    for reference in ("\N{SUPERSCRIPT TWO}", "", "9" * 20):
        refused = live("traffic", model, "--shadow", reference)
        assert refused.err.startswith("error: shadow: not a version number or an alias\n"), refused.err


def test_a_canary_that_went_back_is_left_out_of_the_next_change():
    """It may be archived by then."""
    record = {"weights": {"1": 100, "2": 0}, "sticky_header": None, "shadow": None, "bounds": None}
    changes = {"weights": None, "sticky_header": None, "shadow": 3}
    changed = _merge(record, changes, {"error_rate": None, "p99_ms": None})
    assert changed == {"weights": {"1": 100}, "sticky_header": None, "shadow": 3}


def test_wrong_options_are_refused(live, model):
    for options in (
        ("--weight", "2"),
        ("--weight", "two=10"),
        ("--weight", "2=ten"),
        ("--weight", "2=10", "--weight", "2=90"),
        ("--end", "--shadow", "2"),
    ):
        assert live("traffic", model, *options).code == 2, options
    assert live("traffic", f"{model}:1").code == 2
    assert "add up to 90" in live("traffic", model, "--weight", "1=90").err


def test_the_report_of_a_shadow_is_described():
    record = {
        "model": "fraud",
        "alias": "champion",
        "weights": {"1": 100, "2": 0},
        "sticky_header": None,
        "bounds": None,
        "shadow": 2,
        "by": "ann",
        "at": "2026-12-01T12:00:00Z",
        "reason": None,
        "shadow_report": [SHADOW, SHADOW | {"rows": 0, "failed": 0, "shed": 0}],
    }
    assert list(traffic_lines(record)) == [
        "fraud@champion: version 1 answers every call",
        "shadow: version 2",
        "changed by ann at 2026-12-01 12:00:00 UTC",
        "shadow 2 beside version 1: 98.20% of 1,000 rows agree; mean difference 0.012, largest 0.4",
        "  latency of version 1: p50 0.2 ms, p99 0.5 ms",
        "  3 rows failed: Invalid: x0 is missing",
        "  5 rows were not compared: the server was busy, or loaded the shadow",
        "shadow 2 beside version 1: no rows were compared",
        "  latency of version 1: p50 0.2 ms, p99 0.5 ms",
    ]
