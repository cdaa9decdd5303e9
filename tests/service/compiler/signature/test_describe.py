"""The signature that a build derives from a model, and the corrections that a user may give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

from registry.build_messages import BuildResult
from registry.rows import Rows
from registry.signature import Signature
from tests.service.compiler.helpers import build_model, runtime

RANDOM = np.random.default_rng(0)
FRAME = pd.DataFrame(RANDOM.normal(size=(60, 3)), columns=["a", "b", "c"])
LABELS = (FRAME["a"] > 0).to_numpy()


def signature(built: BuildResult) -> Signature:
    assert built.state == "ready", built.report
    assert built.signature is not None
    return built.signature


@pytest.mark.parametrize(
    ("labels", "dtype", "classes"),
    [
        (np.where(LABELS, "oui", "non, merçi"), "string", ("non, merçi", "oui")),
        (LABELS, "bool", (False, True)),
        (np.where(LABELS, 7, -3), "int64", (-3, 7)),
        (np.where(LABELS, 1.0, 0.0), "float64", (0.0, 1.0)),
        (np.array(["x", "y", "z"], dtype=object)[np.arange(60) % 3], "string", ("x", "y", "z")),
    ],
)
@pytest.mark.parametrize("model", [RandomForestClassifier(5, random_state=0), LogisticRegression()])
def test_labels_keep_their_python_type(
    tmp_path: Path, model: Any, labels: Any, dtype: str, classes: tuple[Any, ...]
) -> None:
    built = build_model(tmp_path, model.fit(FRAME, labels), FRAME)
    label, probabilities = signature(built).outputs
    assert (label.name, label.dtype, label.classes) == ("label", dtype, classes)
    assert [type(c) for c in label.classes or ()] == [type(c) for c in classes]
    assert (probabilities.name, probabilities.shape, probabilities.classes) == (
        "probabilities",
        (-1, len(classes)),
        classes,
    )
    assert built.runtime == "onnx", built.runtime_reason
    answered = runtime(tmp_path, built).run(Rows(matrix=FRAME.to_numpy()))
    assert answered["label"].tolist() == model.predict(FRAME).tolist()


@pytest.mark.parametrize("width", [1, 2, 500])
@pytest.mark.parametrize("model", [RandomForestClassifier(5, random_state=0), LogisticRegression()])
def test_models_of_one_two_and_five_hundred_features_are_served(
    tmp_path: Path, model: Any, width: int
) -> None:
    rows = RANDOM.normal(size=(40, width))
    model.fit(rows, rows[:, 0] > 0)
    built = build_model(tmp_path, model)
    assert [i.name for i in signature(built).inputs] == [f"x{i}" for i in range(width)]
    assert {i.dtype for i in signature(built).inputs} == {"float64"}
    assert built.runtime == "onnx"
    answered = runtime(tmp_path, built).run(Rows(matrix=rows))
    np.testing.assert_allclose(answered["probabilities"], model.predict_proba(rows), atol=1e-9)


def test_unusual_feature_names_are_not_changed(tmp_path: Path) -> None:
    names = ["petal length (cm)", "prix.€", "größe", "x y", "x.y", "x_y", "input"]
    frame = pd.DataFrame(RANDOM.normal(size=(40, len(names))), columns=names)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, frame["größe"] > 0)
    built = build_model(tmp_path, model, frame)
    assert [i.name for i in signature(built).inputs] == names
    assert built.runtime == "onnx"


def test_a_classifier_without_probabilities_has_labels_only(tmp_path: Path) -> None:
    built = build_model(tmp_path, LinearSVC().fit(FRAME, LABELS), FRAME)
    assert [o.name for o in signature(built).outputs] == ["label"]


def test_several_targets_have_outputs_of_their_own(tmp_path: Path) -> None:
    targets = np.column_stack([np.where(LABELS, "up", "down"), np.array(["p", "q", "r"])[np.arange(60) % 3]])
    model = MultiOutputClassifier(LogisticRegression()).fit(FRAME, targets)
    built = build_model(tmp_path, model, FRAME)
    outputs = signature(built).outputs
    assert [o.name for o in outputs] == ["y0.label", "y0.probabilities", "y1.label", "y1.probabilities"]
    assert outputs[2].classes == ("p", "q", "r")
    answered = runtime(tmp_path, built).run(Rows(matrix=FRAME.to_numpy()))
    assert answered["y1.label"].tolist() == model.predict(FRAME)[:, 1].tolist()
    np.testing.assert_allclose(answered["y1.probabilities"], model.predict_proba(FRAME)[1], atol=1e-6)


def test_a_regressor_has_the_output_value_and_a_mixture_the_output_cluster(tmp_path: Path) -> None:
    for number, (model, name) in enumerate([(LinearRegression(), "value"), (GaussianMixture(2), "cluster")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        built = build_model(folder, model.fit(FRAME, FRAME["a"]), FRAME)
        assert [(o.name, o.shape) for o in signature(built).outputs] == [(name, (-1,))]


def test_a_text_classifier_takes_one_string(tmp_path: Path) -> None:
    texts = ["good film", "bad film", "very good", "very bad"] * 5
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0] * 5)
    built = build_model(tmp_path, model)
    assert [(i.name, i.dtype) for i in signature(built).inputs] == [("text", "string")]
    assert built.runtime == "isolated"
    answered = runtime(tmp_path, built).run(Rows(columns=(np.array(["good", "bad"], dtype=object),)))
    assert answered["label"].tolist() == [1, 0]


def test_a_clusterer_may_be_served_as_a_transformer(tmp_path: Path) -> None:
    model = KMeans(3, random_state=0).fit(FRAME)
    built = build_model(tmp_path, model, FRAME, signature={"task": "transform"})
    assert signature(built).outputs[0].shape == (-1, 3)
    answered = runtime(tmp_path, built).run(Rows(matrix=FRAME.to_numpy()))
    np.testing.assert_allclose(answered["vector"], model.transform(FRAME), rtol=1e-6)


def test_a_correction_changes_the_named_fields_only(tmp_path: Path) -> None:
    frame = FRAME.assign(c=np.arange(60) % 3)
    correction = {"inputs": [{"name": "c", "dtype": "float64", "maximum": 10, "closed": True}]}
    built = build_model(tmp_path, LinearRegression().fit(frame, FRAME["a"]), frame, signature=correction)
    a, _, c = signature(built).inputs
    assert (c.dtype, c.minimum, c.maximum, c.closed) == ("float64", 0, 10, False)
    assert [w for w in built.report["warnings"] if "has no effect" in w] != []
    assert a.minimum == pytest.approx(frame["a"].min())


def test_the_signature_of_a_build_is_accepted_as_a_correction(tmp_path: Path) -> None:
    model = make_pipeline(OneHotEncoder(), LogisticRegression())
    frame = pd.DataFrame({"city": ["Rome", "Oslo", "Lima"] * 10, "size": ["s", "m", "l"] * 10})
    model.fit(frame, [0, 1, 1] * 10)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first = signature(build_model(tmp_path / "first", model, frame))
    assert signature(build_model(tmp_path / "second", model, frame, signature=first.to_json())) == first


def test_corrected_inputs_name_the_features_of_a_model_without_feature_names(tmp_path: Path) -> None:
    model = LinearRegression().fit(FRAME.to_numpy(), FRAME["a"])
    correction = {"inputs": [{"name": n} for n in ("width", "depth", "height")]}
    built = build_model(tmp_path, model, signature=correction)
    assert [i.name for i in signature(built).inputs] == ["width", "depth", "height"]


def test_corrected_classes_name_the_targets_of_a_regression(tmp_path: Path) -> None:
    model = RandomForestRegressor(3).fit(FRAME, FRAME[["a", "b"]])
    correction = {"outputs": [{"name": "values", "classes": ["north", "south"]}]}
    built = build_model(tmp_path, model, FRAME, signature=correction)
    assert signature(built).outputs[0].classes == ("north", "south")


@pytest.mark.parametrize(
    ("correction", "words"),
    [
        ({"inputs": [{"name": "z"}]}, '"z"'),
        ({"inputs": [{"name": "a"}, {"name": "a"}]}, '"a" more than once'),
        ({"inputs": [{"name": "a", "dtype": "complex"}]}, "cannot be read"),
        ({"inputs": [{"name": "a", "dtype": "int64"}]}, '"a"'),
        ({"inputs": [{"name": "a", "colour": "red"}]}, "colour"),
        ({"inputs": [{"name": "a", "categories": ["x"]}]}, '"a"'),
        ({"task": "clustering"}, "clustering"),
        ({"outputs": [{"name": "value"}]}, '"value"'),
        ({"outputs": [{"name": "label", "classes": ["no", "yes"]}]}, '"label"'),
        ({"outputs": [{"name": "label", "dtype": "string"}]}, '"label"'),
    ],
)
def test_a_contradicting_correction_is_rejected_by_field(
    tmp_path: Path, correction: dict[str, Any], words: str
) -> None:
    built = build_model(
        tmp_path, LogisticRegression().fit(FRAME, LABELS.astype(int)), FRAME, signature=correction
    )
    assert built.state == "rejected"
    assert words in built.report["reason"]
