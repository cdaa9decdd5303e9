"""The file of the compiled kernel: where it is, when it is used, and what happens without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from llvmlite import binding
from sklearn.ensemble import GradientBoostingClassifier

from registry.errors import Unavailable
from registry.signature import Input, Output, Signature
from service.compiler.trees.flatten import flatten
from service.runtime import kernel_code, libraries, node_file
from service.runtime.kernel_table import NotCompiled
from tests.service.compiler.tflite import cases

ROOT = Path(__file__).parents[3]
DATA = cases.data(100)
SIGNATURE = Signature(
    "classification",
    (Input("a", "float64"),) * cases.FEATURES,
    (Output("label", "int64", (-1,), (0, 1)), Output("probabilities", "float64", (-1, 2), (0, 1))),
)


@pytest.fixture
def code() -> bytes:
    """The compiled code, with its digest."""
    kernel_code.load_or_compile()
    return kernel_code.code_file().read_bytes()


@pytest.fixture
def file(code: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The name of the file for a process that has not loaded the kernel; the file does not exist."""
    monkeypatch.setattr(kernel_code, "_loaded", None)
    monkeypatch.setattr(kernel_code, "code_file", lambda: tmp_path / "cache" / "kernel.o")
    return tmp_path / "cache" / "kernel.o"


def test_a_process_without_numba_gives_the_same_answers(tmp_path: Path, code: bytes) -> None:
    model = GradientBoostingClassifier(n_estimators=5, random_state=0).fit(DATA.x, DATA.two)
    node_file.save(flatten(model), tmp_path / "forest.nodes")
    np.save(tmp_path / "rows.npy", DATA.x)
    program = f"""
import sys
from pathlib import Path
import msgspec
import numpy as np
from registry.rows import Rows
from registry.signature import Signature
from service.runtime import kernel_code
from service.runtime.forest_runtime import ForestRuntime
signature = msgspec.json.decode({msgspec.json.encode(SIGNATURE)!r}, type=Signature)
folder = Path({str(tmp_path)!r})
runtime = ForestRuntime(folder / "forest.nodes", signature, kernel_code.load())
np.save(folder / "answers.npy", runtime.run(Rows(matrix=np.load(folder / "rows.npy")))["probabilities"])
print([name for name in ("numba", "sklearn", "onnxruntime", "scipy") if name in sys.modules])
"""
    argv = [sys.executable, "-c", program]
    process = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert process.stdout.strip() == "[]"
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), model.predict_proba(DATA.x), rtol=1e-12)


def test_loading_does_not_compile(file: Path) -> None:
    assert not kernel_code.is_compiled()
    with pytest.raises(NotCompiled, match="not compiled yet"):
        kernel_code.load()
    assert not file.exists()


def test_a_damaged_file_is_deleted_before_it_ends_the_process(file: Path, code: bytes) -> None:
    for damaged in (b"", code[:10_000], code[:1000] + b"x" + code[1001:], code[:-1]):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(damaged)
        with pytest.raises(NotCompiled, match="damaged"):
            kernel_code.load()
        assert not file.exists()


def test_a_damaged_file_that_cannot_be_deleted_is_not_used(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError

    file.parent.mkdir()
    file.write_bytes(b"damaged")
    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(NotCompiled, match="damaged"):
        kernel_code.load()


def test_compiled_code_is_stored_for_other_processes(
    file: Path, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_code, "_compile", lambda: code[kernel_code.DIGEST_BYTES :])
    kernel = kernel_code.load_or_compile()
    assert kernel_code.load() is kernel
    assert sorted(f.name for f in file.parent.iterdir()) == ["kernel.lock", "kernel.o"]
    assert file.read_bytes() == code


def test_without_a_writable_folder_each_process_that_may_compile_does_so(
    file: Path, code: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_code, "_compile", lambda: code[kernel_code.DIGEST_BYTES :])
    file.parent.write_text("not a folder")
    assert kernel_code.load_or_compile().float32
    assert not file.exists()


def test_the_file_is_that_of_the_source_the_libraries_and_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = kernel_code.code_file.__wrapped__
    here = name()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert name() == tmp_path / here.name
    with monkeypatch.context() as patched:
        patched.setattr(libraries, "versions_for", lambda _: {"numba": "0"})
        assert name().name != here.name
    monkeypatch.setattr(binding, "get_host_cpu_name", lambda: "another")
    assert name().name != here.name


def test_a_missing_library_function_is_an_error_and_not_the_end_of_the_process() -> None:
    with pytest.raises(Unavailable, match="needs the C function no_such_function"):
        kernel_code._library_function("no_such_function")
