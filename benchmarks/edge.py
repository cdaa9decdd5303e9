"""Every estimator that can be exported to .tflite, compared with its file: labels, bytes and latency.

    python -m benchmarks.edge [--only TEXT] [--write]

Each estimator is fitted on 6,000 rows. The predictions are compared for 12,000 rows, for every threshold of
its trees, and for the next float32 on either side of each (up to three behind scalers, which round).
Latencies are of one row on one thread after a warm-up: they depend on the machine, their ratios hardly.
`--write` writes the tables to docs/edge-estimators.md.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from registry.errors import Refused
from registry.rows import Array, Outputs, Rows
from registry.signature import Signature
from registry.vocabulary import Quantize
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.tflite.compose import supported_types
from service.compiler.tflite.conversion import convert
from service.compiler.tflite.quantize import quantize
from service.compiler.tflite.runtime_versions import min_tflite
from tests.service.compiler.tflite import cases
from tests.service.compiler.tflite.litert_helpers import device_rows, loaded, rows_at_thresholds, signature_of

DOC = Path(__file__).parents[1] / "docs" / "edge-estimators.md"
FIT_ROWS, COMPARED_ROWS, TIMED_ROWS = 6_000, 12_000, 300
QUANTIZED: tuple[Quantize, ...] = ("float16", "dynamic", "int8")
GROUPS = {
    "Trees": cases.TREES,
    "Linear models, networks, ensembles": cases.LINEAR,
    "Transformers": cases.TRANSFORMS,
}


@dataclass
class EstimatorFigures:
    """The measurements of one estimator."""

    name: str
    rows: int
    mismatches: int
    difference: float
    bytes: dict[str, int | None]  # by quantize mode; None: refused
    agreement: dict[str, float]  # of labels, by quantize mode
    unchanged: list[str]  # quantize modes that change nothing
    pickled: int
    sklearn_us: tuple[float, float]  # p50, p99
    litert_us: tuple[float, float]
    min_tflite: str

    def cells(self) -> list[str]:
        sizes = [f"{self.bytes['none']:,}"]
        for mode in QUANTIZED:
            size = self.bytes[mode]
            same = mode in self.unchanged
            agrees = f" ({self.agreement[mode]:.2%})" if mode in self.agreement else ""
            sizes.append("refused" if size is None else "the same" if same else f"{size:,}{agrees}")
        speeds = [f"{p50:,.0f} / {p99:,.0f}" for p50, p99 in (self.sklearn_us, self.litert_us)]
        figures = [f"{self.rows:,}", str(self.mismatches), f"{self.difference:.1e}"]
        return [self.name, *figures, *sizes, f"{self.pickled:,}", *speeds, self.min_tflite]


HEADER = [
    "estimator",
    "rows",
    "labels that differ",
    "largest difference",
    ".tflite bytes",
    "float16",
    "dynamic int8",
    "int8",
    "pickle bytes",
    "scikit-learn us, p50 / p99",
    "LiteRT us, p50 / p99",
    "first TFLite",
]


def measure(name: str, data: cases.Data, folder: Path) -> EstimatorFigures:
    model, rows, target = cases.ALL[name](data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some do not converge on purpose
        model.fit(rows[:FIT_ROWS], None if target is None else target[:FIT_ROWS])
    plain = name not in cases.TREES or "Encoder" in name or "Column" in name
    compared = rows if plain else np.concatenate([rows, rows_at_thresholds(model, rows)])
    signature = signature_of(model, rows)
    content = convert(model, signature)
    runtime, estimator = loaded(folder, content, signature), EstimatorRuntime(model, signature)
    expected = estimator.run(device_rows(compared))
    actual = runtime.run(device_rows(compared))
    expected_first = {n: a[:COMPARED_ROWS] for n, a in expected.items()}
    sizes, agreement, unchanged = _quantized(content, signature, folder, rows, expected_first)
    return EstimatorFigures(
        name,
        len(compared),
        sum(int((expected[n] != actual[n]).sum()) for n in expected if expected[n].dtype.kind != "f"),
        max(
            (_difference(expected[n], actual[n]) for n in expected if expected[n].dtype.kind == "f"),
            default=0.0,
        ),
        sizes,
        agreement,
        unchanged,
        len(pickle.dumps(model)),
        latency(lambda i: estimator.run(device_rows(rows[i : i + 1])), TIMED_ROWS),
        latency(lambda i: run_row(runtime, rows, i), TIMED_ROWS * 10),
        min_tflite(content) or "unknown",
    )


def run_row(runtime: Any, rows: Array, i: int) -> Outputs:
    outputs: Outputs = runtime.run(Rows(matrix=rows[i : i + 1]))
    return outputs


def _difference(a: Array, b: Array) -> float:
    """Return the largest difference, relative to the largest value if that is above 1."""
    if (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0) / max(1.0, np.nanmax(np.abs(a), initial=0.0)))


def _quantized(
    content: bytes, signature: Signature, folder: Path, rows: Array, expected: Outputs
) -> tuple[dict[str, int | None], dict[str, float], list[str]]:
    sizes: dict[str, int | None] = {"none": len(content)}
    agreement, unchanged = {}, []
    for mode in QUANTIZED:
        try:
            small = quantize(content, mode, device_rows(rows[:FIT_ROWS]))
        except Refused:
            sizes[mode] = None
            continue
        sizes[mode] = len(small)
        unchanged += [mode] if small == content else []
        labels = [n for n in expected if n.endswith("label")]
        if labels and small != content:
            (folder / mode).mkdir()
            actual = loaded(folder / mode, small, signature).run(device_rows(rows))
            agreement[mode] = float(np.mean([(actual[n] == expected[n]).mean() for n in labels]))
    return sizes, agreement, unchanged


def latency(call: Callable[[int], object], times: int) -> tuple[float, float]:
    """Return p50 and p99 of the duration of `call(i)` in microseconds."""
    for i in range(10):
        call(i)
    durations_us = []
    for i in range(times):
        started = time.perf_counter()
        call(i % COMPARED_ROWS)
        durations_us.append((time.perf_counter() - started) * 1e6)
    return float(np.percentile(durations_us, 50)), float(np.percentile(durations_us, 99))


def measure_conversion() -> str:
    """Measure the time and peak memory of converting 100 trees, each in a separate process."""
    lines = []
    for depth in (10, None):
        with tempfile.NamedTemporaryFile() as file:
            data = cases.data(COMPARED_ROWS)
            model = cases.forest_c(100, max_depth=depth, random_state=0).fit(data.x, data.three)
            pickle.dump((model, signature_of(model)), file)
            file.flush()
            argv = [sys.executable, "-m", "benchmarks.edge", "--convert", file.name]
            result = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
        lines.append(f"- a forest of 100 trees, {f'depth {depth}' if depth else 'fully grown'}: {result}")
    return "\n".join(lines)


def convert_and_measure(path: str) -> str:
    model, signature = pickle.loads(Path(path).read_bytes())
    started = time.perf_counter()
    content = convert(model, signature)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"{seconds:.2f} s, {len(content):,} bytes, {peak:.0f} MB peak memory, including scikit-learn"


def table(lines: list[EstimatorFigures]) -> str:
    rows = [HEADER, ["---"] * len(HEADER), *(line.cells() for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def supported() -> str:
    names = sorted({t.__name__ for t in supported_types()})
    return ", ".join(f"`{name}`" for name in names)


INTRODUCTION = """# Estimators with a .tflite form, and how closely the files match them

Written by `python -m benchmarks.edge --write`, for the estimators in
`tests/service/compiler/tflite/cases.py`.

{supported}.

Pipelines, searches and ensembles of these are supported too. All other estimators are refused by name, and
so are text features, splits on categories (`HistGradientBoosting*`), infrequent categories, Python
functions (`FunctionTransformer`), and boosting that starts from another estimator (`init`).

- **Trees** make the same comparisons as scikit-learn. Thresholds are rounded down to float32 and moved back
  through the scalers before the trees, so that every float32, and every missing value, reaches the same
  leaf. Leaf values are added in two float32 parts, so that ties and near-ties get scikit-learn's label.
- **Linear models, networks and projections** compute in float32 where scikit-learn computes in float64.
  Labels may differ where the probabilities of two classes differ by less than 1e-6.
- **Unknown categories** give zeros (`OneHotEncoder`) or -1 (`OrdinalEncoder`), also where scikit-learn
  raises an error.
- **Quantization** changes only layers with weights. Trees do not have such layers, so their files stay the
  same. Very small models become larger. The percentages in parentheses are the labels that equal the
  estimator's. `refused`: LiteRT cannot load the quantized file, because features of very different sizes
  share one scale. Scale the features first; the models without a scaler in these tables show the effect of
  int8 otherwise.
- **first TFLite** is the oldest `tflite-runtime` that supports the operators of the file. Every release of
  `ai-edge-litert` supports them. All float32 and float16 files also ran on `tflite-runtime` 2.14 and LiteRT
  1.0.1, with the same answers. Dynamic int8 needs TFLite 2.17 and is refused by older releases, which would
  compute it differently.

Differences are absolute up to 1, and relative to the largest value above 1. {machine}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only estimators whose name contains this text")
    parser.add_argument("--write", action="store_true", help="write docs/edge-estimators.md")
    parser.add_argument("--convert", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        print(convert_and_measure(options.convert))
        return
    data = cases.data(COMPARED_ROWS)
    sections = []
    with threadpool_limits(limits=1):
        for title, group in GROUPS.items():
            lines = []
            for name in (n for n in group if options.only in n):
                with tempfile.TemporaryDirectory() as folder:
                    lines.append(measure(name, data, Path(folder)))
                print(" | ".join(lines[-1].cells()), flush=True)
            sections.append(f"## {title}\n\n{table(lines)}\n")
        conversion = measure_conversion()
    print(conversion)
    if options.write:
        machine = f"Python {sys.version.split()[0]}, one thread of a shared machine."
        head = INTRODUCTION.format(supported=supported(), machine=machine)
        DOC.write_text("\n".join([head, *sections, "## Conversion\n", conversion, ""]))


if __name__ == "__main__":
    main()
