"""A forest over many rows: our kernel beside scikit-learn and ONNX Runtime, on one thread and on all cores.

    python -m benchmarks.forest_kernel [--rows 100000] [--trees 100] [--json]

All get the same float64 matrix in memory. On all cores, kernel and ONNX Runtime are asked as batch scoring
asks them: as many threads as cores, each with its share of the rows; scikit-learn by `n_jobs`. scikit-learn
answers `predict_proba` only, the others labels too. The quickest of several rounds counts, and in each round
everybody has his turn; ratios travel, absolutes belong to the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
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
from service.runtime.onnx_runtime import OnnxRuntime
from tests.harness.machine import describe_machine

CORES = len(os.sched_getaffinity(0))
FEATURES = 30
ROUNDS = 5


def models(trees: int) -> dict[str, Any]:
    features, labels = make_classification(20_000, FEATURES, n_informative=12, random_state=0)
    made = {
        "depth 10": RandomForestClassifier(trees, max_depth=10, n_jobs=CORES, random_state=0),
        "fully grown": RandomForestClassifier(trees, n_jobs=CORES, random_state=0),
        "histogram boosting": HistGradientBoostingClassifier(max_iter=trees, random_state=0),
    }
    return {name: model.fit(features, labels) for name, model in made.items()}


def runtimes(model: Any, folder: Path) -> tuple[Any, Any]:
    """The kernel and ONNX Runtime, or None where its form drifts, as a build makes them."""
    signature = describe.describe(model, None, Corrections.read(None)).signature
    node_file.save(flatten.flatten(model), folder / "forest.npz")
    answer = EstimatorRuntime(model, signature).run

    def reference() -> list[parity.ReferenceBlock]:
        return parity.reference(answer, comparison_rows.rows_by_kind(model, signature, None))

    chosen = candidates.choose(model, signature, reference, folder, OnnxRuntime).chosen
    onnx = OnnxRuntime(chosen.file, signature) if chosen and chosen.file else None
    return ForestRuntime(folder / "forest.npz", signature), onnx


def ways(
    model: Any, rows: np.ndarray, folder: Path, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], object]]:
    kernel, onnx = runtimes(model, folder)
    blocks = [Rows(matrix=part) for part in np.array_split(rows, 4 * CORES)]
    whole = Rows(matrix=rows)

    def scikit_learn(jobs: int) -> Callable[[], object]:
        def ask() -> object:
            if hasattr(model, "n_jobs"):
                model.n_jobs = jobs
            return model.predict_proba(rows)

        return ask

    found = {
        "kernel, 1": lambda: kernel.run(whole),
        f"kernel, {CORES}": lambda: list(pool.map(kernel.run, blocks)),
    }
    if hasattr(model, "n_jobs"):  # histogram boosting has OpenMP instead, which has all the cores
        found["scikit-learn, 1"] = scikit_learn(1)
    found[f"scikit-learn, {CORES}"] = scikit_learn(CORES)
    if onnx is not None:
        found["onnx, 1"] = lambda: onnx.run(whole)
        found[f"onnx, {CORES}"] = lambda: list(pool.map(onnx.run, blocks))
    return found


def rates(asked: dict[str, Callable[[], object]], rows: int) -> dict[str, float]:
    """Rows a second."""
    quickest = dict.fromkeys(asked, float("inf"))
    for _ in range(ROUNDS):
        for name, ask in asked.items():
            started = time.perf_counter()
            ask()
            quickest[name] = min(quickest[name], time.perf_counter() - started)
    return {name: rows / seconds for name, seconds in quickest.items()}


def show(measured: dict[str, dict[str, float]]) -> None:
    print(describe_machine())
    for name, found in measured.items():
        print(f"\n{name}")
        for way, rate in found.items():
            against = {t: found.get(f"scikit-learn, {t}") for t in ("1", str(CORES))}
            ratio = against[way.rpartition(", ")[2]]
            beside = f"   {rate / ratio:5.1f} x scikit-learn" if ratio else ""
            print(f"  {way + ' thread(s)':24}{rate:12,.0f} rows/s{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = np.random.default_rng(1).normal(size=(given.rows, FEATURES)) * 1.5
    measured = {}
    with ThreadPoolExecutor(CORES) as pool:
        for name, model in models(given.trees).items():
            with tempfile.TemporaryDirectory() as folder:
                measured[name] = rates(ways(model, rows, Path(folder), pool), given.rows)
    if given.json:
        print(json.dumps(measured))
    else:
        show(measured)


if __name__ == "__main__":
    main()
