"""Keras models and .tflite files in real build children: results, limits and crashes."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from registry.build_messages import BuildRequest, BuildResult
from registry.vocabulary import Format
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import BUILD
from tests.service.compiler.keras import keras_models

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def build_request(folder: Path, content: bytes, format: Format, memory_mb: int = 8192) -> BuildRequest:
    (folder / "artifact").write_bytes(content)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return BuildRequest(artifact=str(folder / "artifact"), format=format, out=str(out), memory_mb=memory_mb)


def build(forks: ForkServer, request: BuildRequest) -> BuildResult:
    return oneshot.run(forks, BUILD, request, 120, lambda: None)


def keras_file(folder: Path) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras_models.iris().save(folder / "model.keras")
    return (folder / "model.keras").read_bytes()


def test_too_little_memory_for_tensorflow_rejects_the_model(shared_forks: ForkServer, tmp_path: Path) -> None:
    built = build(shared_forks, build_request(tmp_path, keras_file(tmp_path), "keras", memory_mb=400))
    assert built.state == "rejected"
    assert "the limit is 400 MB" in built.report["reason"] or "limit of 400 MB" in built.report["reason"]


def test_files_with_flipped_bytes_do_not_harm_the_fork_server(
    shared_forks: ForkServer, tmp_path: Path
) -> None:
    original = keras_models.exported("iris")
    random = np.random.default_rng(0)
    states = set()
    for _ in range(40):
        content = bytearray(original)
        for position in random.integers(8, len(original), 3):
            content[position] ^= 1 << int(random.integers(8))
        built = build(shared_forks, build_request(tmp_path, bytes(content), "tflite"))
        assert built.state == "ready" or built.report["reason"]
        states.add(built.state)
    assert "rejected" in states
    assert shared_forks.problem() is None


def test_neither_the_server_nor_the_template_imports_tensorflow(shared_forks: ForkServer) -> None:
    libraries = Path(f"/proc/{shared_forks.pid}/maps").read_text()  # Keras would import both of the others
    assert "sklearn" in libraries
    assert "tensorflow" not in libraries
    assert "h5py" not in libraries
    code = (
        "import sys, service.app, service.runtime.loading\n"
        "print(sorted({'tensorflow', 'keras', 'h5py'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert process.stdout == "[]\n"
