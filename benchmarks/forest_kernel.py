"""Compare our forest kernel with scikit-learn and ONNX Runtime: calls of few rows, many rows on all cores.

    python -m benchmarks.forest_kernel [--rows 100000] [--trees 100] [--json]

All read the same float64 matrix in memory. On all cores, the kernel and ONNX Runtime run as in batch
scoring, with one thread per core that scores a share of the rows; scikit-learn uses `n_jobs`. scikit-learn
returns `predict_proba` only, the others also return labels. The fastest of several interleaved rounds
counts. Calls of few rows are those of predictions; their CPU time is measured, on one thread. Ratios can be
compared between machines, absolute numbers cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

from registry.rows import Rows
from service.compiler.measure import comparison_rows, parity
from service.compiler.onnx import candidates
from service.compiler.signature import describe
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.estimator import EstimatorRuntime
from service.compiler.trees import flatten
from service.runtime import node_file
from service.runtime.forest_runtime import ForestRuntime
from service.runtime.kernel_code import load_or_compile
from service.runtime.onnx_runtime import OnnxRuntime
from tests.harness.machine import describe_machine

CORES = len(os.sched_getaffinity(0))
FEATURES = 30
ROUNDS = 5
CALL_ROWS = (1, 4, 16, 64)
"""Rows of the calls of predictions."""


def cases(trees: int, rows: int) -> dict[str, tuple[Any, np.ndarray]]:
    """Return fitted models and the rows that they score."""
    random = np.random.default_rng(1)
    features, labels = make_classification(20_000, FEATURES, n_informative=12, random_state=0)
    estimators = {
        "depth 10": RandomForestClassifier(trees, max_depth=10, n_jobs=CORES, random_state=0),
        "fully grown": RandomForestClassifier(trees, n_jobs=CORES, random_state=0),
        "histogram boosting": HistGradientBoostingClassifier(max_iter=trees, random_state=0),
    }
    matrix = random.normal(size=(rows, FEATURES)) * 1.5
    fitted = {name: (model.fit(features, labels), matrix) for name, model in estimators.items()}
    cancer, malignant = load_breast_cancer(return_X_y=True)
    forest = RandomForestClassifier(trees, n_jobs=CORES, random_state=0).fit(cancer, malignant)
    return {"breast cancer": (forest, np.resize(random.permutation(cancer), (rows, FEATURES))), **fitted}


def runtimes(model: Any, folder: Path) -> tuple[Any, Any]:
    """Return the kernel and ONNX Runtime as a build creates them; None if the ONNX graph is not
    equivalent."""
    signature = describe.describe(model, None, Corrections.read(None)).signature
    node_file.save(flatten.flatten(model), folder / "forest.nodes")
    answer = EstimatorRuntime(model, signature).run

    def reference() -> list[parity.ReferenceBlock]:
        return parity.reference(answer, comparison_rows.rows_by_kind(model, signature, None))

    chosen = candidates.choose(model, signature, answer, reference, folder, OnnxRuntime).chosen
    onnx = OnnxRuntime(chosen.file, signature) if chosen and chosen.file else None
    return ForestRuntime(folder / "forest.nodes", signature, load_or_compile()), onnx


def call_times(model: Any, kernel: Any, onnx: Any, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the CPU microseconds of a call, by number of rows and by what answers."""
    times: dict[str, dict[str, float]] = {}
    for count in CALL_ROWS:
        some = rows[:count].copy()
        call = Rows(matrix=some)
        functions: dict[str, Callable[[], object]] = {"kernel": partial(kernel.run, call)}
        if onnx is not None:
            functions["onnx"] = partial(onnx.run, call)
        functions["scikit-learn"] = partial(model.predict_proba, some)
        times[str(count)] = fastest_calls(functions)
    return times


def fastest_calls(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    fastest = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            repeat = 5 if name == "scikit-learn" else 500
            start = time.process_time()
            for _ in range(repeat):
                function()
            fastest[name] = min(fastest[name], (time.process_time() - start) / repeat * 1e6)
    return fastest


def scoring_functions(
    model: Any, kernel: Any, onnx: Any, rows: np.ndarray, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], object]]:
    blocks = [Rows(matrix=part) for part in np.array_split(rows, 4 * CORES)]
    all_rows = Rows(matrix=rows)

    def scikit_learn(jobs: int) -> Callable[[], object]:
        def predict() -> object:
            if hasattr(model, "n_jobs"):
                model.n_jobs = jobs
            return model.predict_proba(rows)

        return predict

    functions = {
        "kernel, 1": lambda: kernel.run(all_rows),
        f"kernel, {CORES}": lambda: list(pool.map(kernel.run, blocks)),
    }
    if hasattr(model, "n_jobs"):  # histogram boosting uses OpenMP, which always takes all cores
        functions["scikit-learn, 1"] = scikit_learn(1)
    functions[f"scikit-learn, {CORES}"] = scikit_learn(CORES)
    if onnx is not None:
        functions["onnx, 1"] = lambda: onnx.run(all_rows)
        functions[f"onnx, {CORES}"] = lambda: list(pool.map(onnx.run, blocks))
    return functions


def rates(functions: dict[str, Callable[[], object]], rows: int) -> dict[str, float]:
    """Return the rows per second of each function."""
    fastest = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return {name: rows / seconds for name, seconds in fastest.items()}


def print_rates(model_rates: dict[str, float]) -> None:
    for label, rate in model_rates.items():
        threads = label.rpartition(", ")[2]
        baseline = model_rates.get(f"scikit-learn, {threads}")
        ratio = f"   {rate / baseline:5.1f} x scikit-learn" if baseline else ""
        print(f"  {label + ' thread(s)':24}{rate:12,.0f} rows/s{ratio}")


def print_calls(times: dict[str, dict[str, float]]) -> None:
    for count, by_name in times.items():
        parts = [f"{name} {us:,.1f} us ({us / by_name['kernel']:,.1f} x)" for name, us in by_name.items()]
        print(f"  {count + ' row(s) a call':24}{', '.join(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(CORES) as pool:
        for name, (model, rows) in cases(options.trees, options.rows).items():
            with tempfile.TemporaryDirectory() as folder:
                kernel, onnx = runtimes(model, Path(folder))
                functions = scoring_functions(model, kernel, onnx, rows, pool)
                results[name] = {"rates": rates(functions, len(rows))}
                if hasattr(model, "n_jobs"):
                    model.n_jobs = 1
                results[name]["calls"] = call_times(model, kernel, onnx, rows)
    if options.json:
        print(json.dumps(results))
        return
    print(describe_machine())
    for name, result in results.items():
        print(f"\n{name}")
        print_rates(result["rates"])
        print_calls(result["calls"])


if __name__ == "__main__":
    main()
