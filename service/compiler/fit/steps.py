"""The steps of a training: what each reads, does, and leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline

from registry.errors import Refused
from registry.rows import Array
from service.compiler import safeload
from service.compiler.fit import blocks, check, figures, merging
from service.compiler.fit.blocks import Block
from service.compiler.fit.fit_records import Fitted, Step
from service.compiler.fit.learners import HEAD
from service.compiler.fit.transformers import Chain
from service.compiler.signature import row_layout

LEFT = "left"  # the name of a step's file


def run(step: Step) -> Fitted:
    """Do it. Raises `Refused` for what cannot be trained so, and whatever an estimator raises."""
    with joblib.parallel_config(backend="sequential"):  # the worker's other lanes need the other cores
        return _STEPS[step.do](step)


def _check(step: Step) -> Fitted:
    plan = check.plan(check.load(step), step.strategy)
    return Fitted(state="ready", report={f: getattr(plan, f) for f in plan.__struct_fields__})


def _transform(step: Step) -> Fitted:
    estimator = check.load(step)
    chain = _chain(step, estimator)
    block = blocks.whole(step, row_layout.kind(estimator))
    if len(block):
        chain.feed(step.index, block.X)
    if step.ends:
        chain.end(step.index)
    return _left(step, chain, len(block))


def _fit(step: Step) -> Fitted:
    estimator = check.load(step)
    block = blocks.whole(step, row_layout.kind(estimator))
    if step.strategy == "partial_fit":
        return _left(step, _by_parts(step, estimator, block), len(block))
    if not len(block):
        raise Refused("there are no rows to train on")
    if step.strategy == "single":
        return _left(step, estimator.fit(block.X, _y(step, block)), len(block))
    _require_classes(step, block)
    model = check.seeded(check.parts(estimator).model, step.number)
    return _left(step, model.fit(_chain(step, estimator).transform(block.X), _y(step, block)), len(block))


def _by_parts(step: Step, estimator: Any, block: Block) -> Any:
    model: Any = safeload.load(step.state) if step.state else check.parts(estimator).model
    if not len(block):
        return model
    X = _chain(step, estimator).transform(block.X)
    if step.classes is None:
        return model.partial_fit(X, block.y)
    return model.partial_fit(X, _y(step, block), classes=blocks.classes(step))


def _require_classes(step: Step, block: Block) -> None:
    """Models that know other classes than their neighbours cannot be averaged."""
    absent = sorted(set(range(len(step.classes or ()))) - set(np.unique(block.y).tolist()))
    if step.classes is not None and absent:
        raise Refused(
            f"it has no rows of class {step.classes[absent[0]]!r} to train on; "
            "sampling stratified deals each class to all partitions, as far as it has rows for them: "
            "take fewer partitions where it has too few"
        )


def _merge(step: Step) -> Fitted:
    """The model as it is published: with the transformers before it, if there are any."""
    models = [safeload.load(file) for file in step.files]
    if step.strategy == "single":
        return _left(step, models[0], 0)
    estimator = check.load(step)
    parts, model = check.parts(estimator), merging.merge(models)
    if parts.name is None:
        return _left(step, model, 0)
    chain = _chain(step, estimator)
    block = next(blocks.batches(step, row_layout.kind(estimator)))
    chain.transform(blocks.head(block.X, HEAD))  # what learns nothing has not seen the columns yet
    return _left(step, Pipeline([*chain.steps(), (parts.name, model)]), 0)


def _predict(step: Step) -> Fitted:
    model = safeload.load(step.files[0])
    found = [_answers(step, model, block) for block in blocks.batches(step, row_layout.kind(model))]
    truth = [t for t, _, _ in found]
    arrays: dict[str, Any] = {
        "truth": np.concatenate(truth) if truth else np.empty(0),
        "predicted": np.concatenate([p for _, p, _ in found]) if truth else np.empty(0),
    }
    if found and found[0][2] is not None:
        arrays["chances"] = np.concatenate([c for _, _, c in found])
    path = Path(step.out) / LEFT
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return Fitted(state="ready", file=LEFT, rows=len(arrays["truth"]))


def _answers(step: Step, model: Any, block: Block) -> tuple[Array, Array, Array | None]:
    """Truth, prediction and chances as `figures` takes them."""
    predicted = np.asarray(model.predict(block.X))
    if not is_classifier(model):
        return block.y, predicted.reshape(-1), None
    known = blocks.classes(step)
    codes = np.searchsorted(known, predicted).astype(np.int64)
    if hasattr(model, "predict_proba"):
        chances = np.zeros((len(block), len(known)))  # no chance for a class that it was not trained on
        chances[:, np.searchsorted(known, model.classes_)] = model.predict_proba(block.X)
        return block.y, codes, chances
    if hasattr(model, "decision_function") and len(known) == 2:
        return block.y, codes, np.asarray(model.decision_function(block.X)).reshape(-1, 1)
    return block.y, codes, None


def _measure(step: Step) -> Fitted:
    loaded = [np.load(file) for file in step.files]
    held = [f for f in loaded if len(f["truth"])]
    if not held:
        raise Refused("no rows were held out; take a larger share for validation")
    truth, predicted = (np.concatenate([f[name] for f in held]) for name in ("truth", "predicted"))
    if step.classes is None:
        metrics = figures.of_values(truth, predicted)
    else:
        chances = np.concatenate([f["chances"] for f in held]) if "chances" in held[0] else None
        metrics = figures.of_labels(truth, predicted, chances, len(step.classes))
    return Fitted(state="ready", rows=len(truth), metrics=metrics)


def _chain(step: Step, estimator: Any) -> Chain:
    """The transformers as far as they are fitted."""
    if step.transformers is None:
        return Chain(check.parts(estimator).before)
    found = safeload.load(step.transformers)
    assert isinstance(found, Chain)
    return found


def _y(step: Step, block: Block) -> Array:
    return block.y if step.classes is None else blocks.labels(step, block.y)


def _left(step: Step, made: Any, rows: int) -> Fitted:
    joblib.dump(made, Path(step.out) / LEFT)
    return Fitted(state="ready", file=LEFT, rows=rows)


_STEPS = {
    "check": _check,
    "transform": _transform,
    "fit": _fit,
    "merge": _merge,
    "predict": _predict,
    "measure": _measure,
}
