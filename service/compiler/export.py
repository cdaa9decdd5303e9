"""Export one version as .tflite: write the file, run it on LiteRT against its source, and report.

Runs in an export child.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from registry.build_messages import ExportRequest, ExportResult
from registry.errors import Invalid, Refused, Unavailable
from registry.rows import Rows
from registry.signature import Signature
from registry.vocabulary import Quantize
from service.compiler import sandbox
from service.compiler.export_source import ExportSource, LabelledRows, load_source
from service.compiler.measure import comparison_rows, measured_rows, metrics, parity, row_independence
from service.compiler.report import BuildReport, ServedForm
from service.compiler.tflite import calibration, export_gate, quantize, runtime_versions
from service.compiler.tflite.quantize_modes import needs_calibration
from service.runtime import libraries
from service.runtime.tflite_runtime import TfliteRuntime

FILE = "model.tflite"
ZSTD_LEVEL = 19  # compressed once, sent many times
SMALL_GAIN = 0.95  # a quantized file above this share of the original is reported as not worth its loss
INDEPENDENCE_TOLERANCE = 1e-3  # between a row alone and among others: float32 and quantized sums are rounded
ROUNDING_WARNING = 1e-3  # differences above this share of a probability or a usual value are warned of
MAX_TIMED_RUNS = 300
MAX_TIMED_S = 1.0


def export_version(request: ExportRequest) -> ExportResult:
    """Never raises because of the model: a bad one gives `state="rejected"` and the reason in the report.

    Runs in a process that has called `sandbox.confine(request.memory_mb)`, with one thread per library.
    """
    report = BuildReport(request)
    with report.step("total"), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            exported = _export(request, report)
        except (Refused, Invalid, Unavailable) as error:
            exported = _rejected(str(error))
        except Exception as error:
            exported = _rejected(sandbox.explain_failure("export", error, request.memory_mb))
    exported.report = {**exported.report, **report.to_json()}
    return exported


def _rejected(reason: str) -> ExportResult:
    return ExportResult(state="rejected", report={"reason": reason})


def _export(request: ExportRequest, report: BuildReport) -> ExportResult:
    with report.step("load"):
        source = load_source(request, report)
    with report.step("convert"):
        float32 = source.convert()
    report.bytes["float32"] = len(float32)
    no_gain = quantize.nothing_to_gain(float32)
    mode: Quantize = request.quantize if no_gain is None else "none"
    calibration_rows, held_out = _split_example(request, mode, source, report)
    with report.step("quantize"):
        content = quantize.quantize(float32, mode, calibration_rows)
        report.fields["notes"] = _size_notes(request.quantize, no_gain, len(float32), len(content))
    content, size_faults = _fit_max_bytes(request, mode, source, content, calibration_rows, report)
    file = Path(request.out) / FILE
    file.write_bytes(content)
    report.bytes["tflite"] = len(content)
    report.fields["operators"] = runtime_versions.operators(content)
    report.fields["min_runtime"] = runtime_versions.min_runtime(content)
    faults = size_faults + _compare(request, mode, source, held_out, file, report)
    if faults:
        return _rejected("; ".join(faults))
    measured: str | None = None  # a published file is measured with its version
    if source.published is None or content != float32:
        assert report.served is not None
        measured = measured_rows.save(Path(request.out), report.served.kinds(), report.served.answer)
    else:  # the published graph under the signature's names
        content = source.published
        file.write_bytes(content)
        report.bytes["tflite"] = len(content)
    with report.step("compress"):
        compressed = file.with_suffix(".tflite.zst")
        compressed.write_bytes(pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(content, asbytes=True))
    report.bytes["zstd"] = compressed.stat().st_size
    minimum = report.fields["min_runtime"]
    return ExportResult(
        state="ready",
        report={},
        file=FILE,
        zstd=compressed.name,
        min_runtime=minimum,
        measured=measured,
        libraries=libraries.versions_for(["tflite"]),
    )


def _split_example(
    request: ExportRequest, mode: Quantize, source: ExportSource, report: BuildReport
) -> tuple[Rows | None, LabelledRows | None]:
    """The rows to calibrate with, where int8 needs them, and the example's rows to compare on."""
    if request.calibration is not None and needs_calibration(request.quantize):
        rows = calibration.read_calibration_rows(
            request.calibration, request.calibration_media_type, request.signature
        )
        report.fields["calibration"] = {"rows": len(rows), "from": "the given rows"}
        return rows, source.example
    if not needs_calibration(mode):
        return None, source.example
    if source.example is None:
        raise Refused(
            f"{mode} needs rows to calibrate with, and the version has no example: give calibration rows, or "
            "publish it with an example"
        )
    first, second = calibration.split_example(source.example.rows)
    rows = calibration.complete_rows(source.example.rows.take(first))
    report.fields["calibration"] = {"rows": len(rows), "from": "the version's example"}
    if first is second:
        report.warnings.append(
            f"the example has {len(first)} rows: {mode} was calibrated with rows that are also compared on"
        )
    return rows, source.example.take(second)


def _fit_max_bytes(
    request: ExportRequest,
    mode: Quantize,
    source: ExportSource,
    content: bytes,
    calibration_rows: Rows | None,
    report: BuildReport,
) -> tuple[bytes, list[str]]:
    """The file within `max_bytes`, with fewer trees where necessary; and the fault where it is too large."""
    max_bytes = request.bounds.max_bytes
    if max_bytes is None or len(content) <= max_bytes:
        return content, []
    reason = "only trees can be aggregated"
    with report.step("aggregate"):
        try:
            if source.within is not None:
                smaller = source.within(max_bytes)
                report.fields["given_up"] = smaller.reduction
                content = quantize.quantize(smaller.content, mode, calibration_rows)
        except Refused as error:
            reason = str(error)
    if len(content) <= max_bytes:
        return content, []
    return content, [f"the file has {len(content):,} bytes, the bound is {max_bytes:,}: {reason}"]


def _size_notes(mode: Quantize, no_gain: str | None, before: int, after: int) -> list[str]:
    """The gain of quantization as the report's `notes`. `no_gain`: the reason for not quantizing at all."""
    if mode == "none":
        return []
    sizes = f"{before:,} bytes before, {after:,} after"
    if no_gain is not None:
        return [f"{no_gain} ({sizes})"]
    if after > SMALL_GAIN * before:
        gain = "nothing" if after >= before else "next to nothing"
        return [f"{mode} gains {gain} here: {sizes}"]
    return [f"{mode}: {sizes}"]


def _compare(
    request: ExportRequest,
    mode: Quantize,
    source: ExportSource,
    held_out: LabelledRows | None,
    file: Path,
    report: BuildReport,
) -> list[str]:
    """Compare the file on LiteRT with its source; return the reasons why it is outside the bounds."""
    loss = export_gate.classify_loss(mode, source.exact, report.fields.get("given_up", ""))
    limits = export_gate.limits_for(request.bounds, loss, request.signature)
    report.fields["bounds"] = msgspec.to_builtins(limits)
    runtime = TfliteRuntime(file, request.signature)
    with report.step("reference"):
        blocks = source.blocks(_example_sample(held_out))
    report.served = ServedForm(
        request.signature, runtime.run, None, None, lambda: {b.kind: b.rows for b in blocks}
    )
    with report.step("measure"):
        judged = export_gate.judged_kinds([b.kind for b in blocks], loss)
        answer = source.tolerate(runtime.run, blocks) if source.tolerate else runtime.run
        fidelity = export_gate.measure(blocks, answer, request.signature, judged)
        report.fields |= msgspec.to_builtins(fidelity)
        faults = export_gate.find_faults(fidelity, limits)
        if not fidelity.error:
            row_independence.require_independent_rows(
                runtime.run,
                comparison_rows.concatenated([b.rows for b in blocks if b.kind in judged]),
                request.signature,
                "the exported file",
                INDEPENDENCE_TOLERANCE,
            )
            accuracy = _accuracy(request, source, held_out, runtime, report)
            report.fields["accuracy"] = accuracy
            faults += export_gate.find_accuracy_faults(accuracy, limits, request.bounds)
            report.fields["latency_us"] = _latency(runtime, blocks[0].rows)
    if (rounding := _input_rounding(source, _example_sample(held_out), request.signature)) is not None:
        report.fields["input_rounding"] = rounding
        report.warnings += _rounding_warnings(rounding)
    if held_out is not None and (names := export_gate.indistinct_features(held_out.rows, request.signature)):
        report.warnings.append(
            f"float32, which a .tflite takes, cannot tell all values of {', '.join(names[:10])} apart"
        )
    return faults


def _input_rounding(source: ExportSource, rows: Rows | None, signature: Signature) -> dict[str, Any] | None:
    """How far the source's own answers change when the example is rounded to float32, as devices round it.

    The gate compares on rounded rows, so its figures do not include this difference.
    """
    if rows is None:
        return None
    exact = parity.reference(source.answer, {"example": rows})
    rounded = parity.compare(
        exact, lambda r: source.answer(export_gate.to_device_rows(r, signature)), signature
    )
    return {
        "rows": sum(rounded.rows.values()),
        "label_mismatches": rounded.label_mismatches,
        "largest_difference": rounded.largest_difference,
    }


def _rounding_warnings(rounding: dict[str, Any]) -> list[str]:
    if not rounding["label_mismatches"] and rounding["largest_difference"] <= ROUNDING_WARNING:
        return []
    return [
        "a .tflite takes float32, and the model itself answers differently when its input is rounded to "
        f"float32: {rounding['label_mismatches']} labels of {rounding['rows']} example rows, differences up "
        f"to {rounding['largest_difference']:.2g} between devices and online callers"
    ]


def _example_sample(held_out: LabelledRows | None) -> Rows | None:
    if held_out is None or not len(held_out.rows):
        return None
    chosen = calibration.evenly_spaced(len(held_out.rows), comparison_rows.MAX_EXAMPLE_ROWS)
    return held_out.rows.take(chosen)


def _accuracy(
    request: ExportRequest,
    source: ExportSource,
    held_out: LabelledRows | None,
    runtime: TfliteRuntime,
    report: BuildReport,
) -> dict[str, Any] | None:
    """The report's `accuracy`: of the source and of the export; None without true values."""
    if held_out is None or held_out.truth is None or not len(held_out.rows):
        return None
    try:
        before = metrics.measure(request.signature, source.answer(held_out.rows), held_out.truth)
        after = metrics.measure(request.signature, runtime.run(held_out.rows), held_out.truth)
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
    """Microseconds per row on this machine, one row at a time on one thread."""
    durations = []
    until = time.perf_counter() + MAX_TIMED_S
    for index in range(MAX_TIMED_RUNS):
        row = rows.take([index % len(rows)])
        started = time.perf_counter()
        runtime.run(row)
        ended = time.perf_counter()
        durations.append((ended - started) * 1e6)
        if ended > until:
            break
    p50, p99 = np.percentile(durations, [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
