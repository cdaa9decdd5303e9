"""An export child's work: write the .tflite, run it on LiteRT against the model it is made from, report."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry.build_records import Exported, ExportJob
from registry.errors import Invalid, Refused, Unavailable
from registry.rows import Rows
from registry.signature import Signature
from registry.vocabulary import Quantize
from service.compiler import export_source, sandbox
from service.compiler.export_source import Sample, Source
from service.compiler.measure import comparison_rows, metrics, parity
from service.compiler.report import Report
from service.compiler.tflite import calibration, export_gate, quantize
from service.runtime.tflite_runtime import TfliteRuntime

FILE = "model.tflite"
ZSTD_LEVEL = 19  # compressed once, sent many times
LITTLE = 0.95  # of the bytes left: not worth the loss of digits
ROUNDING = 1e-3  # of a probability or a usual value: more than that is said aloud
TIMED_RUNS = 300
TIMED_S = 1.0


def export(job: ExportJob) -> Exported:
    """Never raises for a bad model: that is `state="rejected"` with the reason in the report.

    Runs in a process that has called `sandbox.confine(job.memory_mb)`, with one thread per library.
    """
    report = Report(job)
    with report.step("total"), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            exported = _export(job, report)
        except (Refused, Invalid, Unavailable) as error:
            exported = _rejected(str(error))
        except Exception as error:
            exported = _rejected(sandbox.why("export", error, job.memory_mb))
    exported.report = {**exported.report, **report.to_json()}
    return exported


def _rejected(reason: str) -> Exported:
    return Exported(state="rejected", report={"reason": reason})


def _export(job: ExportJob, report: Report) -> Exported:
    with report.step("load"):
        source = export_source.of(job, report)
    with report.step("convert"):
        plain = source.convert()
    report.bytes["float32"] = len(plain)
    nothing = quantize.nothing_to_gain(plain)
    how = job.quantize if nothing is None else "none"
    calibrate, held_out = _parts(job, how, source, report)
    with report.step("quantize"):
        made = quantize.quantize(plain, how, calibrate)
        report.fields["notes"] = _notes(job, nothing, plain, made)
    made, too_large = _within(job, how, source, made, calibrate, report)
    file = Path(job.out) / FILE
    file.write_bytes(made)
    report.bytes["tflite"] = len(made)
    report.fields["operators"] = quantize.operators(made)
    report.fields["min_runtime"] = quantize.min_runtime(made)
    faults = too_large + _gate(job, how, source, held_out, file, report)
    if faults:
        return _rejected("; ".join(faults))
    if source.published is not None and made == plain:  # the same graph under its own names
        made = source.published
        file.write_bytes(made)
        report.bytes["tflite"] = len(made)
    with report.step("compress"):
        zstd = file.with_suffix(".tflite.zst")
        zstd.write_bytes(pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(made, asbytes=True))
    report.bytes["zstd"] = zstd.stat().st_size
    minimum = report.fields["min_runtime"]
    return Exported(state="ready", report={}, file=FILE, zstd=zstd.name, min_runtime=minimum)


def _parts(
    job: ExportJob, how: Quantize, source: Source, report: Report
) -> tuple[Rows | None, Sample | None]:
    """The rows to calibrate with, when int8 needs some, and those of the example to measure on."""
    if job.calibration is not None and job.quantize == "int8":
        given = calibration.read_calibration_rows(job.calibration, job.calibration_media_type, job.signature)
        report.fields["calibration"] = {"rows": len(given), "from": "the given rows"}
        return given, source.sample
    if how != "int8":
        return None, source.sample
    if source.sample is None:
        raise Refused(
            "int8 needs rows to calibrate with, and the version has no example: give calibration rows, or "
            "publish it with an example"
        )
    first, rest = calibration.split_example(source.sample.rows)
    rows = calibration.complete_rows(source.sample.rows.take(first))
    report.fields["calibration"] = {"rows": len(rows), "from": "the version's example"}
    if first is rest:
        report.warnings.append(
            f"the example has {len(first)} rows: those that int8 was calibrated with are measured on as well"
        )
    return rows, source.sample.take(rest)


def _within(
    job: ExportJob, how: Quantize, source: Source, made: bytes, calibrate: Rows | None, report: Report
) -> tuple[bytes, list[str]]:
    """The file within `max_bytes`, by giving up trees where it must; and why that cannot be, if it cannot."""
    most = job.bounds.max_bytes
    if most is None or len(made) <= most:
        return made, []
    why = "only trees can be aggregated"
    with report.step("aggregate"):
        try:
            if source.within is not None:
                smaller = source.within(most)
                report.fields["given_up"] = smaller.given_up
                made = quantize.quantize(smaller.content, how, calibrate)
        except Refused as error:
            why = str(error)
    if len(made) <= most:
        return made, []
    return made, [f"the file has {len(made):,} bytes, the bound is {most:,}: {why}"]


def _notes(job: ExportJob, nothing: str | None, plain: bytes, made: bytes) -> list[str]:
    """What quantization brought, in words."""
    if job.quantize == "none":
        return []
    sizes = f"{len(plain):,} bytes before, {len(made):,} after"
    if nothing is not None:
        return [f"{nothing} ({sizes})"]
    if len(made) > LITTLE * len(plain):
        brings = "nothing" if len(made) >= len(plain) else "next to nothing"
        return [f"{job.quantize} brings {brings} here: {sizes}"]
    return [f"{job.quantize}: {sizes}"]


def _gate(
    job: ExportJob, how: Quantize, source: Source, held_out: Sample | None, file: Path, report: Report
) -> list[str]:
    """Measures the file on LiteRT; why it is outside of the bounds."""
    lost = export_gate.classify_loss(how, source.exact, report.fields.get("given_up", ""))
    bounds = export_gate.limits_for(job.bounds, lost, job.signature)
    report.fields["bounds"] = msgspec.to_builtins(bounds)
    runtime = TfliteRuntime(file, job.signature)
    with report.step("reference"):
        blocks = source.blocks(_some(held_out))
    with report.step("measure"):
        held = export_gate.judged_kinds([b.kind for b in blocks], lost)
        found = export_gate.measure(blocks, runtime.run, job.signature, held)
        report.fields |= msgspec.to_builtins(found)
        faults = export_gate.find_faults(found, bounds)
        if not found.error:
            accuracy = _accuracy(job, source, held_out, runtime, report)
            report.fields["accuracy"] = accuracy
            faults += export_gate.find_accuracy_faults(accuracy, bounds, job.bounds)
            report.fields["latency_us"] = _latency(runtime, blocks[0].rows)
    if (rounding := _rounding(source, _some(held_out), job.signature)) is not None:
        report.fields["input_rounding"] = rounding
        report.warnings += _rounding_warnings(rounding)
    if held_out is not None and (alike := export_gate.indistinct_features(held_out.rows, job.signature)):
        report.warnings.append(
            f"float32, which a .tflite takes, cannot tell all values of {', '.join(alike[:10])} apart"
        )
    return faults


def _rounding(source: Source, rows: Rows | None, signature: Signature) -> dict[str, Any] | None:
    """How far the model's own answers move when the example is rounded as a device rounds it. The gate judges
    the file by rounded rows; this says what that leaves out."""
    if rows is None:
        return None
    exact = parity.reference(source.answer, {"example": rows})
    moved = parity.compare(
        exact, lambda r: source.answer(export_gate.to_device_rows(r, signature)), signature
    )
    return {
        "rows": sum(moved.rows.values()),
        "label_mismatches": moved.label_mismatches,
        "largest_difference": moved.largest_difference,
    }


def _rounding_warnings(rounding: dict[str, Any]) -> list[str]:
    if not rounding["label_mismatches"] and rounding["largest_difference"] <= ROUNDING:
        return []
    return [
        "a .tflite takes float32, and the model itself answers otherwise when its input is rounded to that: "
        f"{rounding['label_mismatches']} labels of {rounding['rows']} example rows, differences up to "
        f"{rounding['largest_difference']:.2g} between devices and online callers"
    ]


def _some(held_out: Sample | None) -> Rows | None:
    if held_out is None or not len(held_out.rows):
        return None
    return held_out.rows.take(calibration.evenly_spaced(len(held_out.rows), comparison_rows.EXAMPLE))


def _accuracy(
    job: ExportJob, source: Source, held_out: Sample | None, runtime: TfliteRuntime, report: Report
) -> dict[str, Any] | None:
    """Against the example's true values, before and after; None when there are none."""
    if held_out is None or held_out.truth is None or not len(held_out.rows):
        return None
    try:
        before = metrics.measure(job.signature, source.answer(held_out.rows), held_out.truth)
        after = metrics.measure(job.signature, runtime.run(held_out.rows), held_out.truth)
    except ValueError as error:
        report.warnings.append(f"no accuracy was measured: {error}")
        return None
    if not before:
        return None
    name, value = next(iter(before.items()))
    return {
        "measure": name,
        "before": value,
        "after": after[name],
        "drop": value - after[name],
        "rows": len(held_out.rows),
    }


def _latency(runtime: TfliteRuntime, rows: Rows) -> dict[str, float]:
    """Microseconds for one row on this machine, one thread."""
    taken = []
    until = time.perf_counter() + TIMED_S
    for index in range(TIMED_RUNS):
        row = rows.take([index % len(rows)])
        started = time.perf_counter()
        runtime.run(row)
        ended = time.perf_counter()
        taken.append((ended - started) * 1e6)
        if ended > until:
            break
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
