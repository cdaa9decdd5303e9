"""Records in words: what a version is, what its build found, why it was rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.client import Record

SAID_BY = {
    "file": "says its file",
    "publisher": "says its publisher",
    "environment": "where it was published from",
}


def build_lines(record: Record) -> list[str]:
    """What somebody who has just published wants to know of a version."""
    name = f"{record['model']}:{record['version']}"
    if record["state"] == "rejected":
        return [f"{name} is rejected: {why_rejected(record)}"]
    if record["state"] == "building":
        return [f"{name} is building"]
    lines = [f"{name} is {record['state']} on {record['runtime']}: {record['runtime_reason']}"]
    report = record.get("report") or {}
    if parity := report.get("parity"):
        lines.append(f"parity: {parity_words(parity)}")
    if record["metrics"]:
        lines.append(f"metrics: {_pairs(record['metrics'])}")
    return lines + [f"warning: {warning}" for warning in report.get("warnings") or ()]


def why_rejected(record: Record) -> str:
    return str((record.get("report") or {}).get("reason") or "its report gives no reason")


def parity_words(parity: Record) -> str:
    """The figures of a build's parity in one line."""
    kinds = parity["rows"]
    of = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    return (
        f"{sum(kinds.values()):,} rows compared ({of}): {parity['label_mismatches']} label mismatches, "
        f"largest difference {parity['largest_difference']:.2g}"
    )


def version_lines(record: Record) -> Iterator[str]:
    """Everything that people ask about one version."""
    yield from build_lines(record)
    for what in ("aliases", "tags", "description", "format", "artifact", "target"):
        if value := record[what]:
            yield f"{what}: {_pairs(value) if isinstance(value, dict) else _listed(value)}"
    yield f"created: {record['created_at']} by {record['created_by']}"
    if made := (record.get("lineage") or {}).get("made_by"):
        yield f"made by: {_makers(made)}"
    signature = record.get("signature") or {"inputs": [], "outputs": []}
    if signature["inputs"]:
        yield f"{signature['task']} of {len(signature['inputs'])} features:"
    for given in signature["inputs"]:
        yield f"  {_feature(given)}"
    for made in signature["outputs"]:
        yield f"  -> {made['name']} {made['dtype']}" + (
            f": {_listed(made['classes'])}" if made.get("classes") else ""
        )


def model_lines(record: Record) -> Iterator[str]:
    yield f"{record['name']}: {record['versions']} versions, the latest is {record['latest_version']}"
    for alias, version in record["aliases"].items():
        yield f"{alias}: version {version}"
    yield f"created: {record['created_at']} by {record['created_by']}"


def _feature(given: Record) -> str:
    known = f": {_listed(given['categories'])}" if given.get("categories") else ""
    seen = ""
    if given.get("minimum") is not None:
        seen = f", seen {given['minimum']:g} to {given['maximum']:g}"
    return f"{given['name']} {given['dtype']}{', may be missing' if given['nullable'] else ''}{seen}{known}"


def _pairs(values: Record) -> str:
    shown = (f"{v:.4g}" if isinstance(v, float) else v for v in values.values())
    return ", ".join(f"{name}={value}" for name, value in zip(values, shown, strict=True))


def _makers(made: Record) -> str:
    """Versions by library, with who says so; null is what nobody told."""
    known = [f"{name} {m['version']} ({SAID_BY[m['said_by']]})" for name, m in made.items() if m is not None]
    untold = [name for name, m in made.items() if m is None]
    return ", ".join([*known, *([f"nobody told which {_listed(untold)}"] if untold else [])])


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def export_lines(record: Record) -> Iterator[str]:
    """What an export is and how faithful it is, or why it was refused."""
    name = f"{record['model']}:{record['version']} as .tflite ({record['quantize']})"
    report = record.get("report") or {}
    if record["state"] == "rejected":
        yield f"{name} is rejected: {why_rejected(record)}"
    else:
        yield f"{name} is {record['state']}, export {record['id']}"
    if record["state"] == "ready":
        bytes_, sha256, oldest = (record[what] for what in ("bytes", "sha256", "min_runtime"))
        yield f"{bytes_:,} bytes, sha256 {sha256}, runs on LiteRT {oldest} and later"
    yield from _fidelity(report)
    if sizes := report.get("bytes"):
        yield "bytes: " + ", ".join(f"{what} {count:,}" for what, count in sizes.items())
    if latency := report.get("latency_us"):
        yield f"latency of one row: {latency['p50']:g} us, of the slowest in a hundred {latency['p99']:g} us"
    if operators := report.get("operators"):
        yield f"operators: {_listed(operators)}"
    if given_up := report.get("given_up"):
        yield f"given up: {given_up}"
    yield from (f"note: {note}" for note in report.get("notes") or ())
    yield from (f"warning: {warning}" for warning in report.get("warnings") or ())


def _fidelity(report: Record) -> Iterator[str]:
    kinds = report.get("kinds") or {}
    if kinds:
        held = ", ".join(f"{k['rows']:,} {name}" for name, k in kinds.items() if k["judged"])
        agreement = report["label_agreement"]
        labels = "" if agreement is None else f"{agreement:.4%} of the labels agree, "
        yield f"compared on {held} rows: {labels}largest difference {report['largest_difference']:.2g}"
    for name, kind in kinds.items():
        if not kind["judged"]:
            yield (
                f"not judged, {kind['rows']:,} {name} rows: {kind['label_mismatches']} labels differ, "
                f"largest difference {kind['largest_difference']:.2g}"
            )
    if accuracy := report.get("accuracy"):
        yield (
            f"{accuracy['measure']}: {accuracy['before']:.4f} before, {accuracy['after']:.4f} after, "
            f"on {accuracy['rows']:,} rows"
        )
    if bounds := report.get("bounds"):
        yield "bounds: " + _pairs({name: value for name, value in bounds.items() if value is not None})


def accepted_line(record: Record) -> str:
    """A job that nobody waits for."""
    number = record["id"]
    return f"job {number} is {record['state']}; follow it with `trivium jobs watch {number}`"


def scored_line(record: Record) -> str:
    """What a scoring has come to."""
    pace = f" ({record['rate']:,.0f} rows/s)" if record["rate"] else ""
    return f"{record['rows_done']:,} rows scored with {record['model']}:{record['version']}{pace}"


def trained_line(record: Record) -> str:
    """What a training has come to."""
    found = record["manifest"]
    measured = ""
    if found["metrics"]:
        measured = f"; on {found['held_out']:,} rows held out: {_pairs(found['metrics'])}"
    parts = "1 partition" if found["partitions"] == 1 else f"{found['partitions']:,} partitions"
    name = f"{record['model']}:{record['version']}"
    left = found["rows_without_target"]
    out = f"; {left:,} rows without a value in {found['target']!r} were left out" if left else ""
    return f"{name} was trained on {found['rows']:,} rows in {parts}{measured}{out}"


def failure_lines(record: Record) -> Iterator[str]:
    """Why a job that has ended made nothing, and how to go on."""
    name = f"job {record['id']}"
    yield (
        f"error: {name} failed: {record['error']}" if record["state"] == "failed" else f"{name} was cancelled"
    )
    number = record["id"]
    if record["errors"]:  # the rows failed it, and would again
        yield f"`trivium jobs errors {number}` lists the rows and what is wrong with them"
    else:
        yield f"`trivium jobs show {number}` says more"
        yield f"`trivium jobs resume {number}` goes on from here"
        if record["state"] == "failed":
            yield "what is wrong with the job itself or with its input needs a new job, not this one resumed"


def job_lines(record: Record) -> Iterator[str]:
    """Everything that people ask about one job but its partitions."""
    version = "" if record["version"] is None else f":{record['version']}"
    model = f"{record['model']}{version}"
    yield f"job {record['id']} ({record['kind']}, {model}, {record['engine']}) is {record['state']}"
    if record["error"]:
        yield f"error: {record['error']}"
    total = "" if record["rows_total"] is None else f" of {record['rows_total']:,}"
    pace = f", {record['rate']:,.0f} rows/s" if record["rate"] else ""
    yield f"rows: {record['rows_done']:,} done, {record['rows_failed']:,} failed{total}{pace}"
    if record["partitions_total"] is not None:
        yield f"partitions: {record['partitions_done']:,} of {record['partitions_total']:,} done"
    if record["then_id"] is not None:
        yield f"then: job {record['then_id']}, which is {record['then_state']}"
    for what in ("schedule", "parent_id", "output", "errors", "started_at", "finished_at", "expires_at"):
        if record[what] is not None:
            yield f"{what.removesuffix('_at').removesuffix('_id')}: {record[what]}"
    yield f"created: {record['created_at']} by {record['created_by']}"
