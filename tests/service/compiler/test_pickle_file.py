"""The versions that a pickle records, read without unpickling it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import pytest
import sklearn
from sklearn.linear_model import LogisticRegression

from service.compiler import pickle_file

INSTALLED = sklearn.__version__
MODEL = LogisticRegression().fit([[0.0], [1.0]], [0, 1])


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle_shows_the_version_of_scikit_learn(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(MODEL, protocol=protocol))
    assert pickle_file.recorded_versions(file) == (INSTALLED, ">=2")
    joblib.dump(MODEL, file, protocol=protocol)
    assert pickle_file.recorded_versions(file)[0] == INSTALLED


@pytest.mark.parametrize("compress", [3, ("lzma", 3), ("xz", 3), ("bz2", 3), ("gzip", 3)])
def test_a_compressed_file_shows_the_version_of_scikit_learn(tmp_path: Path, compress: Any) -> None:
    joblib.dump(MODEL, tmp_path / "model.joblib", compress=compress)
    assert pickle_file.recorded_versions(tmp_path / "model.joblib")[0] == INSTALLED


def test_the_modules_of_numpy_1_bound_the_version_of_numpy(tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps(MODEL).replace(b"numpy._core.", b"numpy.core."))
    assert pickle_file.recorded_versions(file)[1] == "<2"


@pytest.mark.parametrize("offset", range(pickle_file.BLOCK_BYTES - 50, pickle_file.BLOCK_BYTES + 2, 3))
def test_names_across_two_blocks_of_the_file_are_found(tmp_path: Path, offset: int) -> None:
    file = tmp_path / "model.pkl"
    version = b"\x8c\x10_sklearn_version\x94\x8c\x051.2.3"
    file.write_bytes(b"\0" * (offset - 9) + version + b"numpy._core.multiarray")
    assert pickle_file.recorded_versions(file) == ("1.2.3", ">=2")


def test_a_damaged_compressed_file_shows_what_comes_before_the_damage(tmp_path: Path) -> None:
    file = tmp_path / "model.joblib"
    joblib.dump(MODEL, file, compress=3)
    file.write_bytes(file.read_bytes()[:40])
    assert pickle_file.recorded_versions(file) == (None, None)


def test_zeros_that_compress_to_little_are_read_block_by_block(tmp_path: Path) -> None:
    file = tmp_path / "zeros.joblib"
    joblib.dump(bytes(5 << 20), file, compress=9)
    sizes = [len(block) for block in pickle_file.blocks(file)]
    assert max(sizes) <= pickle_file.BLOCK_BYTES
    assert sum(sizes) > 5 << 20
