"""The other form of a tree ensemble that a build makes: the flat table that batch scoring runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from registry.errors import Refused, Unavailable
from registry.signature import Signature
from service.compiler.measure import parity
from service.compiler.report import Report
from service.compiler.trees import flatten, tree_pipeline
from service.runtime import node_file
from service.runtime.forest_runtime import ForestRuntime

TABLE = "forest.npz"


def table(
    model: Any, signature: Signature, reference: Callable[[], list[parity.Block]], out: Path, report: Report
) -> str | None:
    """The name of the table's file in `out`, if the serving runtime itself answers from it as the model does.

    `report["forest"]` has the figures, or says why there is none: the version is served all the same.
    """
    path = out / TABLE
    try:
        with report.step("forest"):
            figures, size = _measured(model, signature, reference, path)
    except (Refused, Unavailable) as error:
        report.fields["forest"] = {"reason": str(error)}
    except MemoryError:
        report.fields["forest"] = {"reason": "the table needs more memory than a build may use"}
    except Exception as error:  # an estimator of another release of scikit-learn may lack anything
        report.fields["forest"] = {"reason": f"{type(error).__name__}: {error}"[:200]}
    else:
        report.fields["forest"] = {
            "bounds": parity.bounds(),
            "rows": figures.rows,
            "label_mismatches": figures.label_mismatches,
            "largest_difference": figures.largest_difference,
        }
        if figures.within:
            report.bytes["forest"] = size
            return TABLE
        report.fields["forest"]["reason"] = figures.error or "its answers differ from the model's"
    path.unlink(missing_ok=True)
    return None


def _measured(
    model: Any, signature: Signature, reference: Callable[[], list[parity.Block]], path: Path
) -> tuple[parity.Figures, int]:
    steps, last = tree_pipeline.split(model)
    if not flatten.is_forest(last):
        raise Refused(f"{type(last).__name__} is no tree ensemble")
    if steps and all(i.dtype == "float32" for i in signature.inputs):
        raise Refused("it scales float32 columns in float32, and a table of nodes in doubles")
    size = node_file.save(flatten.flatten(last), path, steps)
    return parity.compare(reference(), ForestRuntime(path, signature).run, signature), size
