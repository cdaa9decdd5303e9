"""The API's records as lines of text: versions, models, exports, jobs and schedules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from service.cli.options import TIME_UNITS
from service.cli.output import format_time

if TYPE_CHECKING:
    from service.client import Record

LIBRARY_SOURCES = {
    "file": "read from the file",
    "publisher": "stated by the publisher",
    "environment": "installed where it was published",
}
"""Where the version of a library is known from, by the record's `said_by`."""


# Versions and models


def build_lines(record: Record) -> list[str]:
    """Describe the result of a version's build."""
    name = f"{record['model']}:{record['version']}"
    report = record.get("report") or {}
    if record["state"] == "rejected":
        return [f"{name} is rejected: {rejection_reason(record)}", *_worst_answer_lines(report)]
    if record["state"] == "building":
        return [f"{name} is building"]
    lines = [f"{name} is {record['state']} on {record['runtime']}: {record['runtime_reason']}"]
    if parity := report.get("parity"):
        lines.append(f"parity: {parity_line(parity)}")
    if answers := report.get("answers"):
        lines.append(f"publisher's answers: {answers_line(answers)}")
    if record["metrics"]:
        lines.append(f"metrics: {_join_pairs(record['metrics'])}")
    return lines + [f"warning: {warning}" for warning in report.get("warnings") or ()]


def rejection_reason(record: Record) -> str:
    return str((record.get("report") or {}).get("reason") or "the report contains no reason")


def parity_line(parity: Record) -> str:
    """Describe the parity of a build in one line."""
    rows = parity["rows"]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in rows.items())
    return (
        f"{sum(rows.values()):,} rows compared ({kinds}): {parity['label_mismatches']} label mismatches, "
        f"largest difference {parity['largest_difference']:.2g}"
    )


def answers_line(answers: Record) -> str:
    """Describe the comparison with the publisher's answers in one line."""
    ties = f" ({answers['ties']} more at ties)" if answers["ties"] else ""
    rounding = answers["bounds"].get("rounding")
    return (
        f"{answers['rows']:,} rows compared: {answers['label_mismatches']} label mismatches{ties}, "
        f"largest difference {answers['largest_difference']:.2g}"
        + (f" (answers are rounded: up to {rounding:.2g} accepted)" if rounding else "")
    )


def _worst_answer_lines(report: Record) -> list[str]:
    return [
        f"  row {w['row']}, {w['column']}: {_as_json(w['actual'])}, "
        f"the answers have {_as_json(w['expected'])}"
        for w in report.get("answers", {}).get("worst", ())
    ]


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


FALLBACKS = {
    "online": "batch jobs use the runtime of predictions",
    "isolated": "the estimator itself answers, in an isolated process",
    "none": "predictions and jobs are refused",
}
"""What follows when a runtime answers differently, by the record's `fallback`."""


def verification_lines(record: Record) -> Iterator[str]:
    """Describe whether a version still gives the measured answers."""
    name, verification = f"{record['model']}:{record['version']}", record["verification"]
    if verification is None:
        yield f"{name} cannot be verified: {record['error']}"
        return
    state = {"agreed": "agrees", "differs": "differs", "pending": "is being verified"}[verification["state"]]
    reason = f": {verification['reason']}" if verification["reason"] else ""
    yield f"{name} {state}{reason}"
    for runtime, figures in verification["figures"].items():
        if "rows" in figures:
            yield f"  {runtime}: {parity_line(figures)}"
    if accepted := verification["accepted"]:
        yield f"  other answers were accepted by {accepted['by']} at {format_time(accepted['at'])} UTC"
    if verification["fallback"]:
        yield f"  now: {FALLBACKS[verification['fallback']]}"


def version_lines(record: Record) -> Iterator[str]:
    """Describe a version: its build, metadata, lineage and signature."""
    yield from build_lines(record)
    if record["verification"] and record["verification"]["state"] != "agreed":
        yield from verification_lines(record)
    for field in ("aliases", "tags", "description", "format", "artifact", "target"):
        if value := record[field]:
            yield f"{field}: {_join_pairs(value) if isinstance(value, dict) else _join_list(value)}"
    yield f"created: {record['created_at']} by {record['created_by']}"
    if libraries := (record.get("lineage") or {}).get("made_by"):
        yield f"made by: {_describe_libraries(libraries)}"
    signature = record.get("signature") or {"inputs": [], "outputs": []}
    if signature["inputs"]:
        yield f"{signature['task']} of {len(signature['inputs'])} features:"
    for column in signature["inputs"]:
        yield f"  {_describe_input(column)}"
    for output in signature["outputs"]:
        classes = f": {_join_list(output['classes'])}" if output.get("classes") else ""
        yield f"  -> {output['name']} {output['dtype']}{classes}"


def model_lines(record: Record) -> Iterator[str]:
    """Describe a model and its aliases."""
    yield f"{record['name']}: {record['versions']} versions, the latest is {record['latest_version']}"
    for alias, version in record["aliases"].items():
        yield f"{alias}: version {version}"
    yield f"created: {record['created_at']} by {record['created_by']}"


def alias_names(record: Record) -> list[str]:
    """Return the aliases of a version, or `alias -> version` for each alias of a model."""
    aliases = record.get("aliases") or []
    if isinstance(aliases, dict):
        return [f"{name} -> {version}" for name, version in aliases.items()]
    return list(aliases)


# Traffic


def traffic_lines(record: Record) -> Iterator[str]:
    """Describe how an alias's calls are answered, and how its shadow compares."""
    yield f"{record['model']}@{record['alias']}: {_join_shares(record)}"
    if record["sticky_header"]:
        yield f"sticky: calls with the same {record['sticky_header']} get the same version"
    if bounds := record["bounds"]:
        limits = []
        if bounds["error_rate"] is not None:
            limits.append(f"{bounds['error_rate']:.4g} of the calls fail")
        if bounds["p99_ms"] is not None:
            limits.append(f"the 99th percentile is {bounds['p99_ms']:g} ms")
        yield f"a canary goes back if more than {' or '.join(limits)}"
    if record["shadow"] is not None:
        kind = "version" if isinstance(record["shadow"], int) else "alias"
        yield f"shadow: {kind} {record['shadow']}"
    reason = f": {record['reason']}" if record["reason"] else ""
    yield f"changed by {record['by']} at {format_time(record['at'])} UTC{reason}"
    for entry in record["shadow_report"]:
        yield from _shadow_lines(entry)


def event_name(event: Record) -> str:
    """Return the action of an event in an alias's history, with the weights that it set."""
    if event["action"] != "traffic":
        return str(event["action"])
    if event["traffic"] is None:
        return "traffic ended"
    weights = " ".join(f"{version}={percent:g}" for version, percent in event["traffic"]["weights"].items())
    shadow = event["traffic"]["shadow"]
    return f"traffic {weights}" + ("" if shadow is None else f" shadow={shadow}")


def _join_shares(record: Record) -> str:
    shares = {version: percent for version, percent in record["weights"].items() if percent}
    if len(shares) == 1:
        return f"version {next(iter(shares))} answers every call"
    return ", ".join(f"version {version} answers {percent:g} %" for version, percent in shares.items())


def _shadow_lines(entry: Record) -> Iterator[str]:
    name = f"shadow {entry['shadow_version']} beside version {entry['version']}"
    if entry["rows"]:
        yield (
            f"{name}: {entry['agreement']:.2%} of {entry['rows']:,} rows agree; "
            f"mean difference {entry['mean_difference']:.2g}, largest {entry['largest_difference']:.2g}"
        )
    else:
        yield f"{name}: no rows were compared"
    for version, latency in (
        (entry["version"], entry["latency_ms"]),
        (entry["shadow_version"], entry["shadow_latency_ms"]),
    ):
        if latency["calls"]:
            yield f"  latency of version {version}: p50 {latency['p50']:g} ms, p99 {latency['p99']:g} ms"
    if entry["failed"]:
        yield f"  {entry['failed']:,} rows failed: {entry['last_error']}"
    if entry["shed"]:
        yield f"  {entry['shed']:,} rows were not compared: the server was busy, or loaded the shadow"


def _describe_libraries(libraries: Record) -> str:
    """Versions by library and where each is known from; null is an unknown version."""
    parts = [
        f"{name} {library['version']} ({LIBRARY_SOURCES[library['said_by']]})"
        for name, library in libraries.items()
        if library is not None
    ]
    unknown = [name for name, library in libraries.items() if library is None]
    return ", ".join([*parts, *([f"unknown: {_join_list(unknown)}"] if unknown else [])])


def _describe_input(column: Record) -> str:
    categories = f": {_join_list(column['categories'])}" if column.get("categories") else ""
    value_range = ""
    if column.get("minimum") is not None:
        verb, form = ("only", ".10g") if column.get("enforced") else ("seen", "g")
        value_range = f", {verb} {column['minimum']:{form}} to {column['maximum']:{form}}"
    nullable = ", may be missing" if column["nullable"] else ""
    return f"{column['name']} {column['dtype']}{nullable}{value_range}{categories}"


def _join_pairs(values: Record) -> str:
    formatted = (f"{v:.4g}" if isinstance(v, float) else v for v in values.values())
    return ", ".join(f"{name}={value}" for name, value in zip(values, formatted, strict=True))


def _join_list(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# Exports


def export_lines(record: Record) -> Iterator[str]:
    """Describe an export and its report, or why it was rejected."""
    name = f"{record['model']}:{record['version']} as .tflite ({record['quantize']})"
    report = record.get("report") or {}
    if record["state"] == "rejected":
        yield f"{name} is rejected: {rejection_reason(record)}"
    else:
        yield f"{name} is {record['state']}, export {record['id']}"
    if record["state"] == "ready":
        size, sha256, min_runtime = (record[field] for field in ("bytes", "sha256", "min_runtime"))
        yield f"{size:,} bytes, sha256 {sha256}, runs on LiteRT {min_runtime} and later"
    yield from _comparison_lines(report)
    if sizes := report.get("bytes"):
        yield "bytes: " + ", ".join(f"{form} {count:,}" for form, count in sizes.items())
    if latency := report.get("latency_us"):
        yield f"latency of one row: median {latency['p50']:g} us, 99th percentile {latency['p99']:g} us"
    if operators := report.get("operators"):
        yield f"operators: {_join_list(operators)}"
    if reduction := report.get("given_up"):
        yield f"reduced: {reduction}"
    yield from (f"note: {note}" for note in report.get("notes") or ())
    yield from (f"warning: {warning}" for warning in report.get("warnings") or ())


def _comparison_lines(report: Record) -> Iterator[str]:
    """Describe how the export's answers differ from the model's."""
    kinds = report.get("kinds") or {}
    if kinds:
        rows = ", ".join(f"{k['rows']:,} {name}" for name, k in kinds.items() if k["judged"])
        agreement = report["label_agreement"]
        labels = "" if agreement is None else f"{agreement:.4%} of the labels agree, "
        yield f"compared on {rows} rows: {labels}largest difference {report['largest_difference']:.2g}"
    for name, kind in kinds.items():
        if not kind["judged"]:
            yield (
                f"not checked against the bounds, {kind['rows']:,} {name} rows: "
                f"{kind['label_mismatches']} labels differ, "
                f"largest difference {kind['largest_difference']:.2g}"
            )
    if accuracy := report.get("accuracy"):
        yield (
            f"{accuracy['measure']}: {accuracy['before']:.4f} before, {accuracy['after']:.4f} after, "
            f"on {accuracy['rows']:,} rows"
        )
    if bounds := report.get("bounds"):
        yield "bounds: " + _join_pairs({name: value for name, value in bounds.items() if value is not None})


# Jobs


def accepted_line(record: Record) -> str:
    """Describe a job that was started and is not waited for."""
    number = record["id"]
    return f"job {number} is {record['state']}; follow it with `trivium jobs watch {number}`"


def scored_line(record: Record) -> str:
    """Describe the result of a scoring job."""
    rate = f" ({record['rate']:,.0f} rows/s)" if record["rate"] else ""
    return f"{record['rows_done']:,} rows scored with {record['model']}:{record['version']}{rate}"


def trained_line(record: Record) -> str:
    """Describe the result of a training job."""
    manifest = record["manifest"]
    metrics = ""
    if manifest["metrics"]:
        metrics = f"; on {manifest['held_out']:,} rows held out: {_join_pairs(manifest['metrics'])}"
    parts = "1 partition" if manifest["partitions"] == 1 else f"{manifest['partitions']:,} partitions"
    name = f"{record['model']}:{record['version']}"
    skipped = manifest["rows_without_target"]
    note = f"; {skipped:,} rows without a value in {manifest['target']!r} were skipped" if skipped else ""
    return f"{name} was trained on {manifest['rows']:,} rows in {parts}{metrics}{note}"


def failure_lines(record: Record) -> Iterator[str]:
    """Describe the end of a job without result, and the remedy."""
    number = record["id"]
    if record["state"] == "failed":
        yield f"error: job {number} failed: {record['error']}"
    else:
        yield f"job {number} was cancelled"
    if record["errors"]:  # too many rows failed; they would fail again after a resume
        yield f"`trivium jobs errors {number}` lists the rows that failed and the reasons"
        return
    yield f"`trivium jobs show {number}` shows its partitions"
    if "start a new job" in (record["error"] or ""):  # it cannot be continued
        return
    yield f"`trivium jobs resume {number}` continues it"
    if record["state"] == "failed":
        yield "if the request or the input is wrong, correct it and start a new job"


def job_lines(record: Record) -> Iterator[str]:
    """Describe a job, without its partitions."""
    model = _versioned_name(record)
    yield f"job {record['id']} ({record['kind']}, {model}, {record['engine']}) is {record['state']}"
    if record["error"]:
        yield f"error: {record['error']}"
    total = "" if record["rows_total"] is None else f" of {record['rows_total']:,}"
    rate = f", {record['rate']:,.0f} rows/s" if record["rate"] else ""
    yield f"rows: {record['rows_done']:,} done, {record['rows_failed']:,} failed{total}{rate}"
    if record["partitions_total"] is not None:
        yield f"partitions: {record['partitions_done']:,} of {record['partitions_total']:,} done"
    if record["then_id"] is not None:
        yield f"then: job {record['then_id']}, which is {record['then_state']}"
    for field in ("schedule", "parent_id", "output", "errors", "started_at", "finished_at", "expires_at"):
        if record[field] is not None:
            yield f"{field.removesuffix('_at').removesuffix('_id')}: {record[field]}"
    yield f"created: {record['created_at']} by {record['created_by']}"


def job_model(record: Record) -> str | None:
    """Return `name:version` of a job, or None for a training that has not named its model yet."""
    return _versioned_name(record) if record["model"] else None


def job_state(record: Record) -> str:
    """Return the state, with the share of rows while the job runs: `running 42%`."""
    total = record["rows_total"] if record["state"] == "running" else None
    processed = record["rows_done"] + record["rows_failed"]
    return f"{record['state']} {processed / total:.0%}" if total else str(record["state"])


def _versioned_name(record: Record) -> str:
    version = "" if record["version"] is None else f":{record['version']}"
    return f"{record['model']}{version}"


# Schedules


def schedule_line(record: Record) -> str:
    """Describe when a schedule runs: `runs every 1w, next at 2027-01-04 03:00:00 UTC`."""
    if record["paused"]:
        return f"paused; runs {schedule_times(record)} when resumed"
    return f"runs {schedule_times(record)}, next at {format_time(record['next_at'])} UTC"


def schedule_times(record: Record) -> str:
    """Return `0 3 * * MON Europe/Berlin` or `every 1w`."""
    if record["cron"] is not None:
        return f"{record['cron']} {record['timezone']}"
    unit = next(u for u in reversed(TIME_UNITS) if record["every_s"] % TIME_UNITS[u] == 0 or u == "s")
    return f"every {record['every_s'] / TIME_UNITS[unit]:g}{unit}"


def schedule_lines(record: Record) -> list[str]:
    """Describe a schedule, its job and its last run."""
    time, outcome, job, state = last_run_cells(record)
    next_job = record["job"].get("then")
    missed = "are started later" if record["catch_up"] else "are skipped"
    overlap = "may overlap" if record["overlap"] else "do not overlap"
    return [
        f"{record['name']}: {schedule_line(record)}",
        f"starts: {record['job']['kind']} {requested_model(record['job'])} on {_input_of(record['job'])}",
        *([f"then scores {_input_of(next_job)} with the trained version"] if next_job else []),
        f"missed runs {missed}; runs {overlap}",
        f"last run: {outcome} at {time} UTC{f', job {job}, which is {state}' if job else ''}"
        if outcome
        else "no runs yet",
        f"created by {record['created_by']} at {format_time(record['created_at'])} UTC",
        *(
            f"edited by {edit['by']} at {format_time(edit['at'])} UTC: {', '.join(edit['fields'])}"
            for edit in record["edits"]
        ),
    ]


def requested_model(request: Record) -> str | None:
    """Return the model of a job request as the user wrote it: `name`, `name:version` or `name@alias`."""
    name = request.get("model") or request.get("publish", {}).get("name")
    if request.get("version"):
        return f"{name}:{request['version']}"
    return f"{name}@{request['alias']}" if request.get("alias") else name


def last_run_cells(record: Record) -> list[object]:
    """Return time, outcome, job and job state of a schedule's last run, for a table."""
    run = record["last_run"] or {}
    return [format_time(run.get("at")), run.get("outcome"), run.get("job"), run_state(run) if run else None]


def run_state(run: Record) -> str | None:
    """Return the state of a run's job, and of the scoring that follows a training."""
    state: str | None = run["job_state"]
    return f"{state}, then {run['then_state']}" if run["then_state"] else state


def _input_of(request: Record) -> str:
    """The location of a job's rows."""
    location = request["input"]
    return str(location.get("uri") or f"artifact {location['artifact']}")
