"""Models of other versions of scikit-learn that would answer otherwise here without an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_iris
from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from registry.errors import Refused
from service.compiler import other_versions
from service.compiler.fit import training_plan
from service.compiler.fit.fit_records import FitStep
from service.compiler.object_graph import members
from service.compiler.other_versions import OtherVersion

ROWS, SPECIES = load_iris(return_X_y=True)


def check(model: Any, version: str) -> None:
    for member in members(model):
        other_versions.check(member, version)


def as_before(model: Any, **attributes: Any) -> Any:
    """The model with the attributes that an older version gave it."""
    vars(model).update(attributes)
    return model


def logistic(solver: str = "lbfgs", labels: Any = SPECIES, **attributes: Any) -> Any:
    return as_before(LogisticRegression(max_iter=300).fit(ROWS, labels), solver=solver, **attributes)


def counting_tree() -> Any:
    """A tree of 1.3: its leaves hold numbers of rows."""
    model = DecisionTreeClassifier(max_depth=2).fit(ROWS, SPECIES)
    state = model.tree_.__getstate__()
    model.tree_.__setstate__(
        state | {"values": state["values"] * state["nodes"]["n_node_samples"][:, None, None]}
    )
    return model


def tfidf() -> Any:
    model = TfidfTransformer().fit(ROWS)
    return as_before(model, _idf_diag=vars(model).pop("idf_"))


BINARY = (SPECIES == 1).astype(int)


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        (lambda: as_before(AdaBoostClassifier(n_estimators=2), algorithm="SAMME.R"), "1.5.2", "SAMME.R"),
        (lambda: logistic(multi_class="ovr"), "1.7.2", "one model per class"),
        (lambda: logistic("liblinear", multi_class="deprecated"), "1.7.2", "one model per class"),
        (lambda: logistic("newton-cholesky", multi_class="auto"), "1.5.2", "one model per class"),
        (lambda: logistic(labels=BINARY, multi_class="multinomial"), "1.7.2", "for two classes"),
        (lambda: make_pipeline(counting_tree()), "1.3.2", "counts in its leaves instead of shares"),
        (tfidf, "1.4.2", "inverse document frequencies"),
        (lambda: PLSRegression().fit(ROWS, SPECIES), "1.4.2", "coefficients for scaled features"),
    ],
    ids=["samme.r", "ovr", "liblinear", "newton-cholesky", "binary softmax", "counts", "tf-idf", "pls"],
)
def test_a_model_whose_answers_changed_is_refused_by_version(
    model: Callable[[], Any], version: str, words: str
) -> None:
    with pytest.raises(OtherVersion, match=f"was fitted by scikit-learn {version} with ") as caught:
        check(model(), version)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("model", "version"),
    [
        (lambda: as_before(AdaBoostClassifier(n_estimators=2), algorithm="SAMME"), "1.5.2"),
        (lambda: logistic(multi_class="deprecated"), "1.7.2"),
        (lambda: logistic("newton-cholesky", multi_class="deprecated"), "1.6.1"),
        (lambda: logistic("liblinear", labels=BINARY, multi_class="auto"), "1.5.2"),
        (lambda: logistic(), "1.8.0"),
        (lambda: RandomForestClassifier(2).fit(ROWS, np.column_stack([SPECIES, BINARY])), "1.4.2"),
        (lambda: DecisionTreeRegressor().fit(ROWS, SPECIES), "1.3.2"),
        (lambda: TfidfTransformer().fit(ROWS), "1.5.2"),
        (lambda: PLSRegression().fit(ROWS, SPECIES), "1.5.2"),
        (lambda: PLSRegression(scale=False).fit(ROWS, SPECIES), "1.4.2"),
    ],
)
def test_a_model_whose_answers_are_the_same_passes(model: Callable[[], Any], version: str) -> None:
    check(model(), version)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (as_before(LogisticRegression(), multi_class="ovr"), "with 'multi_class', unknown to the installed"),
        (
            GridSearchCV(as_before(AdaBoostClassifier(), algorithm="SAMME.R"), {}),
            "with 'algorithm', unknown to",
        ),
    ],
)
def test_an_estimator_to_train_keeps_all_of_its_parameters_or_is_refused(estimator: Any, words: str) -> None:
    with pytest.raises(OtherVersion, match="create the estimator with") as caught:
        other_versions.require_parameters(estimator, "1.5.2")
    assert words in str(caught.value)


def test_an_estimator_without_a_newer_parameter_is_not_trained() -> None:
    file = Path(__file__).parents[2] / "data/old_sklearn/1.5.2/pipeline.joblib"
    step = FitStep(do="check", estimator=str(file), strategy="single", target="y")
    with pytest.raises(OtherVersion, match=r"Pipeline was made .* without the parameter"):
        training_plan.load_estimator(step)


def test_parameters_at_their_deprecated_default_are_no_difference() -> None:
    unset = as_before(make_pipeline(LogisticRegression()), multi_class="deprecated")
    other_versions.require_parameters(unset, "1.7.2")


class Incomplete(BaseEstimator):
    def predict(self, rows: Any) -> Any:
        return self.added_in_a_later_version


def failure(version: str | None, error: Exception) -> Exception:
    with (
        pytest.raises(type(error) if version is None else Exception) as caught,
        other_versions.explained(version),
    ):
        raise error
    return caught.value


def test_an_attribute_that_an_older_estimator_lacks_is_named() -> None:
    with pytest.raises(OtherVersion) as caught, other_versions.explained("1.5.2"):
        Incomplete().predict(ROWS)
    assert (
        "Incomplete was fitted by scikit-learn 1.5.2 and lacks the attribute 'added_in_a_later_version'"
        in str(caught.value)
    )


def test_a_failure_of_the_model_names_both_versions_and_a_fault_of_the_request_does_not() -> None:
    of_model = Refused("Ridge cannot answer")
    of_model.__cause__ = TypeError("unexpected")
    assert "Ridge cannot answer; the model was fitted by scikit-learn 1.5.2" in str(
        failure("1.5.2", of_model)
    )
    assert str(failure("1.5.2", Refused("the example lacks 'a'"))) == "the example lacks 'a'"


def test_failures_of_a_model_of_the_installed_version_stay_as_they_are() -> None:
    assert str(failure(None, ValueError("no"))) == "no"
