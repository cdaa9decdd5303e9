"""The models of the comparison: fitted classifiers, the rows of the requests, and scikit-learn's answers.

Models of numbers are fitted on arrays, so that peers may pass arrays to them: building a frame for each
request would only slow the peers down.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

ROWS = 64
"""Rows that the load generator sends in turn."""


@dataclass(frozen=True)
class Model:
    """A fitted classifier. `columns` has the dtypes of mixed columns, or is None where all are numbers."""

    name: str
    title: str
    fitted: Any
    rows: list[dict[str, Any]]
    answers: list[list[float]]
    example: bytes
    columns: dict[str, str] | None

    def save(self, folder: Path) -> None:
        """Write what `benchmarks/peers/served.py` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(self.fitted, folder / "model.joblib")
        (folder / "columns.json").write_text(json.dumps(self.columns))
        (folder / "names.json").write_text(json.dumps(list(self.rows[0])))
        (folder / "rows.json").write_text(json.dumps(self.rows))


def iris_forest() -> Model:
    from sklearn.ensemble import RandomForestClassifier

    return _numeric(
        "iris-forest", "Iris, forest of 100 trees", _iris(), RandomForestClassifier(random_state=0)
    )


def cancer_forest(name: str = "cancer-forest", trees: int = 100) -> Model:
    from sklearn.ensemble import RandomForestClassifier

    title = f"Breast cancer, forest of {trees} trees"
    return _numeric(name, title, _cancer(), RandomForestClassifier(trees, random_state=0))


def large_forest() -> Model:
    return cancer_forest("large-forest", 500)


def logistic_regression() -> Model:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression())
    return _numeric("logistic", "Breast cancer, scaler and logistic regression", _cancer(), fitted)


def histogram_boosting() -> Model:
    from sklearn.ensemble import HistGradientBoostingClassifier

    fitted = HistGradientBoostingClassifier(random_state=0)
    return _numeric("hist-boosting", "Breast cancer, histogram boosting", _cancer(), fitted)


def gradient_boosting() -> Model:
    from sklearn.ensemble import GradientBoostingClassifier

    fitted = GradientBoostingClassifier(random_state=0)
    return _numeric("boosting", "Breast cancer, gradient boosting", _cancer(), fitted)


def perceptron() -> Model:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=500, random_state=0))
    return _numeric("mlp", "Breast cancer, scaler and MLP (64, 32)", _cancer(), fitted)


def mixed_pipeline() -> Model:
    """Imputers, scaler and one-hot encoder on numbers and strings with missing values of both."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame, target = _passengers()
    numbers = [name for name in frame if frame[name].dtype == np.float64]
    texts = [name for name in frame if name not in numbers]
    encode = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            (
                "texts",
                make_pipeline(
                    SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")
                ),
                texts,
            ),
        ]
    )
    fitted = make_pipeline(encode, LogisticRegression(max_iter=1000)).fit(frame, target)
    asked = frame.iloc[:ROWS]
    rows = [{str(k): None if pd.isna(v) else v for k, v in row.items()} for row in asked.to_dict("records")]
    return Model(
        "mixed",
        "Numbers and texts with missing values, logistic regression",
        fitted,
        rows,
        fitted.predict_proba(asked).tolist(),
        frame.head(200).to_csv(index=False).encode(),
        {name: "float64" if name in numbers else "str" for name in frame},
    )


MODELS: dict[str, Callable[[], Model]] = {
    "cancer-forest": cancer_forest,
    "iris-forest": iris_forest,
    "logistic": logistic_regression,
    "large-forest": large_forest,
    "hist-boosting": histogram_boosting,
    "boosting": gradient_boosting,
    "mlp": perceptron,
    "mixed": mixed_pipeline,
}
HEADLINE = "cancer-forest"


def _numeric(name: str, title: str, data: tuple[pd.DataFrame, Any], estimator: Any) -> Model:
    frame, target = data
    fitted = estimator.fit(frame.to_numpy(), target)
    asked = frame.iloc[:: max(len(frame) // ROWS, 1)].head(ROWS)
    return Model(
        name,
        title,
        fitted,
        [{str(k): v for k, v in row.items()} for row in asked.to_dict("records")],
        fitted.predict_proba(asked.to_numpy()).tolist(),
        frame.head(200).to_csv(index=False).encode(),
        None,
    )


def _iris() -> tuple[pd.DataFrame, Any]:
    from sklearn.datasets import load_iris

    data = load_iris(as_frame=True)
    return data.data, data.target


def _cancer() -> tuple[pd.DataFrame, Any]:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    return data.data, data.target


def _passengers(rows: int = 1000) -> tuple[pd.DataFrame, Any]:
    """Return drawn passengers of a ship: no file and no download, the same on each machine."""
    draw = np.random.default_rng(0)

    def with_gaps(values: Any, share: float) -> Any:
        return pd.Series(values).mask(draw.random(rows) < share)

    frame = pd.DataFrame(
        {
            "age": with_gaps(draw.normal(30, 14, rows).clip(1, 80).round(1), 0.2),
            "fare": with_gaps(draw.lognormal(3, 1, rows).round(2), 0.05),
            "relatives": draw.poisson(0.8, rows).astype(np.float64),
            "sex": draw.choice(["female", "male"], rows),
            "port": with_gaps(draw.choice(["Cherbourg", "Queenstown", "Southampton"], rows), 0.1),
            "cabin": with_gaps(draw.choice([f"deck {c}" for c in "ABCDEF"], rows), 0.3),
        }
    )
    chance = 1 / (1 + np.exp(-(frame["fare"].fillna(20) / 30 - 1 + 1.5 * (frame["sex"] == "female"))))
    return frame, np.where(draw.random(rows) < chance, "survived", "died")
