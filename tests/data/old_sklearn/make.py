"""Write models with the scikit-learn of the interpreter that runs this, and the answers it gives.

`answers.json` beside the models has the rows and what each model answers to them. README.md has the commands.
Needs scikit-learn, numpy and pandas only, and nothing of Trivium.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import sklearn
from sklearn import (
    calibration,
    cluster,
    compose,
    datasets,
    decomposition,
    ensemble,
    feature_selection,
    impute,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

ROWS = 12
FLOWERS = datasets.load_iris(as_frame=True).data.set_axis(["a", "b", "c", "d"], axis=1)
SPECIES = datasets.load_iris().target
PATIENTS = datasets.load_diabetes(as_frame=True).data[["age", "bmi", "bp", "s5"]]
PROGRESSION = datasets.load_diabetes().target
WINES = datasets.load_wine(as_frame=True).data[["alcohol", "ash", "hue", "proline"]]
CULTIVAR = datasets.load_wine().target


def mixed() -> pd.DataFrame:
    """The wines with a text column, and with missing values in both kinds of column."""
    frame = WINES.assign(
        shade=np.where(WINES["hue"] > 1, "red", np.where(WINES["ash"] > 2.4, "brown", "pale"))
    )
    frame.loc[::5, "alcohol"] = np.nan
    return frame.astype({"shade": object})


def with_numbers_and_text(last: object) -> pipeline.Pipeline:
    numbers = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
    columns = compose.ColumnTransformer(
        [
            ("numbers", numbers, ["alcohol", "ash"]),
            ("texts", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["shade"]),
        ],
        remainder="passthrough",
    )
    return pipeline.make_pipeline(columns, last)


def models() -> dict[str, tuple[object, pd.DataFrame, np.ndarray]]:
    """By file name: the estimator, its features and its target. Small, on real data."""
    binary, frame = (SPECIES == 1).astype(int), mixed()
    logistic = linear_model.LogisticRegression(max_iter=500)
    return {
        "logistic_regression": (logistic, FLOWERS, SPECIES),
        "pipeline": (pipeline.make_pipeline(preprocessing.StandardScaler(), logistic), FLOWERS, binary),
        "column_transformer": (with_numbers_and_text(logistic), frame, CULTIVAR),
        "decision_tree": (tree.DecisionTreeRegressor(max_depth=4), PATIENTS, PROGRESSION),
        "random_forest": (ensemble.RandomForestClassifier(3, max_depth=4, random_state=0), FLOWERS, SPECIES),
        "extra_trees": (ensemble.ExtraTreesRegressor(3, max_depth=4, random_state=0), PATIENTS, PROGRESSION),
        "gradient_boosting": (ensemble.GradientBoostingClassifier(n_estimators=3), FLOWERS, SPECIES),
        "gradient_boosting_regressor": (
            ensemble.GradientBoostingRegressor(n_estimators=4, random_state=0),
            PATIENTS,
            PROGRESSION,
        ),
        "hist_gradient_boosting": (
            ensemble.HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=6, max_bins=15),
            FLOWERS,
            SPECIES,
        ),
        "ada_boost": (ensemble.AdaBoostClassifier(n_estimators=4, random_state=0), FLOWERS, SPECIES),
        "isolation_forest": (
            ensemble.IsolationForest(n_estimators=4, max_samples=32, random_state=0),
            FLOWERS,
            SPECIES,
        ),
        "svc": (svm.SVC(probability=True, random_state=0), FLOWERS, SPECIES),
        "k_neighbors": (neighbors.KNeighborsClassifier(3), FLOWERS, SPECIES),
        "k_means": (cluster.KMeans(3, n_init=1, random_state=0), FLOWERS, SPECIES),
        "grid_search": (
            model_selection.GridSearchCV(logistic, {"C": [0.1, 1.0]}, cv=2),
            FLOWERS,
            SPECIES,
        ),
        "calibrated": (
            calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2),
            FLOWERS,
            SPECIES,
        ),
        "voting": (
            ensemble.VotingClassifier(
                [("nb", naive_bayes.GaussianNB()), ("tree", tree.DecisionTreeClassifier(max_depth=2))],
                voting="soft",
            ),
            FLOWERS,
            SPECIES,
        ),
        "stacking": (
            ensemble.StackingRegressor(
                [("ridge", linear_model.Ridge()), ("lasso", linear_model.Lasso())], cv=2
            ),
            PATIENTS,
            PROGRESSION,
        ),
        "quantiles": (
            pipeline.make_pipeline(
                preprocessing.QuantileTransformer(n_quantiles=20), linear_model.LinearRegression()
            ),
            PATIENTS,
            PROGRESSION,
        ),
        "selected": (
            pipeline.make_pipeline(feature_selection.SelectKBest(k=2), decomposition.PCA(2), logistic),
            FLOWERS,
            SPECIES,
        ),
        "imputed_forest": (
            pipeline.make_pipeline(
                impute.SimpleImputer(strategy="median", add_indicator=True),
                ensemble.RandomForestRegressor(3, max_depth=3, random_state=0),
            ),
            frame[["alcohol", "ash", "hue"]],
            frame["proline"].to_numpy(),
        ),
        "ordinal_encoder": (
            pipeline.make_pipeline(
                preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
                tree.DecisionTreeClassifier(max_depth=3),
            ),
            frame[["shade"]],
            CULTIVAR,
        ),
        "log_target": (
            compose.TransformedTargetRegressor(linear_model.Ridge(), func=np.log, inverse_func=np.exp),
            PATIENTS,
            PROGRESSION,
        ),
        "neural_network": (
            neural_network.MLPClassifier((5,), max_iter=40, random_state=0),
            FLOWERS,
            SPECIES,
        ),
    }


def answers(model: object, rows: pd.DataFrame) -> dict[str, list[object]]:
    """By the signature's output names, what the model answers."""
    recorded = {}
    if isinstance(model, ensemble.IsolationForest):
        recorded["score"] = model.decision_function(rows).tolist()
    name = "cluster" if isinstance(model, cluster.KMeans) else "label"
    is_regressor = sklearn.base.is_regressor(model)
    recorded["value" if is_regressor else name] = model.predict(rows).tolist()
    if hasattr(model, "predict_proba"):
        recorded["probabilities"] = model.predict_proba(rows).tolist()
    return recorded


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent) / sklearn.__version__
    folder.mkdir(parents=True, exist_ok=True)
    recorded = {}
    for name, (model, frame, target) in models().items():
        model.fit(frame, target)
        rows = frame.iloc[:: max(1, len(frame) // ROWS)].head(ROWS)
        joblib.dump(model, folder / f"{name}.joblib", compress=("xz", 9))
        columns = {c: [None if v != v else v for v in rows[c].tolist()] for c in rows}
        recorded[name] = {"columns": columns, "answers": answers(model, rows)}
    text = json.dumps(recorded, indent=None, separators=(",", ":"))
    (folder / "answers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
