"""Models of one kind, each fitted to a partition of its own, become one model.

Forests become one forest of all their trees: its answer is the average of theirs, for that is how a forest
answers. Any other classifier that gives probabilities, and any other regressor, becomes a member of a soft
VotingClassifier or of a VotingRegressor: its answer is the average of the members'.
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
_OWN_ROWS = ("oob_score_", "oob_decision_function_", "oob_prediction_")
"""What a forest knows of its own rows alone, and what is true of no other."""


def how(model: Any) -> str:
    """How members like `model` are merged, for people. Raises `Refused` when they cannot be."""
    name = type(model).__name__
    if type(model) in FORESTS:
        return f"one {name} of all trees"
    if not is_classifier(model):
        return f"a VotingRegressor that averages the {name}s"
    if not hasattr(model, "predict_proba"):
        raise Refused(
            f"{name} gives no probabilities, so models of several partitions cannot be averaged; "
            "take the strategy partial_fit or single"
        )
    return f"a soft VotingClassifier of the {name}s"


def merge(members: list[Any]) -> Any:
    """One model of fitted ones that know the same classes, in their order. Members are not changed."""
    if len(members) == 1:
        return members[0]
    if type(members[0]) in FORESTS:
        return _forest(members)
    return _voting(members)


def _forest(members: list[Any]) -> Any:
    forest = copy(members[0])
    forest.estimators_ = [tree for member in members for tree in member.estimators_]
    forest.n_estimators = len(forest.estimators_)
    for name in _OWN_ROWS:
        forest.__dict__.pop(name, None)
    return forest


def _voting(members: list[Any]) -> Any:
    named = [(f"partition_{number}", member) for number, member in enumerate(members)]
    if is_classifier(members[0]):
        voting: Any = VotingClassifier(named, voting="soft")
        voting.le_ = LabelEncoder().fit(members[0].classes_)
        voting.classes_ = voting.le_.classes_
    else:
        voting = VotingRegressor(named)
    voting.estimators_ = members
    voting.named_estimators_ = Bunch(**dict(named))
    names = getattr(members[0], "feature_names_in_", None)
    if names is not None:
        voting.feature_names_in_ = np.array(names)
    return voting
