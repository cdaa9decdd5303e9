"""Check that a strategy can train an estimator, before any row is read, and prepare the estimator."""

from __future__ import annotations

from typing import Any, NamedTuple

from sklearn.base import clone, is_classifier, is_regressor
from sklearn.pipeline import Pipeline

from registry.errors import Refused
from registry.vocabulary import Strategy
from service.compiler import other_versions, pickle_file, safeload
from service.compiler.fit import merging
from service.compiler.fit.fit_records import SEED, FitPlan, FitStep
from service.compiler.fit.sampling import seeded_generator
from service.compiler.fit.transformers import PartitionedPipeline


class PipelineParts(NamedTuple):
    """The transformers of a pipeline, and the model at its end."""

    transformers: list[tuple[str, Any]]
    model_name: str | None  # name of the model's step; None: the estimator is not a pipeline
    model: Any


def load_estimator(step: FitStep) -> Any:
    """Load the unfitted estimator and set the seeds that it leaves open. Raises `Refused`."""
    estimator = safeload.load(step.estimator)
    if isinstance(estimator, type) or not hasattr(estimator, "fit") or not hasattr(estimator, "get_params"):
        raise Refused(f"the file holds {type(estimator).__name__!r}, not a scikit-learn estimator")
    version, _ = pickle_file.recorded_versions(step.estimator)
    if version is not None and other_versions.is_other(version):
        other_versions.require_parameters(estimator, version)
    return set_seeds(clone(estimator))


def set_seeds(estimator: Any, *key: int) -> Any:
    """Set each unset `random_state`; with a `key`, set all of them.

    Members of an ensemble get different keys, so that they are not copies of each other.
    """
    for name, value in estimator.get_params().items():
        if name.rpartition("__")[2] != "random_state" or not (value is None or isinstance(value, int)):
            continue
        if key:
            value = int(seeded_generator(value or SEED, *key).integers(2**31))
        estimator.set_params(**{name: SEED if value is None else value})
    return estimator


def split_pipeline(estimator: Any) -> PipelineParts:
    """Split a pipeline before its last step. For any other estimator, the list of transformers is empty."""
    if not isinstance(estimator, Pipeline):
        return PipelineParts([], None, estimator)
    *transformers, (name, model) = estimator.steps
    return PipelineParts(transformers, name, model)


def plan_training(estimator: Any, strategy: Strategy) -> FitPlan:
    """Raises `Refused`, naming the estimator or the step that the strategy cannot train."""
    model = split_pipeline(estimator).model
    name = type(model).__name__
    task = "classification" if is_classifier(estimator) else "regression"
    if not is_classifier(estimator) and not is_regressor(estimator):
        raise Refused(f"{name} is neither a classifier nor a regressor; training supports only these")
    if strategy == "single":
        return FitPlan(name, task, ())  # type: ignore[arg-type]
    if strategy == "partial_fit" and not hasattr(model, "partial_fit"):
        raise Refused(f"{name} has no partial_fit; use the strategy ensemble or single")
    merged = merging.describe_merge(model) if strategy == "ensemble" else None
    passes = PartitionedPipeline(split_pipeline(estimator).transformers).passes
    return FitPlan(name, task, passes, merged)  # type: ignore[arg-type]
