"""Can this estimator be trained by that strategy? Said before any row is read, and by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from sklearn.base import clone, is_classifier, is_regressor
from sklearn.pipeline import Pipeline

from registry.errors import Refused
from service.compiler import safeload
from service.compiler.fit import merging
from service.compiler.fit.fit_records import SEED, Plan, Step, Strategy
from service.compiler.fit.sampling import random
from service.compiler.fit.transformers import Chain


class Parts(NamedTuple):
    """An estimator taken apart: what comes before the model, and the model."""

    before: list[tuple[str, Any]]
    name: str | None  # the model's step; None: there is no pipeline
    model: Any


def load(step: Step) -> Any:
    """The unfitted estimator, with a seed wherever it leaves something to chance. Raises `Refused`."""
    found = safeload.load(step.estimator)
    if isinstance(found, type) or not hasattr(found, "fit") or not hasattr(found, "get_params"):
        raise Refused(f"the file holds {type(found).__name__!r} and no scikit-learn estimator")
    return seeded(clone(found))


def seeded(estimator: Any, *place: int) -> Any:
    """`estimator` with its `random_state`s set: those it leaves open, and all of them for a `place` of its
    own (a member of an ensemble: they must not be twins)."""
    for name, value in estimator.get_params().items():
        if name.rpartition("__")[2] != "random_state" or not (value is None or isinstance(value, int)):
            continue
        if place:
            value = int(random(value or SEED, *place).integers(2**31))
        estimator.set_params(**{name: SEED if value is None else value})
    return estimator


def parts(estimator: Any) -> Parts:
    if not isinstance(estimator, Pipeline):
        return Parts([], None, estimator)
    *before, (name, model) = estimator.steps
    return Parts(before, name, model)


def plan(estimator: Any, strategy: Strategy) -> Plan:
    """Raises `Refused`, naming the estimator or the step that is in the way."""
    model = parts(estimator).model
    name = type(model).__name__
    task = "classification" if is_classifier(estimator) else "regression"
    if not is_classifier(estimator) and not is_regressor(estimator):
        raise Refused(f"{name} is neither a classifier nor a regressor; a training needs one of them")
    if strategy == "single":
        return Plan(name, task, ())  # type: ignore[arg-type]
    if strategy == "partial_fit" and not hasattr(model, "partial_fit"):
        raise Refused(f"{name} has no partial_fit; take the strategy ensemble or single")
    merged = merging.how(model) if strategy == "ensemble" else None
    return Plan(name, task, Chain(parts(estimator).before).passes, merged)  # type: ignore[arg-type]
