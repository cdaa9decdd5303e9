"""What fitted encoders know of a feature: missing values, text, types; the estimator receives them so."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

from registry.errors import Refused
from registry.rows import Rows
from registry.signature import Signature
from service.compiler import example
from service.compiler.measure import metrics
from service.compiler.signature.corrections import Corrections
from service.compiler.signature.describe import Described, describe
from service.compiler.signature.estimator import EstimatorRuntime
from tests.service.compiler.helpers import build_model, runtime

NUMBERS = np.arange(24.0)
POSITION = np.arange(24) % 4
TARGET = NUMBERS + 10 * POSITION
MEDIA_TYPES = {
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
    "json": "application/json",
}
IGNORED = OneHotEncoder(handle_unknown="ignore")


def fitted(encoder: Any, values: list[Any], dtype: Any = object) -> tuple[Pipeline, pd.DataFrame]:
    """A regression on a number and an encoded column that cycles through four `values`."""
    frame = pd.DataFrame({"a": NUMBERS, "c": pd.Series([values[i] for i in POSITION], dtype=dtype)})
    prepare = make_column_transformer((encoder, ["c"]), remainder="passthrough")
    return make_pipeline(prepare, LinearRegression()).fit(frame, TARGET), frame


def write(folder: Path, frame: pd.DataFrame, suffix: str) -> dict[str, str]:
    """Write the frame with its target as an example; return the fields of a build request."""
    path = folder / f"example.{suffix}"
    frame = frame.assign(y=TARGET)
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "json":
        frame.to_json(path, orient="records")
    else:
        frame.to_parquet(path)
    return {"example": str(path), "example_media_type": MEDIA_TYPES[suffix], "target": "y"}


def described_with(folder: Path, model: Any, frame: pd.DataFrame, suffix: str) -> Described:
    fields = write(folder, frame, suffix)
    return describe(model, example.read(*fields.values()), Corrections())


def score(model: Any, described: Described) -> float:
    """R2 on the example, as a build measures it."""
    assert described.rows is not None
    assert described.truth is not None
    answers = EstimatorRuntime(model, described.signature).run(described.rows)
    return metrics.measure(described.signature, answers, described.truth)["r2"]


def answer(serving: Any, signature: Signature, values: list[Any]) -> list[float]:
    """The answers for a = 1 and each value of c; None is missing."""
    numbers = np.ones(len(values))
    if signature.inputs[1].dtype == "string":
        rows = Rows(columns=(numbers, np.array(values, dtype=object)))
    else:
        rows = Rows(matrix=np.column_stack([numbers, np.array(values, dtype=float)]))
    served: list[float] = serving.run(rows)["value"].tolist()
    return served


def own_answers(model: Any, values: list[Any]) -> Any:
    """The estimator's own answers to the same rows, with the values of the fit."""
    frame = pd.DataFrame({"a": 1.0, "c": pd.Series(values, dtype=object)})
    return pytest.approx(model.predict(frame))


@pytest.mark.parametrize("missing", [None, np.nan])
@pytest.mark.parametrize(
    "encoder",
    [
        IGNORED,
        OneHotEncoder(),
        OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2),
        TargetEncoder(cv=KFold(3)),
        make_pipeline(SimpleImputer(missing_values="?", strategy="most_frequent"), OneHotEncoder()),
    ],
    ids=["ignored", "closed", "ordinal", "target", "behind an imputer"],
)
@pytest.mark.parametrize("suffix", ["parquet", "json", "csv"])
def test_a_missing_text_is_the_one_that_the_encoder_was_fitted_on(
    tmp_path: Path, encoder: Any, missing: Any, suffix: str
) -> None:
    if isinstance(encoder, Pipeline) and missing is not None:
        return  # this imputer refuses NaN
    model, frame = fitted(encoder, [missing, "x", "y", "z"])
    described = described_with(tmp_path, model, frame, suffix)
    assert score(model, described) == pytest.approx(model.score(frame, TARGET), abs=1e-9)
    estimator = EstimatorRuntime(model, described.signature)
    assert answer(estimator, described.signature, [None, "y"]) == own_answers(model, [missing, "y"])


@pytest.mark.parametrize("missing", [None, np.nan])
def test_the_served_form_answers_missing_text_as_the_estimator_does(tmp_path: Path, missing: Any) -> None:
    model, frame = fitted(IGNORED, [missing, "x", "y", "z"])
    built = build_model(tmp_path, model, **write(tmp_path, frame, "parquet"))
    assert built.metrics["r2"] == pytest.approx(1.0)
    assert built.signature is not None
    served = answer(runtime(tmp_path, built), built.signature, [None, "y"])
    assert served == own_answers(model, [missing, "y"])


def test_a_boolean_with_none_reaches_the_encoder_as_objects(tmp_path: Path) -> None:
    model, frame = fitted(IGNORED, [None, True, False, False])
    signature = described_with(tmp_path, model, frame, "parquet").signature
    feature = signature.inputs[1]
    assert (feature.dtype, feature.nullable, feature.categories) == ("bool", True, (False, True))
    answered = answer(EstimatorRuntime(model, signature), signature, [np.nan, 1.0])
    assert answered == own_answers(model, [None, True])


def test_integers_with_none_reach_the_encoder_as_objects(tmp_path: Path) -> None:
    model, frame = fitted(OneHotEncoder(), [None, 1, 2, 3])
    described = described_with(tmp_path, model, frame, "parquet")
    assert score(model, described) == pytest.approx(1.0)
    estimator = EstimatorRuntime(model, described.signature)
    assert answer(estimator, described.signature, [np.nan, 2.0]) == own_answers(model, [None, 2])


@pytest.mark.parametrize("missing", [None, pd.NA, np.nan], ids=["None", "NA", "NaN"])
def test_an_imputer_receives_the_missing_value_that_it_looks_for(tmp_path: Path, missing: Any) -> None:
    imputer = SimpleImputer(missing_values=missing, strategy="constant", fill_value="none")
    model, frame = fitted(make_pipeline(imputer, OneHotEncoder()), [missing, "x", "y", "z"])
    described = described_with(tmp_path, model, frame, "parquet")
    assert score(model, described) == pytest.approx(1.0)
    estimator = EstimatorRuntime(model, described.signature)
    assert answer(estimator, described.signature, [None, "y"]) == own_answers(model, [missing, "y"])


@pytest.mark.parametrize("encoder", [IGNORED, OneHotEncoder()], ids=["ignored", "closed"])
def test_a_feature_is_nullable_if_its_encoder_was_fitted_on_missing_values(
    tmp_path: Path, encoder: Any
) -> None:
    model, _ = fitted(encoder, [None, "x", "y", "z"])
    described = describe(model, None, Corrections())
    assert [i.nullable for i in described.signature.inputs] == [False, True]
    refused = Corrections.read({"inputs": [{"name": "c", "nullable": False}]})
    assert not describe(model, None, refused).signature.inputs[1].nullable


def test_an_encoder_of_both_none_and_nan_is_rejected_by_name(tmp_path: Path) -> None:
    model, frame = fitted(IGNORED, [None, np.nan, "x", "y"])
    with pytest.raises(Refused, match='OneHotEncoder of "c" was fitted on None and on NaN'):
        described_with(tmp_path, model, frame, "parquet")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["0", "1", "2", "3"], True),
        (["1.50", "2.0", "3", "4"], True),
        (["True", "False", "True", "False"], True),
        (["NA", "null", "nan", "None"], True),
        (["01", "0x1F", "2024-01-01", "1e5"], True),
        (["", "x", "y", "z"], True),
        ([0, 1, 2, 3], False),
        ([0.5, 1.0, 2.0, 3.0], False),
        ([True, False, True, False], False),
    ],
)
@pytest.mark.parametrize("encoder", [IGNORED, OneHotEncoder()], ids=["ignored", "closed"])
def test_a_csv_column_has_the_type_that_its_encoder_knows(
    tmp_path: Path, values: list[Any], text: bool, encoder: Any
) -> None:
    model, frame = fitted(encoder, values, dtype=None)
    described = described_with(tmp_path, model, frame, "csv")
    feature = described.signature.inputs[1]
    assert ((feature.dtype == "string"), feature.nullable) == (text, False)
    assert score(model, described) == pytest.approx(model.score(frame, TARGET), abs=1e-9)


def test_text_of_a_csv_reaches_a_vectorizer_as_it_is_written() -> None:
    frame = pd.DataFrame({"c": ["10 20", "30", "20"] * 4})
    model = make_pipeline(make_column_transformer((CountVectorizer(), "c")), LinearRegression())
    described = describe(model.fit(frame, np.arange(12.0)), None, Corrections())
    assert described.signature.inputs[0].dtype == "string"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([dt.date(2024, 1, day) for day in range(1, 5)], "date"),
        (list(pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"])), "datetime64"),
        (list(pd.to_datetime(["2024-01-01"] * 4, utc=True)), "Timestamp"),
        (list(pd.to_timedelta([1, 2, 3, 4], unit="s")), "timedelta64"),
        (list(pd.period_range("2024-01", periods=4, freq="M")), "Period"),
        ([Decimal("1.10"), Decimal("2.20"), Decimal("3"), Decimal("4")], "Decimal"),
        ([b"a", b"b", b"c", b"d"], "bytes"),
    ],
)
@pytest.mark.parametrize("encoder", [IGNORED, OrdinalEncoder()], ids=["one-hot", "ordinal"])
def test_categories_that_no_column_holds_are_rejected_by_name(
    values: list[Any], kind: str, encoder: Any
) -> None:
    model, _ = fitted(encoder, values, dtype=None)
    with pytest.raises(
        Refused, match=f'Encoder of "c" was fitted on values of type {kind}, which .*; fit it'
    ):
        describe(model, None, Corrections())


@pytest.mark.parametrize("values", [["01", "2", "x", "y"], [1, 2, 3, 4], [1.5, 2.5, 3.5, 4.5]])
def test_categories_and_classes_that_are_numpy_scalars_become_python_values(values: list[Any]) -> None:
    scalars = list(np.array(values))
    encoder, frame = fitted(OneHotEncoder(), scalars)
    model = make_pipeline(encoder[0], KNeighborsClassifier(1)).fit(frame, POSITION)
    model.steps[-1][1].classes_ = np.array(scalars, dtype=object)
    signature = describe(model, None, Corrections()).signature
    classes = next(o.classes for o in signature.outputs if o.classes)
    assert signature.inputs[1].categories == classes == tuple(values)
    assert {type(v) for v in (*signature.inputs[1].categories, *classes)} == {type(values[0])}


def test_the_categories_of_histogram_boosting_are_those_of_its_own_encoder(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "c": pd.Categorical(np.array(["x", "y", "z", "10"])[POSITION])})
    model = HistGradientBoostingRegressor(categorical_features="from_dtype", min_samples_leaf=1)
    described = described_with(tmp_path, model.fit(frame, TARGET), frame, "csv")
    assert described.signature.inputs[1].categories == ("10", "x", "y", "z")
    assert score(model, described) == pytest.approx(model.score(frame, TARGET))


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_numbers_reach_an_encoder_of_float32_in_float32(tmp_path: Path, suffix: str) -> None:
    model, frame = fitted(OneHotEncoder(), [0.1, 0.2, 0.3, 0.7], dtype="float32")
    described = described_with(tmp_path, model, frame, suffix)
    assert described.signature.inputs[1].dtype == "float32"
    assert score(model, described) == pytest.approx(1.0)
    assert describe(model, None, Corrections()).signature.inputs[1].dtype == "float32"


def test_a_model_of_both_the_empty_text_and_missing_values_has_a_warning(tmp_path: Path) -> None:
    model, frame = fitted(IGNORED, ["", None, "y", "z"])
    (warning,) = described_with(tmp_path, model, frame, "parquet").warnings
    assert 'the empty text of "c" from a missing value, and CSV does not' in warning
    with pytest.raises(Refused, match="publish the example as Parquet or JSON"):
        described_with(tmp_path, model, frame, "csv")


@pytest.mark.parametrize("labels", [["0", "1"], ["1.50", "NA"], ["True", "False"], ["null", "01"]])
def test_labels_of_text_are_compared_with_the_text_of_a_csv(tmp_path: Path, labels: list[str]) -> None:
    frame = pd.DataFrame({"a": NUMBERS, "y": np.array(labels)[POSITION % 2]})
    model = KNeighborsClassifier(1).fit(frame[["a"]], frame.y)
    frame.to_csv(tmp_path / "e.csv", index=False)
    described = describe(model, example.read(tmp_path / "e.csv", "text/csv", "y"), Corrections())
    assert described.truth is not None
    assert described.truth.to_pylist() == frame.y.tolist()


def test_a_feature_is_nullable_if_an_imputer_replaces_its_missing_values() -> None:
    imputed = make_pipeline(SimpleImputer(strategy="most_frequent"), IGNORED)
    model, _ = fitted(imputed, [np.nan, "x", "y", "z"])
    assert [i.nullable for i in describe(model, None, Corrections()).signature.inputs] == [False, True]
    complete = make_pipeline(SimpleImputer(missing_values=-1), IGNORED)
    other, _ = fitted(complete, [-1, 1, 2, 3], dtype=None)
    assert not describe(other, None, Corrections()).signature.inputs[1].nullable


def test_the_type_of_a_nullable_column_does_not_depend_on_the_rows_of_a_block(tmp_path: Path) -> None:
    imputed = make_pipeline(SimpleImputer(strategy="most_frequent"), IGNORED)
    model, frame = fitted(imputed, [None, True, False, True], dtype="boolean")
    described = described_with(tmp_path, model, frame, "parquet")
    estimator = EstimatorRuntime(model, described.signature)
    together = answer(estimator, described.signature, [1.0, np.nan])
    assert answer(estimator, described.signature, [1.0]) == pytest.approx(together[:1])
