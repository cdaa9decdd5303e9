"""One walker over scikit-learn's composites: which estimators are inside, and which columns reach them.

A composite is an estimator that passes rows to other estimators when it answers: pipelines, searches, column
transformers, feature unions, voting, stacking, bagging and the like. `parts` lists what a composite passes
its rows to, `walk` visits everything inside, `steps` and `chain` follow pipelines, and `sources_after` tracks
columns through transformers. Add a composite to `_DELEGATES` if it answers exactly as its inner estimator
does, otherwise to `_PARTS`; a composite transformer also to `_after`. Those in `_PARTS` also need a converter
in `service/compiler/tflite` to be exported to .tflite; delegates use that of their inner estimator.

All functions read fitted estimators. Estimators that the composite does not call when it answers (the one
inside `SelectFromModel`, the template of a forest) are not parts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn import (
    calibration,
    compose,
    ensemble,
    feature_selection,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    pipeline,
    preprocessing,
    semi_supervised,
)
from sklearn.feature_selection import SelectorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import _safe_indexing, check_array

PASSTHROUGH = (None, "passthrough")

INVERTIBLE_SCALERS = (
    preprocessing.MaxAbsScaler,
    preprocessing.MinMaxScaler,
    preprocessing.PowerTransformer,
    preprocessing.QuantileTransformer,
    preprocessing.RobustScaler,
    preprocessing.StandardScaler,
)
"""Each output column is an invertible function of the input column at the same position.

`trees.scalers.SCALERS` has only those whose operations can be compiled.
"""

_FOREIGN_ATTRIBUTES = ("best_estimator_", "estimator_", "regressor_", "classifier_", "estimator")
"""Where classes outside scikit-learn usually hold the estimator they wrap."""


class CompositePart(NamedTuple):
    """An estimator that a composite passes rows to."""

    name: str
    estimator: Any  # None: the columns are passed through unchanged
    columns: Sequence[int | None] | None = None
    """Positions of its columns in the composite's input, None for computed ones. None: all, in order."""


class ColumnSource(NamedTuple):
    """Where a column comes from: a feature, and the transformers that changed it on the way.

    Each step is a transformer and the column's position in it. Every step is an invertible function of that
    column alone. Without steps the column holds the feature's own values (imputed ones included).
    """

    feature: int
    steps: tuple[tuple[Any, int], ...] = ()


ColumnSources = Sequence[ColumnSource | None]
"""One per column; None where a column does not come from one feature alone. Missing at the end: unknown."""


class EstimatorVisit(NamedTuple):
    """One estimator inside a model, as `walk` visits it."""

    estimator: Any
    sources: ColumnSources  # of the columns it receives
    is_composite: bool


def walk(model: Any, sources: ColumnSources = ()) -> Iterator[EstimatorVisit]:
    """Yield `model` and every estimator inside that receives rows when `model` answers, outermost first.

    `sources` are those of `model`'s own columns; leave them out when only the estimators matter.
    """
    inner = _parts_or_none(model)
    is_pipeline = isinstance(model, pipeline.Pipeline)
    yield EstimatorVisit(model, sources, is_pipeline or bool(inner))
    if is_pipeline:
        for step in steps(model):
            yield from walk(step, sources)
            sources = sources_after(step, sources)
    for part in inner:
        if part.estimator is not None:
            yield from walk(part.estimator, _pick(sources, part.columns))


def walk_rows(model: Any, rows: Any) -> Iterator[tuple[Any, Any]]:
    """Yield `model` and the estimators inside, each with the rows that it receives when `model` answers.

    Transformers before an estimator are applied. Left out are the estimators behind one that raises, and
    those that receive the answers of other estimators.
    """
    yield model, rows
    if isinstance(model, pipeline.Pipeline):
        for step in steps(model):
            yield from walk_rows(step, rows)
            try:
                rows = step.transform(rows)
            except Exception:  # of the last step, which may only predict, or of rows that it does not accept
                return
        return
    if (own := getattr(model, "_preprocessor", None)) is not None:  # of histogram boosting
        yield from walk_rows(own, rows)
    for part in _parts_or_none(model):
        if part.estimator is not None and None not in (part.columns or ()):
            selected = rows if part.columns is None else _safe_indexing(rows, list(part.columns), axis=1)
            yield from walk_rows(part.estimator, selected)


def row_receivers(model: Any) -> Iterator[Any]:
    """Yield `model`, then the first estimator inside that receives the same rows, outermost first.

    Ends at the first estimator that records `n_features_in_` itself: it takes a 2-D array of rows. Pipelines,
    feature unions and searches only repeat the attribute of what is inside them.
    """
    while model is not None:
        yield model
        if isinstance(model, pipeline.Pipeline):
            model = next(iter(steps(model)), None)
        elif hasattr(model, "n_features_in_") and not isinstance(model, pipeline.FeatureUnion | BaseSearchCV):
            return
        else:
            same_rows = (p.estimator for p in _parts_or_none(model) if p.columns is None)
            model = next((e for e in same_rows if e is not None), None)


def steps(model: pipeline.Pipeline) -> list[Any]:
    """The steps of a pipeline without those that pass their rows through."""
    return [step for _, step in model.steps if not (step is None or isinstance(step, str))]


def chain(model: Any) -> tuple[list[Any], Any]:
    """(transformers, last): the transformers in order, and the estimator that answers for the model.

    Looks through nested pipelines and through wrappers that answer exactly as their inner estimator does. For
    any other model: no transformers and the model itself.
    """
    transformers: list[Any] = []
    while True:
        if (inner := delegate(model)) is not None:
            model = inner
        elif isinstance(model, pipeline.Pipeline) and (inside := steps(model)):
            for step in inside[:-1]:
                before, last = chain(step)
                transformers += [*before, last]
            model = inside[-1]
        else:
            return transformers, model


def delegate(model: Any) -> Any | None:
    """The inner estimator that gives exactly the answers of `model`, or None."""
    attribute = next((name for kind, name in _DELEGATES.items() if isinstance(model, kind)), None)
    return None if attribute is None else getattr(model, attribute, None)


def delegating_types() -> list[type]:
    """scikit-learn's own classes for which `delegate` gives an inner estimator."""
    types: list[type] = []
    for kind in _DELEGATES:
        subclasses: list[type] = type.__subclasses__(kind) if inspect.isabstract(kind) else [kind]
        types += [t for t in subclasses if t.__module__.startswith("sklearn.") and not inspect.isabstract(t)]
    return types


def parts(model: Any) -> list[CompositePart]:
    """The parts of a composite other than a pipeline; empty for everything else.

    Raises AttributeError for a composite that is not fitted.
    """
    for kinds, list_parts in _PARTS:
        if isinstance(model, kinds):
            return list_parts(model)
    if type(model).__module__.partition(".")[0] == "sklearn":
        return []
    wrapped = (getattr(model, name, None) for name in _FOREIGN_ATTRIBUTES)
    return [CompositePart("estimator", e) for e in wrapped if hasattr(e, "fit") and not isinstance(e, type)][
        :1
    ]


def sources_after(transformer: Any, sources: ColumnSources) -> ColumnSources:
    """The sources of the columns that `transformer` makes of columns with `sources`.

    Empty (all unknown) where a column may be made of several, and for a transformer that cannot be read, for
    instance because another version of scikit-learn fitted it.
    """
    try:
        return _after(transformer, sources)
    except Exception:
        return []


def _after(transformer: Any, sources: ColumnSources) -> ColumnSources:
    if transformer is None or isinstance(transformer, str):
        return sources
    if (inner := delegate(transformer)) is not None:
        return _after(inner, sources)
    if isinstance(transformer, pipeline.Pipeline):
        for step in steps(transformer):
            sources = _after(step, sources)
        return sources
    if isinstance(transformer, compose.ColumnTransformer):
        return _after_column_transformer(transformer, sources)
    if isinstance(transformer, pipeline.FeatureUnion):
        return _after_union(transformer, sources)
    if isinstance(transformer, SelectorMixin):
        return _pick(sources, transformer.get_support(indices=True).tolist())
    if type(transformer).__module__.startswith("sklearn.impute"):
        return _after_imputer(transformer, sources)
    if isinstance(transformer, preprocessing.FunctionTransformer) and _is_identity(transformer.func):
        return sources
    if isinstance(transformer, INVERTIBLE_SCALERS) or getattr(transformer, "inverse_func", None) is not None:
        return [
            source and ColumnSource(source.feature, (*source.steps, (transformer, position)))
            for position, source in enumerate(sources)
        ]
    return []


def _is_identity(function: Any) -> bool:
    """Also `check_array`, which histogram boosting applies to its numeric columns."""
    return function is None or getattr(function, "func", None) is check_array


def _after_imputer(imputer: Any, sources: ColumnSources) -> ColumnSources:
    """Imputers change missing values only. They may drop empty columns and append indicator columns."""
    names = getattr(imputer, "feature_names_in_", [f"x{i}" for i in range(imputer.n_features_in_)])
    by_name = dict(zip(names, sources, strict=True))
    return [by_name.get(name) for name in imputer.get_feature_names_out()]


def _after_column_transformer(transformer: Any, sources: ColumnSources) -> ColumnSources:
    slices = transformer.output_indices_
    columns: list[ColumnSource | None] = [None] * max((s.stop for s in slices.values()), default=0)
    for part in parts(transformer):
        produced = _after_part(transformer, part, _pick(sources, part.columns))
        place = slices[part.name]
        if len(produced) == place.stop - place.start:
            columns[place] = produced
    return columns


def _after_union(union: Any, sources: ColumnSources) -> ColumnSources:
    columns: list[ColumnSource | None] = []
    for part in parts(union):
        produced = _after_part(union, part, sources)
        width = len(sources) if part.estimator is None else len(part.estimator.get_feature_names_out())
        columns += produced if len(produced) == width else [None] * width
    return columns


def _after_part(composite: Any, part: CompositePart, sources: ColumnSources) -> ColumnSources:
    """All unknown when the composite multiplies the part's columns by a weight."""
    if part.name in (composite.transformer_weights or {}):
        return []
    return _after(part.estimator, sources)


def _pick(sources: ColumnSources, columns: Sequence[int | None] | None) -> ColumnSources:
    if columns is None:
        return sources
    return [None if c is None or c >= len(sources) else sources[c] for c in columns]


def _parts_or_none(model: Any) -> list[CompositePart]:
    """A composite that cannot be read, for instance one of another version, counts as a single estimator."""
    try:
        return parts(model)
    except Exception:
        return []


def _single(attribute: str) -> Callable[[Any], list[CompositePart]]:
    return lambda model: [CompositePart(attribute, getattr(model, attribute))]


def _members(model: Any) -> list[CompositePart]:
    """Members that all receive the composite's rows (chains append the answers of the members before)."""
    return [CompositePart(str(number), member) for number, member in enumerate(model.estimators_)]


def _named_members(model: Any) -> list[CompositePart]:
    names = [name for name, member in model.estimators if not isinstance(member, str)]
    return [CompositePart(name, member) for name, member in zip(names, model.estimators_, strict=True)]


def _stacking(model: Any) -> list[CompositePart]:
    """The final estimator receives the members' answers and, with `passthrough`, the features after them."""
    final = model.final_estimator_
    features = list(range(model.n_features_in_)) if model.passthrough else []
    answers = [None] * (getattr(final, "n_features_in_", len(features)) - len(features))
    return [*_named_members(model), CompositePart("final_estimator", final, [*answers, *features])]


def _bagging(model: Any) -> list[CompositePart]:
    pairs = zip(model.estimators_, model.estimators_features_, strict=True)
    return [
        CompositePart(str(i), member, np.asarray(columns).tolist())
        for i, (member, columns) in enumerate(pairs)
    ]


def _calibrated(model: Any) -> list[CompositePart]:
    return [CompositePart(str(i), c.estimator) for i, c in enumerate(model.calibrated_classifiers_)]


def _column_transformer(model: Any) -> list[CompositePart]:
    """In the order of the output columns, the remainder last. Parts without columns are left out."""
    positions = model._transformer_to_input_indices
    listed = []
    for name, transformer, _ in model.transformers_:
        columns = list(positions[name])
        if columns and not (isinstance(transformer, str) and transformer == "drop"):
            listed.append(CompositePart(name, None if transformer in PASSTHROUGH else transformer, columns))
    return listed


def _union(model: Any) -> list[CompositePart]:
    return [
        CompositePart(name, None if transformer in PASSTHROUGH else transformer)
        for name, transformer in model.transformer_list
        if not (isinstance(transformer, str) and transformer == "drop")
    ]


def _eliminated(model: Any) -> list[CompositePart]:
    return [CompositePart("estimator", model.estimator_, np.flatnonzero(model.support_).tolist())]


_DELEGATES: dict[type, str] = {
    BaseSearchCV: "best_estimator_",
    FrozenEstimator: "estimator",
    semi_supervised.SelfTrainingClassifier: "estimator_",
    linear_model.RANSACRegressor: "estimator_",
}
"""Composites that answer exactly as the estimator in this attribute does."""

_PARTS: list[tuple[tuple[type, ...], Callable[[Any], list[CompositePart]]]] = [
    *(((kind,), _single(attribute)) for kind, attribute in _DELEGATES.items()),
    ((compose.TransformedTargetRegressor,), _single("regressor_")),
    (
        (model_selection.FixedThresholdClassifier, model_selection.TunedThresholdClassifierCV),
        _single("estimator_"),
    ),
    ((compose.ColumnTransformer,), _column_transformer),
    ((pipeline.FeatureUnion,), _union),
    ((ensemble.VotingClassifier, ensemble.VotingRegressor), _named_members),
    ((ensemble.StackingClassifier, ensemble.StackingRegressor), _stacking),
    ((ensemble.BaggingClassifier, ensemble.BaggingRegressor, ensemble.IsolationForest), _bagging),
    ((ensemble.AdaBoostClassifier, ensemble.AdaBoostRegressor), _members),
    ((calibration.CalibratedClassifierCV,), _calibrated),
    (
        (multiclass.OneVsRestClassifier, multiclass.OneVsOneClassifier, multiclass.OutputCodeClassifier),
        _members,
    ),
    ((multioutput.MultiOutputClassifier, multioutput.MultiOutputRegressor), _members),
    ((multioutput.ClassifierChain, multioutput.RegressorChain), _members),
    ((feature_selection.RFE,), _eliminated),
]
"""The fitted parts of each composite other than pipelines, by class; the first match counts."""
