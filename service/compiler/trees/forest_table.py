"""Build the table of nodes of a tree ensemble, on which predictions and batch scoring run, and measure it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import Refused, Unavailable, describe_error
from registry.signature import Signature
from service.compiler.measure import parity
from service.compiler.report import BuildReport
from service.compiler.trees import flatten, tree_pipeline
from service.runtime import kernel_code, node_file
from service.runtime.forest_runtime import ForestRuntime

TABLE = "forest.nodes"


def build_forest_table(
    model: Any,
    signature: Signature,
    reference: Callable[[], list[parity.ReferenceBlock]],
    out: Path,
    report: BuildReport,
) -> str | None:
    """Write the table into `out`. Returns its file name, or None without a table.

    The table is kept only if its runtime gives the answers of the reference. `report["forest"]` holds the
    figures, or the reason for the missing table. A version without a table is served as well.
    """
    path = out / TABLE
    try:
        with report.step("forest"):
            figures, size = _save_and_measure(model, signature, reference, path)
    except (Refused, Unavailable) as error:
        report.fields["forest"] = {"reason": str(error)}
    except MemoryError:
        report.fields["forest"] = {"reason": "the table needs more memory than the limit of a build"}
    except Exception as error:  # an estimator of another scikit-learn release may lack any attribute
        report.fields["forest"] = {"reason": describe_error(error)[:200]}
    else:
        report.fields["forest"] = parity.report_entry(figures)
        if figures.within:
            report.bytes["forest"] = size
            return TABLE
        report.fields["forest"]["reason"] = figures.error or "its answers differ from the model's"
    path.unlink(missing_ok=True)
    return None


def _save_and_measure(
    model: Any, signature: Signature, reference: Callable[[], list[parity.ReferenceBlock]], path: Path
) -> tuple[parity.ParityFigures, int]:
    steps, last = tree_pipeline.split_forest_pipeline(model)
    if not flatten.is_forest(last):
        raise Refused(f"{type(last).__name__} is not a tree ensemble")
    if steps and all(i.dtype == "float32" for i in signature.inputs):
        raise Refused("the model scales float32 columns in float32, a table of nodes in float64")
    size = node_file.save(flatten.flatten(last), path, steps)
    runtime = ForestRuntime(path, signature, kernel_code.load_or_compile())
    figures = parity.compare(reference(), runtime.run, signature)
    if figures.within:
        require_same_answers_alone(runtime, reference())
    return figures, size


def require_same_answers_alone(runtime: ForestRuntime, blocks: list[parity.ReferenceBlock]) -> None:
    """Raise `Refused` unless the table gives each row alone the answer that it gives to all together.

    Online calls of few rows run other loops than blocks of rows. Both add the same numbers in the same order.
    """
    for block in blocks:
        together = runtime.run(block.rows)
        alone = [runtime.run(block.rows.take(slice(i, i + 1))) for i in range(len(block.rows))]
        for name, answers in together.items():
            if np.concatenate([answer[name] for answer in alone]).tolist() != answers.tolist():
                raise Refused(f"the table of nodes answers {block.kind} rows differently alone and together")
