"""Pipelines over tables of numbers, strings, booleans and missing values, fitted on data frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from service.compiler.example import read
from service.compiler.signature.inputs import example_rows
from tests.service.compiler.helpers import build_model, runtime


def passengers(missing_strings: bool = False) -> pd.DataFrame:
    random = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "âge (années)": np.round(random.uniform(1, 80, 200), 1),
            "fare.paid": random.gamma(2.0, 20.0, 200),
            "siblings": random.integers(0, 5, 200),
            "port": random.choice(["Genova", "Le Havre", "Gdańsk"], 200),
            "member": random.random(200) < 0.3,
        }
    )
    frame.loc[::9, "âge (années)"] = np.nan
    if missing_strings:
        frame.loc[::11, "port"] = np.nan
    return frame


def pipeline(classifier: object, unknown: str = "ignore") -> Pipeline:
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    strings = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown=unknown))
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["âge (années)", "fare.paid", "siblings"]),
            ("strings", strings, ["port"]),
            ("rest", "passthrough", ["member"]),
        ]
    )
    return Pipeline([("columns", columns), ("classify", classifier)])


SURVIVED = np.where(passengers()["fare.paid"] > 35, "yes", "no")


@pytest.mark.parametrize("missing_strings", [False, True])
@pytest.mark.parametrize(
    "classifier",
    [LogisticRegression(), RandomForestClassifier(20, random_state=0), HistGradientBoostingClassifier()],
)
def test_a_mixed_pipeline_answers_as_the_estimator_does(
    tmp_path: Path, classifier: object, missing_strings: bool
) -> None:
    frame = passengers(missing_strings)
    model = pipeline(classifier).fit(frame, SURVIVED)
    built = build_model(tmp_path, model, frame)
    served = runtime(tmp_path, built)
    rows = example_rows(built.signature.inputs, read(tmp_path / "example.csv", "text/csv"))  # type: ignore[union-attr]
    answered = served.run(rows)
    assert answered["label"].tolist() == model.predict(frame).tolist()
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(frame), atol=1e-5)


def test_the_signature_holds_dtypes_nullability_categories_and_ranges(tmp_path: Path) -> None:
    frame = passengers()
    model = pipeline(LogisticRegression()).fit(frame, SURVIVED)
    built = build_model(tmp_path, model, frame.assign(survived=SURVIVED), target="survived")
    assert built.signature is not None
    age, fare, siblings, port, member = built.signature.inputs
    assert (age.name, age.dtype, age.nullable) == ("âge (années)", "float64", True)
    assert (fare.dtype, fare.nullable) == ("float64", False)
    assert fare.minimum == pytest.approx(frame["fare.paid"].min())
    assert (siblings.dtype, siblings.minimum, siblings.maximum) == ("int64", 0, 4)
    assert (port.dtype, port.categories, port.closed) == ("string", ("Gdańsk", "Genova", "Le Havre"), False)
    assert (member.dtype, member.minimum) == ("bool", None)
    assert built.signature.outputs[0].classes == ("no", "yes")
    assert built.metrics["accuracy"] > 0.8


def test_categories_are_closed_when_the_encoder_rejects_unknown_values(tmp_path: Path) -> None:
    frame = passengers()[["port", "siblings"]]
    columns = ColumnTransformer([("port", OneHotEncoder(), ["port"])], remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression()).fit(frame, SURVIVED)
    built = build_model(tmp_path, model, frame)
    assert built.signature is not None
    assert built.signature.inputs[0].closed


def test_encoded_numbers_are_categories_too(tmp_path: Path) -> None:
    frame = passengers()[["siblings", "fare.paid"]]
    columns = ColumnTransformer([("s", OrdinalEncoder(), ["siblings"])], remainder="passthrough")
    built = build_model(tmp_path, make_pipeline(columns, LogisticRegression()).fit(frame, SURVIVED), frame)
    assert built.signature is not None
    assert built.signature.inputs[0].categories == (0, 1, 2, 3, 4)
    assert built.signature.inputs[0].closed


def test_without_an_example_the_encoders_show_which_features_are_strings(tmp_path: Path) -> None:
    frame = passengers()
    built = build_model(tmp_path, pipeline(LogisticRegression(), "error").fit(frame, SURVIVED))
    assert built.state == "ready", built.report
    assert built.signature is not None
    assert [i.dtype for i in built.signature.inputs] == ["float64"] * 3 + ["string", "float64"]
    assert built.signature.inputs[3].closed


def test_features_may_have_the_names_of_outputs(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            name: np.linspace(0, 1, 30) ** k
            for k, name in enumerate(["label", "probabilities", "input", "a b", "a.b"], 1)
        }
    )
    columns = ColumnTransformer([("s", StandardScaler(), ["label", "a b"])], remainder="passthrough")
    model = make_pipeline(columns, LogisticRegression()).fit(frame, [0, 1, 2] * 10)
    built = build_model(tmp_path, model, frame)
    assert built.runtime == "onnx", built.runtime_reason
    rows = example_rows(built.signature.inputs, read(tmp_path / "example.csv", "text/csv"))  # type: ignore[union-attr]
    np.testing.assert_allclose(
        runtime(tmp_path, built).run(rows)["probabilities"], model.predict_proba(frame), atol=1e-9
    )
