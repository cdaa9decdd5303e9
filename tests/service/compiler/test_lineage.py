"""Which versions made an upload: what the file tells, what its publisher says, and who is believed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression

from service.compiler import lineage
from tests.service.compiler.helpers import build_file

HERE = sklearn.__version__
FILE = {"scikit-learn": "1.8.0", "numpy": ">=2", "python": None}
SILENT = {"scikit-learn": None, "numpy": None, "python": None}


def by(source: str, version: str) -> dict[str, str]:
    return {"version": version, "said_by": source}


def publisher(**versions: str) -> dict[str, Any]:
    said = {name.replace("_", "-"): by("publisher", version) for name, version in versions.items()}
    return {"made_by": said}


def fitted() -> LogisticRegression:
    return LogisticRegression().fit([[0.0], [1.0]], [0, 1])


def pickled(folder: Path) -> Path:
    file = folder / "model.pkl"
    file.write_bytes(pickle.dumps(fitted()))
    return file


def test_a_pickle_tells_its_scikit_learn_and_on_which_side_of_numpy_2_it_was_made(tmp_path: Path) -> None:
    file = pickled(tmp_path)
    assert lineage.recorded_versions(file, fitted(), []) == {
        "scikit-learn": HERE,
        "numpy": ">=2",
        "python": None,
    }
    file.write_bytes(file.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert lineage.recorded_versions(file, fitted(), [])["numpy"] == "<2"


def test_a_compressed_pickle_and_an_estimator_of_others_tell_nothing(tmp_path: Path) -> None:
    joblib.dump(fitted(), tmp_path / "model.joblib", compress=3)
    assert lineage.recorded_versions(tmp_path / "model.joblib", object(), []) == SILENT


@pytest.mark.parametrize("before", range(lineage.BLOCK_BYTES - 13, lineage.BLOCK_BYTES + 2))
def test_a_name_that_lies_across_two_blocks_of_the_file_is_found(tmp_path: Path, before: int) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(b"\0" * before + lineage.NUMPY_2_MODULE + b"multiarray")
    assert lineage.recorded_versions(file, object(), [])["numpy"] == ">=2"


def test_what_only_the_publisher_knows_is_kept_as_his_word() -> None:
    made, warnings = lineage.merge_versions(
        FILE, publisher(python="3.12.1", numpy="2.1.0", scikit_learn="1.8.0")
    )
    assert made == {
        "scikit-learn": by("file", "1.8.0"),
        "numpy": by("publisher", "2.1.0"),
        "python": by("publisher", "3.12.1"),
    }
    assert warnings == []


def test_the_file_wins_over_its_publisher_and_the_contradiction_is_a_warning() -> None:
    made, warnings = lineage.merge_versions(FILE, publisher(numpy="1.26.4", scikit_learn="1.5.0"))
    assert made == {"scikit-learn": by("file", "1.8.0"), "numpy": by("file", ">=2"), "python": None}
    assert len(warnings) == 2
    assert all(version in " ".join(warnings) for version in ("1.26.4", "1.5.0", "1.8.0", ">=2"))


def test_where_it_was_published_from_counts_when_it_has_the_scikit_learn_of_the_file() -> None:
    environment = {"python": "3.11.7", "numpy": "2.4.6", "scikit-learn": "1.8.0"}
    made, warnings = lineage.merge_versions(FILE, {"published_from": environment})
    assert made == {
        "scikit-learn": by("file", "1.8.0"),
        "numpy": by("environment", "2.4.6"),
        "python": by("environment", "3.11.7"),
    }
    assert warnings == []
    made, _ = lineage.merge_versions(FILE, publisher(python="3.12.1") | {"published_from": environment})
    assert made["python"] == by("publisher", "3.12.1")


@pytest.mark.parametrize("told", [FILE, SILENT], ids=["another", "none"])
def test_where_it_was_published_from_does_not_count_otherwise(told: lineage.Versions) -> None:
    environment = {"python": "3.11.7", "numpy": "2.4.6", "scikit-learn": "1.9.0"}
    made, warnings = lineage.merge_versions(told, {"published_from": environment})
    assert {name: None if word is None else word["said_by"] for name, word in made.items()} == {
        name: None if word is None else "file" for name, word in told.items()
    }
    assert warnings == []  # it is nobody's claim


def test_a_build_reports_who_is_believed(tmp_path: Path) -> None:
    said = publisher(python="3.11.0", numpy="1.26.4") | {"published_from": {"python": "3.13.0"}}
    built = build_file(tmp_path, pickled(tmp_path), lineage=said)
    assert built.lineage["made_by"] == {
        "scikit-learn": by("file", HERE),
        "numpy": by("file", ">=2"),
        "python": by("publisher", "3.11.0"),
    }
    assert any("1.26.4" in warning for warning in built.report["warnings"])
    assert set(built.lineage["built_by"]) >= {"scikit-learn", "numpy", "python"}


def test_another_scikit_learn_than_the_one_here_is_a_warning() -> None:
    assert lineage.version_warning({"scikit-learn": None}) is None
    assert lineage.version_warning({"scikit-learn": by("file", HERE)}) is None
    assert "1.0.9" in (lineage.version_warning({"scikit-learn": by("file", "1.0.9")}) or "")
