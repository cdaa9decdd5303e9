"""Pickles that refer to names of the script that wrote them, which ran as __main__."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from registry.build_messages import BuildRequest
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import BUILD

SCRIPT = """
import joblib
import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

def double(X):
    return np.asarray(X) * 2

def serve(X):
    return np.asarray(X) * 2

def main(X):
    return np.asarray(X) * 2

def Fork(X):
    return np.asarray(X) * 2

for protocol in {protocols}:
    for function in (double, serve, main, Fork):
        model = make_pipeline(FunctionTransformer(function), LinearRegression())
        model.fit([[0.0], [1.0]], [0.0, 1.0])
        joblib.dump(model, f"{{function.__name__}}-{{protocol}}.joblib", protocol=protocol)
"""
NAMES = ("double", "serve", "main", "Fork")  # the last three are names of the template
PROTOCOLS = (2, 5)


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which a training script wrote a model with each of its functions."""
    folder = tmp_path_factory.mktemp("pickles")
    (folder / "train.py").write_text(SCRIPT.format(protocols=PROTOCOLS))
    subprocess.run([sys.executable, "train.py"], check=True, cwd=folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_that_needs_its_training_script_is_rejected_without_a_path(
    shared_forks: ForkServer, pickles: Path, tmp_path: Path, name: str, protocol: int
) -> None:
    artifact = pickles / f"{name}-{protocol}.joblib"
    request = BuildRequest(artifact=str(artifact), format="sklearn-joblib", out=str(tmp_path))
    built = oneshot.run(shared_forks, BUILD, request, 60, lambda: None)
    assert built.state == "rejected"
    assert built.report["reason"] == (
        f"the pickle needs {name!r}, defined in the script that made it (__main__); "
        "put it into a module that is installed here"
    )


def test_a_pickle_that_needs_a_missing_attribute_is_rejected_without_a_path(
    shared_forks: ForkServer, tmp_path: Path
) -> None:
    artifact = tmp_path / "model.joblib"
    artifact.write_bytes(b"\x80\x04\x8c\x14sklearn.linear_model\x8c\x0bNoSuchModel\x93.")
    request = BuildRequest(artifact=str(artifact), format="sklearn-joblib", out=str(tmp_path))
    reason = oneshot.run(shared_forks, BUILD, request, 60, lambda: None).report["reason"]
    assert "needs 'NoSuchModel' of the module 'sklearn.linear_model'" in reason
    assert "/" not in reason
