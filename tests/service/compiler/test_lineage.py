"""The library versions that made an upload: from the file, the publisher and the environment."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import sklearn
from sklearn.linear_model import LogisticRegression

from service.compiler import lineage
from tests.service.compiler.helpers import build_file

INSTALLED = sklearn.__version__
FILE = {"scikit-learn": "1.8.0", "numpy": ">=2", "python": None}
UNKNOWN = {"scikit-learn": None, "numpy": None, "python": None}


def stated_by(source: str, version: str) -> dict[str, str]:
    return {"version": version, "said_by": source}


def from_publisher(**versions: str) -> dict[str, Any]:
    versions_by_publisher = {
        name.replace("_", "-"): stated_by("publisher", version) for name, version in versions.items()
    }
    return {"made_by": versions_by_publisher}


def fitted() -> LogisticRegression:
    return LogisticRegression().fit([[0.0], [1.0]], [0, 1])


def pickled(folder: Path) -> Path:
    file = folder / "model.pkl"
    file.write_bytes(pickle.dumps(fitted()))
    return file


def test_a_pickle_records_its_scikit_learn_and_a_bound_on_numpy(tmp_path: Path) -> None:
    assert lineage.recorded_versions(pickled(tmp_path)) == {
        "scikit-learn": INSTALLED,
        "numpy": ">=2",
        "python": None,
    }


def test_versions_that_only_the_publisher_states_are_recorded_as_the_publishers() -> None:
    made_by, warnings = lineage.merge_versions(
        FILE, from_publisher(python="3.12.1", numpy="2.1.0", scikit_learn="1.8.0")
    )
    assert made_by == {
        "scikit-learn": stated_by("file", "1.8.0"),
        "numpy": stated_by("publisher", "2.1.0"),
        "python": stated_by("publisher", "3.12.1"),
    }
    assert warnings == []


def test_the_file_overrides_the_publisher_and_a_contradiction_adds_a_warning() -> None:
    made_by, warnings = lineage.merge_versions(FILE, from_publisher(numpy="1.26.4", scikit_learn="1.5.0"))
    assert made_by == {
        "scikit-learn": stated_by("file", "1.8.0"),
        "numpy": stated_by("file", ">=2"),
        "python": None,
    }
    assert len(warnings) == 2
    assert all(version in " ".join(warnings) for version in ("1.26.4", "1.5.0", "1.8.0", ">=2"))


def test_the_publishing_environment_counts_if_it_has_the_scikit_learn_of_the_file() -> None:
    environment = {"python": "3.11.7", "numpy": "2.4.6", "scikit-learn": "1.8.0"}
    made_by, warnings = lineage.merge_versions(FILE, {"published_from": environment})
    assert made_by == {
        "scikit-learn": stated_by("file", "1.8.0"),
        "numpy": stated_by("environment", "2.4.6"),
        "python": stated_by("environment", "3.11.7"),
    }
    assert warnings == []
    made_by, _ = lineage.merge_versions(
        FILE, from_publisher(python="3.12.1") | {"published_from": environment}
    )
    assert made_by["python"] == stated_by("publisher", "3.12.1")


@pytest.mark.parametrize("recorded", [FILE, UNKNOWN], ids=["another version", "unknown version"])
def test_the_publishing_environment_with_another_scikit_learn_does_not_count(
    recorded: lineage.Versions,
) -> None:
    environment = {"python": "3.11.7", "numpy": "2.4.6", "scikit-learn": "1.9.0"}
    made_by, warnings = lineage.merge_versions(recorded, {"published_from": environment})
    assert {name: None if entry is None else entry["said_by"] for name, entry in made_by.items()} == {
        name: None if version is None else "file" for name, version in recorded.items()
    }
    assert warnings == []


def test_a_build_records_the_version_and_source_of_each_library(tmp_path: Path) -> None:
    versions_by_publisher = from_publisher(python="3.11.0", numpy="1.26.4") | {
        "published_from": {"python": "3.13.0"}
    }
    built = build_file(tmp_path, pickled(tmp_path), lineage=versions_by_publisher)
    assert built.lineage["made_by"] == {
        "scikit-learn": stated_by("file", INSTALLED),
        "numpy": stated_by("file", ">=2"),
        "python": stated_by("publisher", "3.11.0"),
    }
    assert any("1.26.4" in warning for warning in built.report["warnings"])
    assert set(built.lineage["built_by"]) >= {"scikit-learn", "numpy", "python"}


def test_another_scikit_learn_than_the_installed_one_adds_a_warning() -> None:
    for compared in (False, True):
        assert lineage.version_warning({"scikit-learn": None}, compared) is None
        assert lineage.version_warning({"scikit-learn": stated_by("file", INSTALLED)}, compared) is None
    other = {"scikit-learn": stated_by("file", "1.0.9")}
    assert "1.0.9" in (text := lineage.version_warning(other, compared=False) or "")
    assert "publish it with --answers" in text
    assert "--answers" not in (lineage.version_warning(other, compared=True) or "")
