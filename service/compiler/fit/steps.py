"""Run one step of a training in a build child: read rows, fit or predict, write one file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from registry.errors import Refused, describe_error
from registry.rows import Array
from service.compiler import safeload, sandbox
from service.compiler.fit import merging, training_plan, training_rows, validation_metrics
from service.compiler.fit.fit_records import FitResult, FitStep
from service.compiler.fit.training_rows import TrainingBlock
from service.compiler.fit.transformers import HEAD_ROWS, PartitionedPipeline
from service.compiler.signature.estimator import input_form

STEP_FILE = "result"
"""Name of the file that a step writes."""


def run(step: FitStep) -> FitResult:
    """Run a step. A bad estimator or bad rows give `state="rejected"` and a reason, not an exception.

    The caller has called `sandbox.confine(step.memory_mb)` and limited each library to one thread.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return run_or_raise(step)
        except Refused as error:
            reason = str(error)
        except Exception as error:
            if sandbox.may_lack_memory(error):
                reason = sandbox.explain_failure("fit", error, step.memory_mb)
            else:
                reason = f"{describe_error(error)}{_text_columns_hint(step, error)}"
    return FitResult(state="rejected", report={"reason": reason})


def _text_columns_hint(step: FitStep, error: Exception) -> str:
    """Name the text columns: scikit-learn names the value that is not a number, but not its column."""
    texts = [repr(f.name) for f in step.features if f.dtype == "string"]
    if not texts or "convert string" not in str(error):
        return ""
    return f"; text columns: {', '.join(texts[:10])}: exclude those that are not features, encode the others"


def run_or_raise(step: FitStep) -> FitResult:
    """Run a step. Raises `Refused` for a training that is not possible, and any error of the estimator."""
    with joblib.parallel_config(backend="sequential"):  # the other cores are for the worker's other lanes
        return _ACTIONS[step.do](step)


def _check(step: FitStep) -> FitResult:
    plan = training_plan.plan_training(training_plan.load_estimator(step), step.strategy)
    return FitResult(state="ready", report={f: getattr(plan, f) for f in plan.__struct_fields__})


def _transform(step: FitStep) -> FitResult:
    estimator = training_plan.load_estimator(step)
    transformers = _transformers(step, estimator)
    block = training_rows.read_all(step, input_form(estimator))
    if len(block):
        transformers.feed(step.index, block.X)
    if step.ends:
        transformers.end(step.index)
    return _write(step, transformers, len(block))


def _fit(step: FitStep) -> FitResult:
    estimator = training_plan.load_estimator(step)
    block = training_rows.read_all(step, input_form(estimator))
    if step.strategy == "partial_fit":
        return _write(step, _partial_fit(step, estimator, block), len(block))
    if not len(block):
        raise Refused("there are no rows to train on")
    if step.strategy == "single":
        return _write(step, estimator.fit(block.X, _target(step, block)), len(block))
    _require_classes(step, block)
    model = training_plan.set_seeds(training_plan.split_pipeline(estimator).model, step.number)
    model.fit(_transformers(step, estimator).transform(block.X), _target(step, block))
    return _write(step, model, len(block))


def _partial_fit(step: FitStep, estimator: Any, block: TrainingBlock) -> Any:
    model: Any = safeload.load(step.state) if step.state else training_plan.split_pipeline(estimator).model
    if not len(block):
        return model
    X = _transformers(step, estimator).transform(block.X)
    if step.classes is None:
        return model.partial_fit(X, block.y)
    return model.partial_fit(X, _target(step, block), classes=training_rows.class_array(step))


def _require_classes(step: FitStep, block: TrainingBlock) -> None:
    """Models of different sets of classes cannot be averaged."""
    absent = sorted(set(range(len(step.classes or ()))) - set(np.unique(block.y).tolist()))
    if step.classes is not None and absent:
        raise Refused(
            f"it has no rows of class {step.classes[absent[0]]!r} to train on; sampling stratified gives "
            "each partition rows of every class that has enough; use fewer partitions for a rare class"
        )


def _merge(step: FitStep) -> FitResult:
    """Write the model to publish, with its transformers if there are any."""
    models = [safeload.load(file) for file in step.files]
    if step.strategy == "single":
        return _write(step, models[0], 0)
    estimator = training_plan.load_estimator(step)
    parts, model = training_plan.split_pipeline(estimator), merging.merge(models)
    if parts.model_name is None:
        return _write(step, model, 0)
    transformers = _transformers(step, estimator)
    block = next(training_rows.read_blocks(step, input_form(estimator)))
    transformers.transform(training_rows.first_rows(block.X, HEAD_ROWS))  # fits the stateless transformers
    return _write(step, Pipeline([*transformers.fitted_steps(), (parts.model_name, model)]), 0)


def _predict(step: FitStep) -> FitResult:
    model = safeload.load(step.files[0])
    blocks = training_rows.read_blocks(step, input_form(model))
    predictions = [_predict_block(step, model, block) for block in blocks]
    arrays: dict[str, Any] = {
        "truth": np.concatenate([t for t, _, _ in predictions]) if predictions else np.empty(0),
        "predicted": np.concatenate([p for _, p, _ in predictions]) if predictions else np.empty(0),
    }
    if predictions and predictions[0][2] is not None:
        arrays["scores"] = np.concatenate([s for _, _, s in predictions])
    path = Path(step.out) / STEP_FILE
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return FitResult(state="ready", file=STEP_FILE, rows=len(arrays["truth"]))


def _predict_block(step: FitStep, model: Any, block: TrainingBlock) -> tuple[Array, Array, Array | None]:
    """(truth, predicted, scores) as the functions of `validation_metrics` take them."""
    predicted = np.asarray(model.predict(block.X))
    if not is_classifier(model):
        return block.y, predicted.reshape(-1), None
    classes = training_rows.class_array(step)
    codes = np.searchsorted(classes, predicted).astype(np.int64)
    if hasattr(model, "predict_proba"):
        scores = np.zeros((len(block), len(classes)))  # 0 for classes that the model was not trained on
        scores[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(block.X)
        return block.y, codes, scores
    if hasattr(model, "decision_function") and len(classes) == 2:
        return block.y, codes, np.asarray(model.decision_function(block.X)).reshape(-1, 1)
    return block.y, codes, None


def _measure(step: FitStep) -> FitResult:
    files = [np.load(file) for file in step.files]
    predictions = [f for f in files if len(f["truth"])]
    if not predictions:
        raise Refused("there are no validation rows; use a larger share for validation")
    truth, predicted = (np.concatenate([f[name] for f in predictions]) for name in ("truth", "predicted"))
    if step.classes is None:
        metrics = validation_metrics.regression_metrics(truth, predicted)
    else:
        scores = np.concatenate([f["scores"] for f in predictions]) if "scores" in predictions[0] else None
        metrics = validation_metrics.classification_metrics(truth, predicted, scores, len(step.classes))
    return FitResult(state="ready", rows=len(truth), metrics=metrics)


def _transformers(step: FitStep, estimator: Any) -> PartitionedPipeline:
    """The transformers as the `transform` steps so far have fitted them."""
    if step.transformers is None:
        return PartitionedPipeline(training_plan.split_pipeline(estimator).transformers)
    transformers = safeload.load(step.transformers)
    assert isinstance(transformers, PartitionedPipeline)
    return transformers


def _target(step: FitStep, block: TrainingBlock) -> Array:
    return block.y if step.classes is None else training_rows.class_labels(step, block.y)


def _write(step: FitStep, content: Any, rows: int) -> FitResult:
    joblib.dump(content, Path(step.out) / STEP_FILE)
    return FitResult(state="ready", file=STEP_FILE, rows=rows)


_ACTIONS = {
    "check": _check,
    "transform": _transform,
    "fit": _fit,
    "merge": _merge,
    "predict": _predict,
    "measure": _measure,
}
