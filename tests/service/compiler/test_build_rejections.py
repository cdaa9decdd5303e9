"""Rejected builds: the reason names the estimator, the feature or the column."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.cluster import DBSCAN
from sklearn.datasets import load_iris
from sklearn.decomposition import NMF
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, scale

from registry.build_messages import BuildResult
from tests.service.compiler.helpers import build_file, build_model

FRAME = pd.DataFrame({"age": [20.0, 30.0, 40.0, 50.0], "height": [1.5, 1.8, 1.7, 1.6]})
LABELS = [0, 1, 1, 0]


def fitted() -> LogisticRegression:
    return LogisticRegression().fit(FRAME, LABELS)


def reason(folder: Path, model: Any, frame: pd.DataFrame | None = None, **options: Any) -> str:
    built = build_model(folder, model, frame, **options)
    assert built.state == "rejected"
    assert built.signature is None
    assert built.servable is None
    text: str = built.report["reason"]
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (LogisticRegression(), "LogisticRegression is not fitted"),
        (7, "the pickle holds an int, not a scikit-learn estimator"),
        ({"a": 1}, "a dict, not a scikit-learn estimator"),
        (LinearRegression, "the class LinearRegression itself"),
        (DBSCAN().fit(FRAME), "DBSCAN has neither predict nor transform"),
        (LocalOutlierFactor(2).fit(FRAME), "LocalOutlierFactor has neither predict nor transform"),
    ],
)
def test_a_model_that_cannot_answer_is_rejected_by_name(tmp_path: Path, model: Any, words: str) -> None:
    assert words in reason(tmp_path, model)


@pytest.mark.parametrize("ids", [[1, 2**53, 3, 4], [1, None, -(2**53) - 1, 4]])
def test_integers_beyond_the_range_of_float64_are_rejected_by_column(
    tmp_path: Path, ids: list[int | None]
) -> None:
    frame = pd.DataFrame({"id": pd.array(ids, dtype="Int64"), "age": FRAME["age"]})
    model = HistGradientBoostingClassifier(max_iter=2).fit(frame.astype(float), LABELS)
    assert 'the example\'s column "id" holds' in reason(tmp_path, model, frame)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no pickle", "the file is a text file, not a pickle"),
        (b"", "the file is empty, not a pickle"),
        (b"\x80\x04\xff", "cut short or is not a pickle"),
        (pickle.dumps(fitted())[:-50], "cut short"),
        (b"cnot_installed_here\nThing\n.", "needs the module 'not_installed_here'"),
        (b"csklearn.linear_model\nNoSuchModel\n.", "NoSuchModel"),
    ],
)
def test_a_file_that_does_not_load_is_rejected_with_the_reason(
    tmp_path: Path, content: bytes, words: str
) -> None:
    artifact = tmp_path / "model.joblib"
    artifact.write_bytes(content)
    built = build_file(tmp_path, artifact)
    assert built.state == "rejected"
    assert words in built.report["reason"]
    assert built.report["bytes"] == {"artifact": len(content)}


@pytest.mark.parametrize("compress", [0, 3, ("lzma", 3), ("bz2", 3), ("gzip", 3), "raw"])
def test_plain_and_compressed_joblib_files_and_raw_pickles_load(tmp_path: Path, compress: Any) -> None:
    artifact = tmp_path / "model.joblib"
    if compress == "raw":
        artifact.write_bytes(pickle.dumps(fitted(), protocol=5))
    else:
        joblib.dump(fitted(), artifact, compress=compress)
    assert build_file(tmp_path, artifact, FRAME).state == "ready"


def test_a_feature_that_the_example_lacks_is_named_in_the_reason(tmp_path: Path) -> None:
    assert 'the example lacks "height"' in reason(tmp_path, fitted(), FRAME[["age"]])


def test_an_example_with_another_number_of_columns_is_rejected(tmp_path: Path) -> None:
    model = LogisticRegression().fit(FRAME.to_numpy(), LABELS)
    text = reason(tmp_path, model, FRAME.assign(bought=LABELS))
    assert "fitted with 2 features" in text
    assert '"bought"' in text
    assert "target" in text


def test_a_target_that_is_not_a_column_is_named_in_the_reason(tmp_path: Path) -> None:
    assert 'the target "bought" is not a column' in reason(tmp_path, fitted(), FRAME, target="bought")


def test_a_target_needs_an_example(tmp_path: Path) -> None:
    assert 'the target "bought"' in reason(tmp_path, fitted(), None, target="bought")


def test_an_example_that_the_model_does_not_accept_is_rejected(tmp_path: Path) -> None:
    text_column = FRAME.assign(height=["small", "tall", "tall", "small"])
    assert "LogisticRegression cannot answer the example's own rows" in reason(
        tmp_path, fitted(), text_column
    )


@pytest.mark.parametrize("content", ["", "age,height\n", "age,height\n1,2,3\n"])
def test_an_example_without_rows_is_rejected(tmp_path: Path, content: str) -> None:
    example = tmp_path / "broken.csv"
    example.write_text(content)
    assert "example" in reason(tmp_path, fitted(), example=str(example), example_media_type="text/csv")


def test_columns_are_selected_by_name_and_others_are_ignored_with_a_warning(tmp_path: Path) -> None:
    frame = FRAME.assign(number=range(4))[["number", "height", "age"]]
    built = build_model(tmp_path, fitted(), frame)
    assert built.signature is not None
    assert [i.name for i in built.signature.inputs] == ["age", "height"]
    assert built.signature.inputs[0].example == 20.0
    assert any('"number"' in w for w in built.report["warnings"])


def test_a_column_is_not_nullable_when_the_model_rejects_its_missing_values(tmp_path: Path) -> None:
    frame = FRAME.astype(float)
    frame.loc[1, "height"] = np.nan
    built = build_model(tmp_path, fitted(), frame.assign(bought=LABELS), target="bought")
    assert built.state == "ready", built.report
    assert built.signature is not None
    assert not any(i.nullable for i in built.signature.inputs)
    assert any('"height"' in w for w in built.report["warnings"])
    assert "accuracy" in built.metrics


def test_a_target_of_another_type_than_the_labels_adds_a_warning(tmp_path: Path) -> None:
    built = build_model(tmp_path, fitted(), FRAME.assign(bought=["no", "yes", "yes", "no"]), target="bought")
    assert built.state == "ready"
    assert built.metrics == {}
    assert any("accuracy" in w for w in built.report["warnings"])


def publish_as_of(folder: Path, version: str, **options: Any) -> BuildResult:
    """Build a pickle that records another version of scikit-learn."""
    content = pickle.dumps(fitted(), protocol=2)
    installed, recorded = (
        f"X{struct.pack('<I', len(v)).decode()}{v}".encode() for v in (sklearn.__version__, version)
    )
    artifact = folder / "model.joblib"
    artifact.write_bytes(content.replace(installed, recorded))
    return build_file(folder, artifact, FRAME, **options)


def test_a_pickle_of_another_scikit_learn_is_served_with_a_warning(tmp_path: Path) -> None:
    built = publish_as_of(tmp_path, "1.8.0")
    assert built.state == "ready"
    assert built.lineage["made_by"]["scikit-learn"] == {"version": "1.8.0", "said_by": "file"}
    assert built.lineage["built_by"]["scikit-learn"] == sklearn.__version__
    (warning,) = built.report["warnings"]
    assert warning.startswith("made by scikit-learn 1.8.0, built and measured with ")
    assert warning.endswith("publish it with --answers to have them compared")


@pytest.mark.parametrize("version", ["0.24.2", "1.1.3", "99.0.1"])
def test_a_pickle_of_a_version_that_was_never_compared_needs_answers(tmp_path: Path, version: str) -> None:
    built = publish_as_of(tmp_path, version)
    assert built.state == "rejected"
    assert f"fitted by scikit-learn {version}" in built.report["reason"]
    assert "publish it with --answers" in built.report["reason"]
    answers = tmp_path / "answers.csv"
    pd.DataFrame({"label": fitted().predict(FRAME)}).to_csv(answers, index=False)
    (tmp_path / "proven").mkdir()
    proven = publish_as_of(tmp_path / "proven", version, answers=str(answers), answers_media_type="text/csv")
    assert proven.state == "ready", proven.report
    assert not any("may differ" in warning for warning in proven.report["warnings"])


def test_a_model_that_centres_each_block_of_rows_is_rejected(tmp_path: Path) -> None:
    model = make_pipeline(FunctionTransformer(scale), LogisticRegression()).fit(FRAME, LABELS)
    text = reason(tmp_path, model, FRAME)
    assert "Pipeline answers a row differently when it is sent alone" in text
    assert "each needs an answer of its own" in text
    (tmp_path / "without").mkdir()
    assert "when it is sent alone" in reason(tmp_path / "without", model, None)


def test_a_model_that_answers_by_chance_is_rejected(tmp_path: Path) -> None:
    model = DummyClassifier(strategy="uniform").fit(FRAME, LABELS)
    assert "DummyClassifier answers the same rows differently" in reason(tmp_path, model, FRAME)


def test_a_factorization_that_stops_early_for_all_rows_together_is_rejected_with_a_remedy(
    tmp_path: Path,
) -> None:
    rows = load_iris(as_frame=True).data
    model = NMF(max_iter=500, random_state=0).fit(rows)
    assert "fit NMF with a smaller tol and a larger max_iter" in reason(tmp_path, model, rows)


def test_a_text_that_the_model_cannot_read_is_named_with_its_column(tmp_path: Path) -> None:
    frame = FRAME.assign(height=["1.5", "NA", "unknown", "1.6"])
    text = reason(tmp_path, fitted_on_both(), frame)
    assert text.endswith('; text columns of the example: "height"')


def fitted_on_both() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=2).fit(FRAME, LABELS)
