"""Merge models of one kind, each fitted on its own partition, into one model.

Forests become one forest of all their trees, which answers with the average of the forests: a forest itself
answers with the average of its trees. Other classifiers with probabilities become members of a soft
VotingClassifier, and other regressors members of a VotingRegressor, which average their members' answers.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import Bunch

from registry.errors import Refused

FORESTS = (RandomForestClassifier, RandomForestRegressor, ExtraTreesClassifier, ExtraTreesRegressor)
_OUT_OF_BAG = ("oob_score_", "oob_decision_function_", "oob_prediction_")
"""Attributes that hold for the rows of a single member only; the merged forest does not have them."""


def describe_merge(model: Any) -> str:
    """Describe how members like `model` are merged. Raises `Refused` when they cannot be merged."""
    name = type(model).__name__
    if type(model) in FORESTS:
        return f"one {name} of all trees"
    if not is_classifier(model):
        return f"a VotingRegressor that averages the {name}s"
    if not hasattr(model, "predict_proba"):
        raise Refused(
            f"{name} has no predict_proba, so models of several partitions cannot be averaged; "
            "use the strategy partial_fit or single"
        )
    return f"a soft VotingClassifier of the {name}s"


def merge(members: list[Any]) -> Any:
    """Merge fitted models of the same classes into one, in their order. The members stay unchanged."""
    if len(members) == 1:
        return members[0]
    if type(members[0]) in FORESTS:
        return _forest(members)
    return _voting(members)


def _forest(members: list[Any]) -> Any:
    forest = copy(members[0])
    forest.estimators_ = [tree for member in members for tree in member.estimators_]
    forest.n_estimators = len(forest.estimators_)
    for name in _OUT_OF_BAG:
        forest.__dict__.pop(name, None)
    return forest


def _voting(members: list[Any]) -> Any:
    pairs = [(f"partition_{number}", member) for number, member in enumerate(members)]
    if is_classifier(members[0]):
        voting: Any = VotingClassifier(pairs, voting="soft")
        voting.le_ = LabelEncoder().fit(members[0].classes_)
        voting.classes_ = voting.le_.classes_
    else:
        voting = VotingRegressor(pairs)
    voting.estimators_ = members
    voting.named_estimators_ = Bunch(**dict(pairs))
    names = getattr(members[0], "feature_names_in_", None)
    if names is not None:
        voting.feature_names_in_ = np.array(names)
    return voting
