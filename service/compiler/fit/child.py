"""A build child's work for a training: one step of it, and a verdict whatever happens."""

from __future__ import annotations

import warnings

import numpy as np

from registry.errors import Refused
from service.compiler import sandbox
from service.compiler.fit import steps
from service.compiler.fit.fit_records import Fitted, Step


def fit(step: Step) -> Fitted:
    """Never raises for a bad estimator or bad rows: that is `state="rejected"` with the reason in the report.

    Runs in a process that has called `sandbox.confine(step.memory_mb)`, with one thread per library.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return steps.run(step)
        except Refused as error:
            reason = str(error)
        except (MemoryError, SystemError) as error:
            reason = sandbox.why("fit", error, step.memory_mb)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}{_hint(step, error)}"
    return Fitted(state="rejected", report={"reason": reason})


def _hint(step: Step, error: Exception) -> str:
    """Estimators name the value that is no number, and not its column."""
    texts = [repr(f.name) for f in step.features if f.dtype == "string"]
    if not texts or "convert string" not in str(error):
        return ""
    return f"; {', '.join(texts[:10])} hold text: exclude what is no feature, encode what is one"
