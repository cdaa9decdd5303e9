"""Models that another version of scikit-learn pickled: what fails or answers otherwise, and the ways out.

scikit-learn does not promise that a pickle of one version loads in another, or answers the same. The changes
below are those between the versions in `COMPARED` and the installed one that change answers without an error.
They were found by comparing fitted estimators of each version, all kinds and about 200 settings, with the
answers that they gave there. `docs/howto/models-from-elsewhere.md` has the table.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import sklearn
from sklearn.base import BaseEstimator, is_classifier
from sklearn.cross_decomposition import CCA, PLSCanonical, PLSRegression
from sklearn.ensemble import AdaBoostClassifier
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.tree import BaseDecisionTree

from registry.errors import Refused, TriviumError, describe_error
from service.compiler.object_graph import Member, members

OLDEST_COMPARED = (1, 2)
"""Between this release and the installed one, the changes below are known."""
_UNSET = ("deprecated", "warn")
"""Values of parameters that a version deprecated, where they were not given."""


class OtherVersion(Refused):
    """A model cannot be served because another version of scikit-learn made it."""


def is_other(version: str) -> bool:
    installed: str = sklearn.__version__
    return version != installed


def oldest(versions: Iterable[str]) -> str | None:
    return min(versions, key=_release, default=None)


def does_not_load(version: str) -> OtherVersion:
    return OtherVersion(
        f"the file was made by scikit-learn {version} and does not load with the installed "
        f"{sklearn.__version__}: {ways_out(version)}"
    )


def ways_out(version: str) -> str:
    return (
        f"retrain the model with {sklearn.__version__}; or convert it to ONNX with skl2onnx where "
        f"scikit-learn {version} is installed, and publish the .onnx with --answers"
    )


def require_compared(version: str | None) -> None:
    """Raise `OtherVersion` for a version whose answers were never compared with the installed one's."""
    if version is None or OLDEST_COMPARED <= _release(version) <= _release(sklearn.__version__):
        return
    raise OtherVersion(
        f"the model was fitted by scikit-learn {version}, whose answers were never compared with those of "
        f"the installed {sklearn.__version__}: publish it with --answers, what it answered there to the "
        f"example; "
        f"or {ways_out(version)}"
    )


def require_parameters(estimator: Any, version: str) -> None:
    """Raise `OtherVersion` when training would drop or lack a parameter that `version` gave an estimator."""
    for member in members(estimator):
        value = member.value
        if not isinstance(value, BaseEstimator) or not type(value).__module__.startswith("sklearn."):
            continue
        present = vars(value)
        missing = sorted(set(value._get_param_names()) - present.keys())
        unknown = [
            n for n in present if _is_parameter(n, present[n]) and n not in _all_parameters(type(value))
        ]
        if missing or unknown:
            fault = (
                f"without the parameter {missing[0]!r} of" if missing else f"with {unknown[0]!r}, unknown to"
            )
            raise OtherVersion(
                f"{member.path()} was made by scikit-learn {version} {fault} the installed "
                f"{sklearn.__version__}: create the estimator with {sklearn.__version__}"
            )


def _all_parameters(kind: type) -> set[str]:
    """Of the class and its base classes, whose parameters some estimators set themselves."""
    initializers = (vars(base)["__init__"] for base in kind.__mro__ if "__init__" in vars(base))
    return {name for function in initializers if inspect.isfunction(function) for name in _names(function)}


def _names(function: Callable[..., Any]) -> Iterable[str]:
    return inspect.signature(function).parameters


def _is_parameter(name: str, value: Any) -> bool:
    """Whether an attribute is a parameter that was given, and not a fitted attribute."""
    return (
        not name.startswith("_")
        and not name.endswith("_")
        and not (isinstance(value, str) and value in _UNSET)
    )


@contextlib.contextmanager
def explained(version: str | None) -> Iterator[None]:
    """Name the versions in the failures of a model that `version` fitted. None: the installed one did."""
    try:
        yield
    except OtherVersion:
        raise
    except Exception as error:
        if version is None or not is_other(version) or not _is_of_the_model(error):
            raise
        raise _failure(error, version) from error


def is_missing_attribute(error: BaseException) -> bool:
    """Whether an estimator lacks an attribute that its class reads, as those of other versions may."""
    return isinstance(error, AttributeError) and isinstance(error.obj, BaseEstimator)


def _is_of_the_model(error: Exception) -> bool:
    """Refusals without a cause concern the request, for example the columns of the example."""
    return not isinstance(error, TriviumError) or error.__cause__ is not None


def _failure(error: Exception, version: str) -> OtherVersion:
    made_by = f"fitted by scikit-learn {version}"
    missing = next((e for e in _causes(error) if is_missing_attribute(e)), None)
    if missing is not None:
        return OtherVersion(
            f"{type(missing.obj).__name__} was {made_by} and lacks the attribute {missing.name!r}, which the "
            f"installed {sklearn.__version__} needs: {ways_out(version)}"
        )
    reason = str(error) if isinstance(error, TriviumError) else describe_error(error)
    return OtherVersion(
        f"{reason}; the model was {made_by}, and {sklearn.__version__} is installed: {ways_out(version)}"
    )


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__


def check(member: Member, version: str) -> None:
    """Raise `OtherVersion`, naming the estimator, when it would answer otherwise than in `version`."""
    for kind, change in _CHANGES:
        if isinstance(member.value, kind) and (what := change(member.value, _release(version))) is not None:
            raise OtherVersion(
                f"{member.path()} was fitted by scikit-learn {version} {what}; the installed "
                f"{sklearn.__version__} would give other answers: {ways_out(version)}"
            )


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _adaboost(model: Any, release: tuple[int, int]) -> str | None:
    return "with the algorithm SAMME.R" if getattr(model, "algorithm", None) == "SAMME.R" else None


def _logistic(model: Any, release: tuple[int, int]) -> str | None:
    """The installed version answers with one softmax for three classes or more, else with one sigmoid."""
    strategy, classes = getattr(model, "multi_class", None), len(getattr(model, "classes_", ()))
    if strategy is None or classes < 2:
        return None
    one_by_one = model.solver == "liblinear" or (model.solver == "newton-cholesky" and release < (1, 6))
    if classes > 2 and (strategy == "ovr" or (strategy != "multinomial" and one_by_one)):
        return "with one model per class (multi_class='ovr', or the default of its solver)"
    if classes == 2 and strategy == "multinomial":
        return "with multi_class='multinomial' for two classes"
    return None


def _tree(model: Any, release: tuple[int, int]) -> str | None:
    """Classification trees hold the shares of the classes, before 1.4 their weights."""
    if not is_classifier(model) or not hasattr(model, "tree_"):
        return None
    sums = model.tree_.value.sum(axis=2)
    return None if np.allclose(sums, 1.0) else "with counts in its leaves instead of shares"


def _tfidf(model: Any, release: tuple[int, int]) -> str | None:
    """The installed version skips the weights when it does not find them."""
    return "with inverse document frequencies in `_idf_diag`" if "_idf_diag" in vars(model) else None


def _partial_least_squares(model: Any, release: tuple[int, int]) -> str | None:
    scaled = not np.allclose(getattr(model, "_x_std", 1.0), 1.0)
    return "with coefficients for scaled features" if release < (1, 5) and scaled else None


_CHANGES: list[tuple[type | tuple[type, ...], Callable[[Any, tuple[int, int]], str | None]]] = [
    (AdaBoostClassifier, _adaboost),
    (LogisticRegression, _logistic),
    (BaseDecisionTree, _tree),
    (TfidfTransformer, _tfidf),
    ((CCA, PLSCanonical, PLSRegression), _partial_least_squares),
]
"""By kind: what changed, in words that follow "was fitted by scikit-learn 1.5.2"; None where nothing did."""
